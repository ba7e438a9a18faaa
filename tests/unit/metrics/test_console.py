"""What a person sees of a step."""

from __future__ import annotations

import io
import re

import pytest

from trainer.metrics.console import ConsoleSink, evaluation_line, training_line
from trainer.metrics.sink import Value

RECORD: dict[str, Value] = {
    "loss": 1.23456,
    "loss/domain_corpus": 1.5,
    "loss/replay": 1.1,
    "lr": 1e-5,
    "grad_norm": 0.8312,
    "tokens_per_s": 98_304.0,
    "tokens_per_s_per_gpu": 12_288.0,
    "mfu": 0.5987,
    "memory_gib": 61.23,
    "eta_s": 11_520.0,
}


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_training_line_has_everything_and_fits() -> None:
    line = training_line(1200, 20000, RECORD)
    assert line == (
        "1200/20000 loss 1.2346 domain_corpus 1.500 replay 1.100 lr 1.00e-05 "
        "grad 0.831 98.3k tok/s MFU 59.9% 61.2 GiB ETA 3h12m"
    )
    assert len(line) <= 120
    worst = {
        **RECORD,
        "loss": 11.8734,
        "loss/domain_corpus": 11.9,
        "grad_norm": 1234.5,
        "tokens_per_s": 9_876_543.0,
        "memory_gib": 139.9,
        "eta_s": 20 * 86400.0,
    }
    line = training_line(20000, 20000, worst)
    assert len(line) <= 120
    assert "domai~ 11.900" in line
    assert "replay 1.100" in line


def test_unknown_numbers_are_left_out_of_the_line() -> None:
    assert training_line(1, 2, {"loss": 2.0}) == "1/2 loss 2.0000"


def test_a_single_source_is_not_printed_twice() -> None:
    assert "web" not in training_line(1, 2, {"loss": 2.0, "loss/web": 2.0})


@pytest.mark.parametrize("num_sources", [2, 3, 5, 40])
def test_many_and_long_source_names_still_fit(num_sources: int) -> None:
    sources: dict[str, Value] = {f"loss/{i}_a_very_long_corpus_name_{i}": 1.0 for i in range(num_sources)}
    line = training_line(123_456, 200_000, {**RECORD, **sources})
    assert len(line) <= 120
    assert line.endswith("ETA 3h12m")


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["chat", "chats"], "chat 1.0000 chats 2.0000"),
        (
            ["customer_support_chat", "customer_support_chats"],
            "customer~rt_chat 1.0000 customer~t_chats 2.0000",
        ),
        (["customer_support_chat", "web"], "customer_suppor~ 1.0000 web 2.0000"),
        (["чат", "сет"], "???~1 1.0000 ???~2 2.0000"),
    ],
    ids=["short", "alike to their ends", "one that is long", "other letters"],
)
def test_names_that_are_cut_are_told_apart(names: list[str], shown: str) -> None:
    record: dict[str, Value] = {f"eval/{name}": 1.0 + index for index, name in enumerate(names)}
    assert evaluation_line(3, record) == f"step 3 held-out {shown}"


