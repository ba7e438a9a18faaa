"""The report of a run of preferences says what its loss is made of, how pairs are ranked, and the alarm."""

import json
from dataclasses import replace

import pytest
import yaml

from tests.unit.report.test_model_card import EXPORTED
from tests.unit.report.test_page import outline
from trainer.config.data import Format
from trainer.config.objective import ObjectiveKind
from trainer.config.preference import PreferenceLoss
from trainer.errors import TrainerError
from trainer.metrics.jsonl import JsonlSink, Ledger
from trainer.report.model_card import build_card
from trainer.report.number import percent
from trainer.report.page import build_page
from trainer.report.record import read_run

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


EDGES, COUNTS = [-1.0, -0.5, 0.0, 0.5, 1.0], [1, 0, 4, 2]
ACCURACY = {"": 0.8, "_low": 0.6, "_high": 0.9, "_longer": 0.25, "_shorter": 0.9}


def write_reward(folder, accuracy=ACCURACY, asks=0.0):
    """A run of a reward model that ranked held-out pairs before the first step and at step 6."""
    config = {"name": "scorer", "objective": {"kind": "reward", "reward": {"centre": 0.1}}}
    (folder / "config.yaml").write_text(
        yaml.safe_dump(config | {"data": {"sources": {"p": {"format": "preference"}}}})
    )
    sink = JsonlSink(folder / "metrics.jsonl")
    for step in range(1, STEPS + 1):
        sink.write(
            step, {"loss": 0.7, "preference_accuracy": 0.5, "reward_margin": 0.1 * step, "asked_margin": asks}
        )
    for step, share in ((0, 0.5), (STEPS, accuracy[""])):
        row = {f"eval_accuracy{key}/p": value for key, value in accuracy.items()}
        sink.write(step, row | {"eval_accuracy/p": share, "eval/p": 0.7 - 0.01 * step})
    sink.close("finished")
    margins = {"step": STEPS, "sources": {"p": {"edges": EDGES, "counts": COUNTS}}}
    (folder / "held_out_margins.json").write_text(json.dumps(margins))
    return folder


def test_the_page_of_a_reward_model_speaks_of_pairs_alone(tmp_path):
    """Nats, text or a base to compare with: it answers with no words."""
    text = " ".join(outline(write_reward(tmp_path)).text.split())
    assert "It got better at ranking held-out pairs of p." in text
    for said in ("Held-out pairs of p", "loss of a pair", "score"):
        assert said in text
    for absent in (
        *(
            "nobody measured",
            "forgetting.json",
            "nats per token",
            "Distance from the base",
            "`",
            "asked by rows",
        ),
        "chosen answers",
    ):
        assert absent not in text, absent
    (tmp_path / "asks").mkdir()
    assert "asked by rows" in outline(write_reward(tmp_path / "asks", asks=0.3)).text


def test_margins_are_bars_as_high_as_there_are_pairs_and_those_below_zero_are_of_another_colour(tmp_path):
    page = build_page(read_run(write_reward(tmp_path)))
    figure = page[page.index("Margins of held-out pairs of p, step 6") :].partition("</figure>")[0]
    assert "7 pairs; those left of 0 are ranked wrong." in figure
    # Four pairs reach the top, 170 high from 26 to 196; a range is (392 - 40) / 4 = 88 wide.
    bars = ['x="40.5" y="153.5" width="87" height="42.5"', 'x="128.5" y="196" width="87" height="0"']
    bars += ['x="216.5" y="26" width="87" height="170"', 'x="304.5" y="111" width="87" height="85"']
    places = [figure.index(bar) for bar in bars]
    assert places == sorted(places)
    colours = [figure[:place].rpartition('<g class="')[2][:2] for place in places]
    assert colours == ["s2", "s2", "s1", "s1"]
    assert "-0.5: 1; 0 to 0.5: 4; 0.5 to 1: 2" in figure.replace("\u2212", "-"), figure


@pytest.mark.parametrize(
    "changed",
    [{"counts": [1, 2]}, {"edges": [0.0, 0.0, 1.0, 2.0, 3.0]}, {"counts": [1, -1, 4, 2]}, {"counts": None}],
)
def test_margins_that_no_run_wrote_are_refused(tmp_path, changed):
    margins = {"step": 6, "sources": {"p": {"edges": EDGES, "counts": COUNTS} | changed}}
    (write_reward(tmp_path) / "held_out_margins.json").write_text(json.dumps(margins))
    with pytest.raises(TrainerError, match=r"held_out_margins.json of .* must hold edges and counts of p"):
        build_page(read_run(tmp_path))


def card_of(folder, checkpoint="step-00000006"):
    return build_card(read_run(folder), replace(EXPORTED, checkpoint=checkpoint, is_scorer=True))


def test_the_card_of_a_reward_model_says_how_it_ranks_and_whether_it_goes_by_length(tmp_path):
    card = card_of(write_reward(tmp_path))
    assert "pipeline_tag: text-classification" in card and "A reward model, tuned from Qwen/Qwen3-8B" in card
    shares = [percent(share) for share in (0.8, 0.6, 0.9, 0.25)]
    row = f"| p | {shares[0]} | {shares[1]} to {shares[2]} | {shares[3]} | {shares[2]} |"
    assert "## How it ranks pairs\n\nHalf right is chance" in card and row in card
    assert f"It favours shorter answers: of p it ranks {shares[3]} right where" in card
    assert "compared with its base" not in card and "forgetting.json" not in card
    assert "those of different prompts have no common scale" in card


def test_the_card_of_a_reward_model_says_that_it_is_near_chance_or_was_not_measured(tmp_path):
    card = card_of(write_reward(tmp_path, ACCURACY | {"": 0.55, "_low": 0.45, "_high": 0.65}))
    assert f"{percent(0.45)} to {percent(0.65)}: that is no better than chance." in card
    assert "no held-out pair was ranked at this checkpoint" in card_of(tmp_path, "step-00000004")
