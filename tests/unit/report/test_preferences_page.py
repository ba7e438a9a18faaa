"""The report of a run of preferences says what its loss is made of, how pairs are ranked, and the alarm."""

import yaml

from tests.unit.report.test_page import outline
from trainer.config.data import Format
from trainer.config.objective import ObjectiveKind
from trainer.config.preference import PreferenceLoss
from trainer.metrics.jsonl import JsonlSink, Ledger
from trainer.report.number import percent

STEPS = 6


def write_run(folder, loss=PreferenceLoss.orpo, format_=Format.preference, warned=""):
    config = {
        "name": "pairs",
        "data": {"sources": {"pairs": {"format": format_.value}}},
        "objective": {
            "kind": ObjectiveKind.preference.value,
            "preference": {"loss": loss.value, "beta": None, "nll_weight": None, "nll_mean": "tokens"},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    sink = JsonlSink(folder / "metrics.jsonl")
    for step in range(STEPS + 1):
        row = {"loss": 5.6 - 0.1 * step}
        if format_ is Format.preference:
            row |= {"pair_loss": 0.07, "nll_chosen": 5.5 - 0.1 * step, "preference_accuracy": step / STEPS}
            row |= {"reward_margin": 0.1 * step, "reward_chosen": 0.2 * step, "reward_rejected": 0.1 * step}
        else:
            row |= {"answer_loss": 0.5, "reference_point": 0.1 * step, "loss/text": 3.0}
            row |= {"reward_desirable": 0.1 * step, "reward_undesirable": -0.1 * step}
        sink.write(step, row)
        if format_ is Format.preference and step % 2:
            held = {"accuracy": 0.75, "accuracy_low": 0.61, "accuracy_high": 0.86, "margin": 0.25}
            held |= {"pair_loss": 0.0654, "accuracy_longer": 0.5}
            row = {f"eval_{key}/pairs": value for key, value in held.items()}
            sink.write(step, {**row, "eval/pairs": 5.0})
    sink.close("finished")
    ledger = Ledger(folder / "ledger.jsonl")
    if warned:
        ledger.write("warned", 4, why=warned)
    ledger.write("stopped", STEPS, reason="finished")
    ledger.close()
    return folder


def test_a_run_of_pairs_shows_its_loss_in_parts_how_pairs_are_ranked_and_the_alarm(tmp_path):
    text = outline(write_run(tmp_path, warned="Both answers become less likely.")).text
    assert "plus 1 x nll_chosen (cross-entropy of chosen answers, nats a token)" in text
    for title in (
        *("Training pairs ranked right", "Reward margin", "Rewards", "Cross-entropy of chosen answers"),
        *("Held-out pairs of pairs ranked right", "pairs, chosen answers", "what is minimised"),
    ):
        assert title in text, title
    assert "Alarm. Step 4: Both answers become less likely." in " ".join(text.split())
    assert f"{percent(0.61)} to {percent(0.86)}" in text and "0.0654" in text and "+0.2500" in text


def test_answers_with_labels_show_rewards_by_label_and_the_point(tmp_path):
    text = outline(write_run(tmp_path, PreferenceLoss.kto, Format.unpaired)).text
    assert "Point of reference" in text and "undesirable" in text and "answer_loss (mean of kto" in text
    assert "Alarm." not in text and "ranked right" not in text


def test_a_quiet_run_of_pairs_says_that_there_was_no_alarm(tmp_path):
    assert "No alarm:" in outline(write_run(tmp_path)).text
