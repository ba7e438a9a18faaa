"""What a tracker is told: everything once and in order, whatever happens to it or to the process."""

from __future__ import annotations

import importlib.util
import json
import logging
import threading
from pathlib import Path

import pytest

from trainer.checkpoint.lineage import OF_TRACKERS, leave_behind
from trainer.config.fence import held
from trainer.config.log import LogConfig, TrackerKind
from trainer.errors import CheckpointError
from trainer.metrics.delivery import Delivery
from trainer.metrics.tracker import Bookmark, Conclusion, Numbers, RunCard, Told
from trainer.metrics.trackers import begin, run_card, tracker_problems

END = Conclusion(
    3, {"forgetting/old text": 0.25}, ("set", "change"), (("old|text", "+0.25"),), {"gate": "passed"}
)


class FileTracker:
    """A tracker that appends to a file, and breaks as it is told to."""

    takes_back = False

    def __init__(self, path: Path, fails: int = 0, hangs: threading.Event | None = None) -> None:
        self.path = path
        self.fails = fails
        self.hangs = hangs

    def write(self, step: int, numbers: Numbers) -> None:
        if self.hangs is not None:
            self.hangs.wait()
        if self.fails > 0:
            self.fails -= 1
            raise ConnectionError("https://user:a-password@host is gone")
        with self.path.open("a") as file:
            file.write(json.dumps([step, dict(numbers)]) + "\n")

    def conclude(self, found: Conclusion) -> None:
        self.write(found.step, found.numbers)

    def close(self, status: str | None) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(status) + "\n")


