"""Which failing sinks end a run and which do not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from trainer.metrics.console import ConsoleSink
from trainer.metrics.jsonl import JsonlSink, read
from trainer.metrics.sink import Sinks


def _closed_console(tmp_path: Path) -> ConsoleSink:
    """Stands for any sink that breaks in the middle of a run."""
    stream = (tmp_path / "stdout").open("w")
    sink = ConsoleSink(10, stream=stream)
    stream.close()
    return sink


def test_a_broken_optional_sink_is_reported_once_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("trainer"), "propagate", True)
        sinks = Sinks(required=[JsonlSink(path)], optional=[_closed_console(tmp_path)])
        for step in range(3):
            sinks.write(step, {"loss": 1.0})
        sinks.close("finished")
    assert [record["step"] for record in read(path)] == [0, 1, 2]
    assert len([entry for entry in caplog.records if "ConsoleSink failed" in entry.message]) == 1


def test_a_broken_required_sink_ends_the_run(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.close("finished")
    with pytest.raises(ValueError, match="closed file"):
        Sinks(required=[sink]).write(1, {"loss": 1.0})


def test_a_broken_sink_does_not_keep_the_others_open(tmp_path: Path) -> None:
    good = JsonlSink(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="closed file"):
        Sinks(required=[_closed_console(tmp_path), good]).close("failed")
    with pytest.raises(ValueError, match="closed file"):
        good.write(1, {"loss": 1.0})


def test_no_sinks_is_what_other_ranks_have() -> None:
    sinks = Sinks()
    sinks.write(1, {"loss": 1.0})
    sinks.close("finished")
