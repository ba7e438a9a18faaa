"""The parts of the forgetting experiment that could be wrong without anything failing."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.house.tree import ROOT


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks" / "forgetting"), *sys.path])


def line(
    arm: str,
    learnt: float,
    drift: float,
    seed: int = 0,
    shift: str = "strong",
    rate: float = 1.0,
    **more: Any,
) -> dict[str, Any]:
    name = arm if rate == 1 else f"{arm}, {rate:g} x rate"
    changes = {"target": -learnt, "KL on chats": drift, "maths": 0.1, "medicine": 0.3, "texts": 9.0}
    own = {"shift": shift, "arm": name, "method": arm, "rate": rate, "seed": seed, "changes": changes}
    return own | {"points": []} | more


NONE = [line("none", 1.0, 0.2), line("none", 1.2, 0.4, rate=2.0), line("none", 0.8, 0.1, rate=0.5)]


def test_a_method_with_two_rates_is_compared_at_the_loss_asked_for() -> None:
    """At 0.99: of none, between 0.8 and 1, 0.1 + 0.95 x 0.1; of the method, between 0.9 and 1.1, 0.01 + 0.45 x 0.04."""
    from judge import equal_loss, points_of

    (row,) = equal_loss(points_of([*NONE, line("m", 0.9, 0.01), line("m", 1.1, 0.05, rate=2.0)]), 0.99)
    assert row["kept"][0] == pytest.approx(0.99)
    assert row["without"][0] == pytest.approx(0.195)
    assert row["drift"][0] == pytest.approx(0.028)
    assert row["gone"][0] == pytest.approx(1 - 0.028 / 0.195)
    assert row["gone"][1] is None and row["num_seeds"] == 1
    assert row["rise"][0] == pytest.approx(0.2), "what is replayed is no probe"


def test_a_method_with_one_rate_is_compared_where_it_is() -> None:
    from judge import equal_loss, points_of

    (row,) = equal_loss(points_of([*NONE, line("m", 0.9, 0.03)]), 0.99)
    assert row["kept"][0] == pytest.approx(0.9)
    assert row["without"][0] == pytest.approx(0.15)
    assert row["gone"][0] == pytest.approx(0.8)


def test_what_learns_less_or_more_than_none_at_any_rate_is_left_out_and_a_seed_of_it_counted() -> None:
    from judge import equal_loss, points_of

    assert equal_loss(points_of([*NONE, line("m", 0.7, 0.01)])) == []
    second = [line(one["method"], -one["changes"]["target"], 0.2, 1, rate=one["rate"]) for one in NONE]
    (row,) = equal_loss(points_of([*NONE, *second, line("m", 0.7, 0.01), line("m", 0.9, 0.1, 1)]))
    assert (row["num_seeds"], row["num_outside"]) == (1, 1)


def test_a_line_that_turns_back_is_taken_where_it_drifts_least() -> None:
    """Mixtures with the base may learn more than the tuned model itself: the order is alpha's."""
    from judge import Point, crossing

    line_ = [Point("s", "m", "m", 0, a, learnt, drift, 0.0) for a, learnt, drift in
             ((0.6, 0.9, 0.1), (0.8, 1.1, 0.2), (1.0, 1.0, 0.4))]  # fmt: skip
    assert crossing(line_, 1.05) == pytest.approx((0.175, 0.0))
    assert crossing(line_, 1.2) is None


def test_swept_points_are_arms_of_their_own_and_alpha_1_of_the_mean_is_the_mean() -> None:
    from judge import points_of

    changes = {"target": -0.9, "KL on chats": 0.05}
    sweeps = [{"sweep": sweep, "alpha": alpha, "changes": changes}
              for sweep in ("alpha", "mean of 3") for alpha in (0.5, 1.0)]  # fmt: skip
    found = points_of([line("none", 1.0, 0.2, points=sweeps)])
    assert [(p.method, p.name) for p in found] == [
        ("none", "none"),
        ("interpolated of none", "alpha 0.5 of none"),
        ("interpolated of none", "none"),
        ("mean of 3, interpolated of none", "mean of 3, alpha 0.5 of none"),
        ("mean of 3, interpolated of none", "mean of 3 of none"),
    ]


def test_the_interval_is_students_over_seeds() -> None:
    """1, 2, 3: deviation 1, times 4.303 over the root of 3."""
    from judge import interval

    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / math.sqrt(3))