def told(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def begun(folder: Path, **how) -> Delivery:
    bookmark = Bookmark.read(folder, "file")
    bookmark.begin("run")
    return Delivery("file", FileTracker(folder / "told", **how), bookmark, close_s=30.0)


def test_a_resumed_run_tells_nothing_twice_and_what_was_lost_once(tmp_path):
    first = begun(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.write(3, {"eval/web": 3.5})
    first.close("preempted")
    # The last checkpoint is of step 1, and the tracker had lost what came after step 2.
    bookmark = Bookmark.read(tmp_path, "file")
    assert (bookmark.run_id, bookmark.mark) == ("run", Told(3, 2))
    bookmark.mark = Told(2, 1)
    bookmark.keep()
    second = begun(tmp_path)
    second.catch_up([{"step": 1, "time": 0.0, "loss": 1.0}])
    for step in (2, 3):
        second.write(step, {"loss": 10.0 * step})
    second.write(3, {"eval/web": 3.5})
    second.write(4, {"loss": 4.0, "why": "words stay here", "loss/große Texte": 4.5})
    second.conclude(END)
    second.close("finished")
    assert second.num_known == 2
    assert told(tmp_path / "told")[5:] == [
        [3, {"loss": 30.0}],
        [3, {"eval/web": 3.5}],
        [4, {"loss": 4.0, "loss/gro_e_Texte": 4.5}],
        [3, {"forgetting/old_text": 0.25}],
        "finished",
    ]


@pytest.mark.parametrize(("takes_back", "shown"), [(False, [1.0, 2.0, 3.0, 40.0]), (True, None)])
def test_a_step_that_comes_again_after_a_rewind_is_told_once(tmp_path, caplog, takes_back, shown):
    """wandb drops some of them and mixes others, mlflow and trackio keep both: neither is what one looks for."""
    delivery = begun(tmp_path)
    delivery._tracker.takes_back = takes_back
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr(logging.getLogger("trainer"), "propagate", True)
        for step in (1, 2, 3):
            delivery.write(step, {"loss": float(step)})
        for step in (2, 3, 4):
            delivery.write(step, {"loss": 10.0 * step})
        delivery.close("finished")
    found = [numbers["loss"] for _, numbers in told(tmp_path / "told")[:-1]]
    assert found == (shown or [1.0, 2.0, 3.0, 20.0, 30.0, 40.0])
    said = "file only adds: it keeps what it was told of steps 2 to 3"
    assert any(line.startswith(said) for line in caplog.messages) != takes_back
    assert Bookmark.read(tmp_path, "file").mark == Told(4, 1)


def test_a_tracker_is_told_nothing_more_by_who_has_lost_the_run(tmp_path, caplog):
    def lost() -> None:
        raise CheckpointError("`run_dir` must be held by the run that publishes in it.")

    delivery = begun(tmp_path)
    with held(tmp_path, lost), pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(logging.getLogger("trainer"), "propagate", True)
        delivery.write(1, {"loss": 1.0})
        delivery.conclude(END)
        delivery.close("failed")
        with pytest.raises(CheckpointError):
            Bookmark.read(tmp_path, "file").advance(Told(9, 1))
    assert not (tmp_path / "told").exists()
    assert caplog.messages[0].startswith("file is told nothing more. `run_dir` must be held")
    assert Bookmark.read(tmp_path, "file").mark == Told()


def test_a_tracker_that_fails_is_said_once_without_its_password_and_told_all_of_it_later(tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(logging.getLogger("trainer"), "propagate", True)
        delivery = begun(tmp_path, fails=1)
        for step in (1, 2, 3):
            delivery.write(step, {"loss": 1.0})
        delivery.close("finished")
    assert [line[0] for line in told(tmp_path / "told")[:-1]] == [1, 2, 3]
    (said,) = [entry.message for entry in caplog.records]
    assert said.startswith("file failed (ConnectionError") and "a-password" not in said


def test_what_a_tracker_never_took_is_counted_and_said(tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(logging.getLogger("trainer"), "propagate", True)
        delivery = begun(tmp_path, fails=10**6)
        for step in (1, 2, 3):
            delivery.write(step, {"loss": 1.0})
        delivery.close("failed")
    assert "file was not sent 3 records, after" in caplog.messages[-1]
    assert Bookmark.read(tmp_path, "file").mark == Told()


def test_a_tracker_that_hangs_is_left_alone(tmp_path, caplog):
    answer = threading.Event()
    bookmark = Bookmark(tmp_path / "trackers" / "file.json")
    delivery = Delivery("file", FileTracker(tmp_path / "told", hangs=answer), bookmark, close_s=0.2)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(logging.getLogger("trainer"), "propagate", True)
        delivery.write(1, {"loss": 1.0})
        delivery.close("finished")
    assert caplog.messages[-2].startswith("Waiting for file to take the last of ")
    assert "file does not answer and is left alone" in caplog.messages[-1]
    answer.set()


def test_a_bookmark_that_cannot_be_read_is_a_new_one(tmp_path):
    (tmp_path / "trackers").mkdir()
    for text in ("", "[]", '{"run_id": "a"}', '{"run_id": "a", "step": null, "record": 1}'):
        (tmp_path / "trackers" / "file.json").write_text(text)
        found = Bookmark.read(tmp_path, "file")
        assert (found.run_id, found.mark) == (None, Told())


def test_a_tracker_that_cannot_begin_is_left_out_and_the_others_go_on(tmp_path, caplog):
    log = LogConfig(trackers=[TrackerKind.tensorboard])
    (tmp_path / "tensorboard").write_text("a file where the folder would be")
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(logging.getLogger("trainer"), "propagate", True)
        assert begin(log, run_card(log, tmp_path, "run", {}), -1, []) == []
    assert "tensorboard could not begin" in caplog.messages[-1]


def test_a_run_that_is_given_up_leaves_its_trackers(tmp_path):
    begun(tmp_path).close("failed")
    leave_behind(tmp_path, OF_TRACKERS, tmp_path / "abandoned-1")
    assert Bookmark.read(tmp_path, "file").run_id is None
    assert Bookmark.read(tmp_path / "abandoned-1", "file").run_id == "run"


def test_the_conclusion_as_text_keeps_its_columns():
    assert END.markdown.splitlines() == [
        "gate: passed",
        "",
        "| set | change |",
        "| --- | --- |",
        "| old\\|text | +0.25 |",
    ]


def test_a_card_tells_no_secret(tmp_path):
    log = LogConfig(tags=["hf_" + "aB3" * 8], group="team")
    card = run_card(log, tmp_path, "run", {"api_key": "abc", "optim": {"lr": 1e-5}})
    assert card == RunCard(
        tmp_path, "run", "palimpsest", "team", ("<removed>",), {"api_key": "<removed>", "optim": {"lr": 1e-5}}
    )


def test_a_space_needs_a_login(tmp_path, monkeypatch):
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    log = LogConfig(trackers=[TrackerKind.trackio])
    log.trackio.space = "user/board"
    (found,) = tracker_problems(log, tmp_path, {})
    assert found.sentence.startswith("`log.trackio.space` must be null without a login")
    assert not [*tracker_problems(log, tmp_path, {"HF_TOKEN": "x"})]