def test_evaluation_is_its_own_wrapped_line() -> None:
    record: dict[str, Value] = {f"eval/source_{i}": 1.0 + i for i in range(12)}
    lines = evaluation_line(100, record).split("\n")
    assert lines[0].startswith("step 100 held-out source_0 1.0000")
    assert len(lines) == 2
    assert all(len(line) <= 120 for line in lines)
    stream = io.StringIO()
    ConsoleSink(200, stream=stream).write(100, {**RECORD, "eval/web": 2.0})
    assert stream.getvalue().split("\n")[0] == "step 100 held-out web 2.0000"
    assert stream.getvalue().split("\n")[1].startswith("100/200 loss 1.2346")


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_INTERACTIVE"])
def test_logs_in_a_file_have_no_control_characters(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    stream = io.StringIO()
    sink = ConsoleSink(10, stream=stream)
    sink.write(1, {**RECORD, "loss/bad\x1b[31m\nname": 1.0, "eval/x\r": 1.0})
    sink.close("finished")
    assert stream.getvalue().count("\n") == 2
    assert re.fullmatch(r"[\x20-\x7e\n]+", stream.getvalue())


def test_a_terminal_gets_the_lines_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = _Terminal()
    sink = ConsoleSink(20, stream=stream)
    for step in (7, 8):
        sink.write(step, RECORD)
    sink.close("finished")
    assert "8/20 loss 1.2346" in stream.getvalue()
    assert "7/20" in stream.getvalue()
    assert "\x1b[" in stream.getvalue()


@pytest.mark.parametrize(("progress", "term"), [(False, "xterm"), (True, "dumb")])
def test_no_bar_when_it_is_off_or_the_terminal_is_dumb(
    progress: bool, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    stream = _Terminal()
    sink = ConsoleSink(20, progress=progress, stream=stream)
    sink.write(7, RECORD)
    sink.close("finished")
    assert stream.getvalue() == training_line(7, 20, RECORD) + "\n"


def test_the_divergence_stands_after_the_losses_and_fits() -> None:
    line = training_line(1200, 20000, {**RECORD, "kl_replay": 0.01234, "loss_total": 1.3})
    assert " 1.100 KL 0.0123 lr 1.00e-05 " in line and len(line) <= 120


def test_the_divergence_from_a_teacher_stands_behind_the_loss() -> None:
    record = {"loss": 1.25, "divergence": 0.51234, "cross_entropy": 2.5, "loss/chat": 2.5}
    assert training_line(1, 3, record) == "1/3 loss 1.2500 divergence 0.512 chat 2.500"


def test_the_parts_of_a_loss_of_preferences_stand_behind_it_and_fit() -> None:
    orpo = {"loss": 5.638, "pair_loss": 0.0676, "nll_chosen": 5.5704, "preference_accuracy": 0.625}
    orpo["reward_margin"] = 0.0123
    assert training_line(1, 3, orpo) == "1/3 loss 5.6380 pairs 0.0676 chosen 5.57 right 62% margin +0.012"
    dpo = {"loss": 0.6931, "pair_loss": 0.6931, "preference_accuracy": 0.5, "reward_margin": 0.0}
    assert training_line(1, 3, dpo) == "1/3 loss 0.6931 right 50% margin +0"
    assert training_line(1, 3, {"loss": 3.5, "answer_loss": 0.5, "loss/text": 3.0}) == (
        "1/3 loss 3.5000 answers 0.5 text 3.000"
    )
    line = training_line(1200, 20000, {**RECORD, **orpo})
    assert len(line) <= 120 and " loss 5.6380 pairs 0.0676 " in line


def test_an_evaluation_says_how_many_pairs_are_ranked_right() -> None:
    shares = {"eval_accuracy/pairs": 0.625, "eval_accuracy_low/pairs": 0.4, "eval_accuracy_high/pairs": 0.81}
    assert evaluation_line(3, {"eval/pairs": 5.637, **shares}) == (
        "step 3 held-out pairs 5.6370 pairs: 62% of pairs right (40 to 81%)"
    )


def test_sampled_answers_stand_behind_the_losses() -> None:
    record = {"loss": 1.25, "answer_tokens": 37.4, "answers_ended": 0.625}
    assert training_line(1, 3, record) == "1/3 loss 1.2500 answers 37 tok, 62% ended"


def test_the_loss_of_held_out_answers_and_the_point_of_reference_are_on_the_line() -> None:
    """In a run of KTO the line had the cross-entropy of desirable answers alone, which is not minimised."""
    found = {"eval/ours": 3.5, "eval_answer_loss/ours": 0.48711, "eval_answer_loss/theirs": 0.5}
    assert evaluation_line(3, {**found, "eval_reference_point": 0.12345}) == (
        "step 3 held-out ours 3.5000 ours: loss of answers 0.4871 theirs: loss of answers 0.5000 point of reference "
        "0.123"
    )
    assert "point" not in evaluation_line(3, {**found})
    assert training_line(1, 3, {"loss": 0.5, "reference_point": 0.1}) == "1/3 loss 0.5000 point 0.1"