def test_the_best_of_one_shift_is_judged_on_the_others_only() -> None:
    """good is best on strong and bad on weak; steady the other way round."""
    from judge import chosen_and_judged, points_of

    lines = []
    for shift, good, steady in (("strong", 0.01, 0.05), ("weak", 0.19, 0.1)):
        for seed in (0, 1):
            lines += [
                line(
                    one["method"],
                    -one["changes"]["target"],
                    one["changes"]["KL on chats"],
                    seed,
                    shift,
                    one["rate"],
                )
                for one in NONE
            ]
            lines += [line("good", 0.995, good, seed, shift), line("steady", 0.995, steady, seed, shift)]
            lines += [line("dear", 0.9, 0.001, seed, shift)]
    found = {(one["level"], one["chosen_on"]): one for one in chosen_and_judged(points_of(lines))}
    one = found[0.99, "strong"]
    assert one["method"] == "good", "dear keeps too little"
    assert [row["shift"] for row in one["judged"]] == ["weak"]
    assert one["judged"][0]["gone"][0] == pytest.approx(1 - 0.19 / 0.1975)
    assert found[0.99, "weak"]["method"] == "steady"


def test_nothing_is_best_where_nothing_keeps_as_much() -> None:
    from judge import chosen_and_judged, judged_table, points_of

    found = chosen_and_judged(points_of([*NONE, line("dear", 0.9, 0.001)]))
    assert [one["method"] for one in found] == [None, None]
    assert "none keeps so much" in judged_table(found)


def test_the_frontier_is_what_nothing_else_beats_in_both() -> None:
    from judge import arms, frontier, points_of

    rows = arms(points_of([*NONE, line("m", 0.9, 0.3), line("k", 1.0, 0.1)]))
    assert frontier(rows) == {
        ("strong", "none, 2 x rate"),
        ("strong", "k"),
        ("strong", "none, 0.5 x rate"),
    } - {
        ("strong", "none, 0.5 x rate")  # learns less than k and drifts as much
    }


def test_the_strength_of_a_decay_is_what_the_rates_of_a_run_add_up_to() -> None:
    """S / (steps x peak x mean): with it a way that nothing renews ends at exp(-S)."""
    from arms import filled
    from one_run import Settings

    settings = Settings("m", 64_000, 1_000, 100, 1e-3, 8, {}, {}, Path())
    assert settings.num_steps == 64
    (word,) = filled(("optim.base_decay={decay:1.0}",), settings.num_steps, 1e-3, settings.mean_factor)
    decay = float(word.removeprefix("optim.base_decay="))
    left = 1.0
    from trainer.config.optim import ScheduleConfig
    from trainer.optim.schedule import lr_factor

    for step in range(64):
        left *= 1 - 1e-3 * lr_factor(step, 64, ScheduleConfig(warmup_frac=0.03)) * decay
    assert left == pytest.approx(math.exp(-1), rel=0.02)


def test_arms_are_told_apart_by_name_and_by_folder_and_begin_with_what_all_is_compared_with() -> None:
    from arms import ARMS
    from one_run import Run

    assert len(ARMS) >= 20
    assert len({arm.name for arm in ARMS}) == len({Run("s", arm, 0).folder for arm in ARMS}) == len(ARMS)
    assert [arm.method for arm in ARMS[:3]] == ["none"] * 3
    asked = [(arm.words, arm.replay, arm.ratio, arm.rate) for arm in ARMS]
    assert len(set(asked)) == len(asked)


@pytest.mark.slow
def test_every_arm_is_a_configuration_that_can_be_trained(tmp_path: Path) -> None:
    """An arm that is refused would be found only after those before it were trained."""
    from arms import ARMS
    from one_run import SHIFTS, Run, Settings, words_of

    from trainer.config.check import find_problems
    from trainer.config.store import compose_config

    names = (*SHIFTS, "general", "texts", "chats", "maths")
    files = {name: tmp_path / f"{name}.jsonl" for name in names}
    for file in files.values():
        file.write_text("{}\n")
    settings = Settings("tiny", 64_000, 1_024, 128, 2e-4, 8, files, {"maths": files["maths"]}, tmp_path)
    for shift in SHIFTS:
        for arm in ARMS:
            config = compose_config(words_of(Run(shift, arm, 0), settings))
            problems = [one for one in find_problems(config) if one.key != "model.kind"]
            assert not problems, (shift, arm.name, problems)


def test_a_line_that_was_cut_off_and_runs_of_other_words_are_run_again(tmp_path: Path, capsys: Any) -> None:
    from ended_runs import EndedRuns

    path = tmp_path / "runs.jsonl"
    lines = EndedRuns(path)
    for arm, words in (("a", ["x=1"]), ("b", ["x=2"])):
        lines.add(line(arm, 1.0, 0.1, overrides=words))
    path.write_text(path.read_text() + '{"shift": "str')
    again = EndedRuns(path)
    assert "runs.jsonl:3 was cut off" in capsys.readouterr().out
    assert again.keys == {("strong", "a", 0), ("strong", "b", 0)}
    again.leave_others({"a": ["x=1"], "b": ["x=3"]})
    assert again.keys == {("strong", "a", 0)} and "b: its words were changed" in capsys.readouterr().out
    assert [json.loads(text)["arm"] for text in path.read_text().splitlines()] == ["a", "b"]


