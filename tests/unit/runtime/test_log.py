"""What each rank shows and keeps."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.runtime.libraries import SHOW
from trainer.runtime.log import adopt_library_loggers, attempt_dir, setup_logging


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    names = ["DeepSpeed", "transformers", "datasets", "huggingface_hub", "peft", "accelerate"]
    loggers = [logging.getLogger(name) for name in ["trainer", *names]]
    before = [(log, list(log.handlers), log.level, log.propagate) for log in loggers]
    root = logging.getLogger()
    root_handlers, root_level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in root_handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(root_level)
    logging.captureWarnings(False)
    for log, handlers, level, propagate in before:
        log.handlers[:] = handlers
        log.setLevel(level)
        log.propagate = propagate


def _speak() -> None:
    logging.getLogger("trainer.run.loop").debug("our debug")
    logging.getLogger("trainer.run.loop").info("our info")
    logging.getLogger("DeepSpeed").info("library info")
    logging.getLogger("transformers.modeling").warning("library warning")


def test_rank_zero_shows_our_lines_and_errors_of_libraries(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(0, 8, tmp_path / "attempt-1")
    _speak()
    logging.getLogger("some_library.ops").error("library error")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" ", 1)[1] for line in err.splitlines()] == ["I our info", "E library error"]
    assert "library warning" in (tmp_path / "attempt-1" / "rank-0.log").read_text()


def test_other_ranks_show_our_warnings_behind_their_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(3, 8, tmp_path)
    _speak()
    logging.getLogger("trainer.run.loop").warning("our warning")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("W [rank 3] our warning")


def test_a_person_can_ask_for_all_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SHOW, "1")
    setup_logging(0, 1, tmp_path)
    _speak()
    assert "library warning" in capsys.readouterr().err


def test_the_file_of_a_rank_has_everything(tmp_path: Path) -> None:
    setup_logging(3, 8, tmp_path / "logs" / "attempt-1")
    _speak()
    text = (tmp_path / "logs" / "attempt-1" / "rank-3.log").read_text()
    for message in ("our debug", "our info", "library info", "library warning"):
        assert text.count(message) == 1


def test_no_log_dir_means_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    setup_logging(0, 1, None)
    _speak()
    assert list(tmp_path.iterdir()) == []


def test_a_second_setup_replaces_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(0, 2, tmp_path / "a")
    setup_logging(0, 2, tmp_path / "b")
    logging.getLogger("trainer").info("once")
    assert capsys.readouterr().err.count("once") == 1
    assert "once" not in (tmp_path / "a" / "rank-0.log").read_text()
    assert "once" in (tmp_path / "b" / "rank-0.log").read_text()


def test_a_library_imported_later_is_adopted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup_logging(0, 1, tmp_path)
    # What `import deepspeed` does.
    library = logging.getLogger("DeepSpeed")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    adopt_library_loggers()
    library.info("chatter")
    library.error("matters")
    assert "chatter" not in (err := capsys.readouterr().err)
    assert err.count("matters") == 1


def test_python_warnings_are_for_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(0, 2, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        message = "old thing"
        warnings.warn(message, UserWarning, stacklevel=1)
    assert "old thing" not in capsys.readouterr().err
    assert "old thing" in (tmp_path / "rank-0.log").read_text()


def test_every_attempt_gets_the_next_free_number(tmp_path: Path) -> None:
    assert attempt_dir(tmp_path) == tmp_path / "logs" / "attempt-1"
    (tmp_path / "logs" / "attempt-9").mkdir()
    (tmp_path / "logs" / "attempt-old").mkdir()
    assert attempt_dir(tmp_path) == tmp_path / "logs" / "attempt-10"
    assert attempt_dir(tmp_path).is_dir()
