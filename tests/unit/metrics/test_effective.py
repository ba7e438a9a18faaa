"""The share of a run's time that went into steps that stayed."""

import json

import pytest

from trainer.metrics.effective import effective


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_time_for_which_a_run_was_over_is_not_its_own(tmp_path):
    """A failure: ETTR 0 % of a finished run whose comparison was made anew a day later."""
    write(tmp_path / "metrics.jsonl", [{"step": 4, "time": 108.0, "step_time_s": 2.0}])
    first = [
        {"event": "started", "step": 0, "time": 100.0},
        {"event": "stopped", "step": 4, "time": 110.0, "reason": "finished"},
        {"event": "concluded", "step": 4, "time": 111.0},
    ]
    again = [
        {"event": "started", "step": 4, "time": 90000.0},
        {"event": "stopped", "step": 4, "time": 90004.0, "reason": "finished"},
        {"event": "concluded", "step": 4, "time": 90005.0},
    ]
    write(tmp_path / "ledger.jsonl", [*first, *again])
    assert effective(tmp_path).wall_s == 11 + 5
    write(tmp_path / "ledger.jsonl", [*first[:2], *again])
    assert effective(tmp_path).wall_s == 10 + 5, "killed between its end and its conclusion"


def test_steps_that_were_lost_and_the_time_between_starts_count_against_a_run(tmp_path):
    """Two starts. The first reached step 7 and had saved 4; the second goes to 10. Steps take 2 s, logged in pairs."""
    rows = [{"step": step, "time": 100.0 + 2 * step, "step_time_s": 2.0} for step in (2, 4)]
    rows += [{"step": step, "time": 200.0 + 2 * (step - 4), "step_time_s": 2.0} for step in (6, 8, 10)]
    rows.insert(0, {"step": 0, "time": 95.0, "eval_mean": 3.0})
    write(tmp_path / "metrics.jsonl", rows)
    write(tmp_path / "abandoned-1" / "metrics.jsonl", [{"step": 7, "time": 114.0, "step_time_s": 2.0}])
    events = [
        {"event": "started", "step": 0, "time": 90.0},
        {"event": "skipped", "step": 3, "time": 107.0},
        {"event": "saved", "step": 4, "time": 108.0},
        {"event": "started", "step": 4, "time": 190.0},
        {"event": "saved", "step": 10, "time": 214.0},
        {"event": "stopped", "step": 10, "time": 220.0},
    ]
    write(tmp_path / "ledger.jsonl", events)
    found = effective(tmp_path)
    assert (found.num_starts, found.lost_steps, found.skipped_steps) == (2, 3, 1)
    assert found.productive_s == 20.0 and found.wall_s == 130.0
    assert found.ratio == pytest.approx(20 / 130)


def test_steps_that_a_run_went_back_over_are_lost_too(tmp_path):
    events = [
        {"event": "started", "step": 0, "time": 1.0},
        {"event": "spike", "step": 9, "time": 10.0},
        {"event": "went_back", "step": 4, "time": 10.5},
        {"event": "stopped", "step": 12, "time": 20.0, "reason": "finished"},
    ]
    write(tmp_path / "ledger.jsonl", events)
    assert effective(tmp_path).num_starts == 1 and effective(tmp_path).lost_steps == 5


def test_steps_that_moved_nothing_are_counted_as_the_run_stands(tmp_path):
    """Refused as a spike, not finite, passed over before and after a resume; step 7 was skipped and taken again."""
    events = [
        ("started", 0, {}),
        ("spike", 2, {"is_refused": True}),
        ("skipped", 3, {}),
        ("skipped", 7, {}),
        ("spike", 9, {"is_refused": False}),
        ("went_back", 4, {}),
        ("passed_over", 8, {"batch": 8}),
        ("started", 6, {}),
        ("passed_over", 8, {"batch": 8}),
        ("stopped", 12, {}),
    ]
    rows = [{"event": event, "step": step, "time": 1.0, **more} for event, step, more in events]
    write(tmp_path / "ledger.jsonl", rows)
    assert effective(tmp_path).skipped_steps == len({2, 3, 9})


@pytest.mark.parametrize(
    ("saved", "reason", "is_trained", "lost", "productive_s"),
    [
        (None, None, False, 7, 0.0),
        (None, "failed", False, 7, 0.0),
        (5, None, False, 2, 10.0),
        (None, None, True, 0, 14.0),
        (None, "finished", False, 0, 14.0),
    ],
)
def test_of_a_run_that_died_only_what_was_saved_stayed(
    saved, reason, is_trained, lost, productive_s, tmp_path, monkeypatch
):
    """Seven steps of 2 s, the last logged in pairs. A failure: 99 % told of a run that was killed and saved nothing."""
    monkeypatch.setattr("trainer.metrics.effective.is_held", lambda run_dir: is_trained)
    rows = [{"step": step, "time": 100.0 + 2 * step, "step_time_s": 2.0} for step in (1, 3, 5, 7)]
    rows[2:3] = []  # 5 came in a line with 7
    write(tmp_path / "metrics.jsonl", rows)
    events = [{"event": "started", "step": 0, "time": 90.0}]
    events += [] if saved is None else [{"event": "saved", "step": saved, "time": 110.0}]
    events += [] if reason is None else [{"event": "stopped", "step": 7, "time": 114.0, "reason": reason}]
    write(tmp_path / "ledger.jsonl", events)
    found = effective(tmp_path)
    assert (found.lost_steps, found.productive_s) == (lost, productive_s)
    assert found.ratio == pytest.approx(productive_s / 24)


def test_a_run_that_has_not_begun_has_no_ratio(tmp_path):
    assert effective(tmp_path).ratio is None and effective(tmp_path).num_starts == 0
