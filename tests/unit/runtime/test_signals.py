"""Signals set a flag and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import threading

import pytest

from trainer.runtime.signals import StopFlag, handed_on


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP"])
def test_a_signal_sets_the_flag_and_its_name(name: str) -> None:
    with StopFlag() as flag:
        assert (flag.requested, flag.reason) == (False, None)
        os.kill(os.getpid(), getattr(signal, name))
        assert (flag.requested, flag.reason) == (True, name)


def test_the_first_signal_is_answered_at_once_with_what_was_prepared(capfd) -> None:
    with StopFlag(tells=True) as flag:
        flag.when = "after step 3 of 10 the run ends."
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == "Stop asked (SIGTERM): after step 3 of 10 the run ends.\n"
        os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err == "", "one line"
    with StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        assert capfd.readouterr().err == "", "the first rank speaks for all"


def test_the_first_signal_is_the_reason() -> None:
    with StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.reason == "SIGUSR1"


def test_a_second_interrupt_breaks_out() -> None:
    with StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert flag.reason == "SIGINT"


def test_one_interrupt_after_another_signal_does_not_break_out() -> None:
    with StopFlag() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert flag.reason == "SIGTERM"


def test_handlers_are_put_back_even_after_an_error() -> None:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(RuntimeError), StopFlag():
        assert [signal.getsignal(number) for number in numbers] != before
        raise RuntimeError
    assert [signal.getsignal(number) for number in numbers] == before


def test_under_nohup_a_closed_terminal_is_still_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopFlag() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not flag.requested
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_cannot_install_it() -> None:
    errors: list[BaseException] = []

    def enter() -> None:
        try:
            with StopFlag():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_a_deadline_asks_to_stop_when_another_step_would_leave_too_little_for_a_save(monkeypatch) -> None:
    now = 1000.0
    monkeypatch.setattr("trainer.runtime.signals.time.time", lambda: now)
    flag = StopFlag(deadline=1100.0)
    assert not flag.requested, "nothing was measured yet"
    flag.has_taken(step_s=2.0)
    flag.has_taken(save_s=30.0)
    flag.has_taken(save_s=10.0, step_s=1.0)
    now = 1051.0
    assert not flag.requested
    now = 1053.0
    assert flag.requested and flag.reason == "the time limit"


def test_without_a_deadline_time_never_asks_to_stop() -> None:
    flag = StopFlag()
    flag.has_taken(step_s=1e9, save_s=1e9)
    assert not flag.requested


def test_a_signal_that_comes_before_there_is_a_process_is_told_once_there_is_one() -> None:
    """It ended us with the process just started, which nobody could stop any more."""
    told: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with handed_on((signal.SIGTERM, signal.SIGINT), told.append) as begin:
        os.kill(os.getpid(), signal.SIGTERM)
        assert told == []
        begin()
        assert told == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        assert told == [signal.SIGTERM, signal.SIGINT]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_ignored_is_so_for_a_process_that_is_started_and_told_from_then_on() -> None:
    """Ranks that load would be ended by a SIGUSR1 that they do not know yet."""
    told: list[int] = []
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with handed_on((signal.SIGUSR1,), told.append) as begin:
            os.kill(os.getpid(), signal.SIGUSR1)
            started = subprocess.run(
                ["sh", "-c", "kill -USR1 $$; echo lives"], capture_output=True, text=True
            )
            begin()
            os.kill(os.getpid(), signal.SIGUSR1)
        assert started.stdout == "lives\n" and told == [signal.SIGUSR1]
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
