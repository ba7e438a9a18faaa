"""What trackers are told at the end, from the files of a run."""

from __future__ import annotations

import json

import pytest

from tests.helpers.run_files import forgetting
from trainer.config.gate import GateConfig, GateRule
from trainer.run.conclusion import conclusion


def test_a_run_that_was_not_compared_with_its_base_has_no_conclusion(tmp_path):
    assert conclusion(tmp_path, GateConfig()) is None


def test_figures_are_named_as_in_metrics_jsonl_and_the_words_say_verdict_gate_and_report(tmp_path):
    plain = forgetting()
    (tmp_path / "forgetting.json").write_text(json.dumps(plain))
    (tmp_path / "report.html").write_text("")
    rises = {one["name"]: one["change_nats"] for one in plain["sets"]}
    found = conclusion(
        tmp_path, GateConfig(sets={"wikitext": GateRule(max_rise_nats=rises["wikitext"] - 0.01)})
    )
    assert found is not None and found.step == plain["run"]["steps"]
    for name, rise in rises.items():
        assert found.numbers[f"forgetting/{name}"] == pytest.approx(rise)
    for one in plain["kl"]:
        assert found.numbers[f"kl/{one['prompts']}"] == one["nats"]
    assert found.numbers["replay_share"] == plain["replay"]["ratio_reached"]
    assert found.words["gate"] == "1 of 1 rules broken" and found.words["verdict"].endswith(".")
    assert found.words["report"] == str(tmp_path / "report.html")
    assert [row[0] for row in found.rows] == list(rises)


def test_a_gate_about_what_was_not_measured_is_said_and_ends_nothing(tmp_path):
    (tmp_path / "forgetting.json").write_text(json.dumps(forgetting()))
    found = conclusion(tmp_path, GateConfig(sets={"nothing": GateRule(max_rise_nats=0.1)}))
    assert found is not None and found.words["gate"].startswith("not decided: `gate.sets.nothing`")
    assert "report" not in found.words