def test_mixtures_with_the_base_are_a_line_up_to_what_they_are_of_and_no_points() -> None:
    from judge import arms, points_of
    from pareto import _lines, figure

    sweeps = [
        {
            "sweep": sweep,
            "alpha": alpha,
            "changes": {"target": -alpha * more, "KL on chats": 0.2 * alpha**2 * more},
        }
        for sweep, more in (("alpha", 1.0), ("mean of 3", 0.9))
        for alpha in (0.6, 0.8, 1.0)
    ]
    rows = arms(points_of([line("none", 1.0, 0.2, points=sweeps), *NONE[1:]]))
    assert [[row["arm"] for row in found] for found, _ in _lines(rows)] == [
        ["none, 0.5 x rate", "none", "none, 2 x rate"],
        ["alpha 0.6 of none", "alpha 0.8 of none", "none"],
        ["mean of 3, alpha 0.6 of none", "mean of 3, alpha 0.8 of none", "mean of 3 of none"],
    ]
    svg = figure({"arms": rows})
    assert svg.count("<polyline") == 2 * 3
    assert "<title>mean of 3 of none</title>" in svg and "<title>alpha" not in svg


def test_the_figure_holds_every_arm_once_a_panel_and_rings_the_frontier() -> None:
    from judge import arms, points_of
    from pareto import figure

    second = [line("m", 0.9, 0.25, seed) for seed in (0, 1)] + [line("none", 1.0, 0.2, 1)]
    svg = figure({"arms": arms(points_of([*NONE, *second]))})
    assert svg.count("<title>m</title>") == 2 == svg.count("<title>none</title>")
    assert svg.count('stroke="#222222"') == 3, "none, at twice the rate and at half of it"


def write_corpora(folder: Path) -> dict[str, Path]:
    """Write documents of few words, other ones in each file."""
    rng = random.Random(0)
    found = {}
    for name, letters in (("strong", "aeinrst"), ("general", "bcdfg"), ("probe", "0123"), ("texts", "klmop")):
        words = ["".join(rng.choice(letters) for _ in range(4)) for _ in range(40)]
        texts = [" ".join(rng.choice(words) for _ in range(40)) for _ in range(60)]
        found[name] = folder / f"{name}.jsonl"
        found[name].write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    chats = [
        {"messages": [{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": f"say {i}"}]}
        for i in range(60)
    ]
    found["chats"] = folder / "chats.jsonl"
    found["chats"].write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return found


@pytest.mark.slow
def test_the_experiment_is_killed_and_started_again_and_does_what_is_missing(tmp_path: Path) -> None:
    """A run of before would have other seconds; a missing one would be counted; a third call would run something."""
    files = write_corpora(tmp_path)
    state, out = tmp_path / "state", tmp_path / "out.json"
    state.mkdir()
    for name in ("texts", "chats"):  # as if sampled before
        files[name].rename(state / f"{name}.jsonl")
    words = [sys.executable, str(ROOT / "benchmarks/forgetting/experiment.py"), "--model", "tiny"]
    words += ["--strong", str(files["strong"]), "--general", str(files["general"])]
    words += ["--probe", f"numbers={files['probe']}", "--tokens", "3072", "--batch-tokens", "512"]
    words += [
        "--seq-len",
        "128",
        "--lr",
        "3e-3",
        "--packs",
        "4",
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--most-arms",
        "3",
    ]
    words += ["--state", str(state), "--work", str(tmp_path / "work"), "--out", str(out), "--budget-s", "600"]
    words += ["--figure", str(tmp_path / "figure.svg"), "--set", "zero.dtype=fp32"]
    env = os.environ | {"PALIMPSEST_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    runs = state / "runs.jsonl"
    while first.poll() is None and not (runs.is_file() and runs.read_text().count("\n")):
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = runs.read_text()
    assert 1 <= before.count("\n") < 3
    said = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert f"{before.count(chr(10))} of 3 runs are there." in said and "3 of 3 runs are there after" in said
    assert runs.read_text().startswith(before) and runs.read_text().count("\n") == 3
    record = json.loads(out.read_text())
    assert record["num_runs"] == record["num_asked"] == 3 and not record["failures"]
    assert {row["arm"] for row in record["arms"]} >= {
        "none",
        "none, 0.5 x rate",
        "alpha 0.8 of none",
        "mean of 3 of none",
    }
    swept = next(row for row in record["runs"] if row["arm"] == "none")
    whole = next(p for p in swept["points"] if p["sweep"] == "alpha" and p["alpha"] == 1)
    assert whole["changes"] == pytest.approx(swept["changes"], rel=1e-3), "alpha 1 is the run itself"
    assert not list((tmp_path / "work").glob("strong-*/")), "checkpoints are removed"
    again = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout
    assert "3 of 3 runs are there." in again and "forked" not in again
    other = subprocess.run([*words, "--lr", "1e-3"], env=env, capture_output=True, text=True, check=False)
    assert other.returncode == 1 and "has another lr" in other.stderr
