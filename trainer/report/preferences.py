"""What was learnt of preferences: how pairs are ranked, rewards and likelihoods over steps, and the alarm."""

from __future__ import annotations

from trainer.config.metric import ACCURACY, PAIR_LOSS
from trainer.config.preference import OF_MEANS, NllMean, PreferenceConfig, PreferenceLoss
from trainer.config.reward import RewardConfig
from trainer.metrics.tracker import by_source
from trainer.report.element import Child, Html, element, table
from trainer.report.figure import line_chart
from trainer.report.margins import margin_charts
from trainer.report.number import fixed, percent, signed
from trainer.report.record import RunRecord
from trainer.report.section import figures, paragraph, section
from trainer.report.series import Series

STEP = "optimizer step"
PARTS = {
    "pair_loss": "pairs",
    "answer_loss": "answers",
    "nll_chosen": "chosen answers",
}
"""Parts of the loss beside those of sources, and how they are labelled."""
UNIT = "loss (of which parts: see Preferences)"
RIGHT = "Training pairs ranked right"
TIES = "Against a reference all pairs tie before the first step, and none is right."
ASKED = "asked by rows"
SCORED = [
    (RIGHT, "%", {"preference_accuracy": "right"}, 100.0),
    ("Margin", "score", {"reward_margin": "chosen - rejected", "asked_margin": ASKED}, 1.0),
    ("Scores", "score", {"reward_chosen": "chosen", "reward_rejected": "rejected"}, 1.0),
    ("Squared sum of a pair's scores", "score squared", {"off_centre": "off centre"}, 1.0),
]
"""Figures of a reward model: title, unit, lines by key, and factor."""
LOW, HIGH = "95 %, low", "95 %, high"


def loss_of(record: RunRecord) -> PreferenceConfig | None:
    """Return the loss of preferences that a run has; None where it has another."""
    if record.setting("objective.kind") != "preference":
        return None
    given = record.setting("objective.preference")
    kept = {name: value for name, value in given.items() if name in PreferenceConfig.__dataclass_fields__}
    return PreferenceConfig(
        **{
            **kept,
            "loss": PreferenceLoss(given["loss"]),
            "nll_mean": NllMean(given.get("nll_mean", NllMean.tokens.value)),
        }
    )


def preferences(record: RunRecord) -> Html | None:
    """Return how a run of preferences went; None of any other run."""
    options = loss_of(record)
    if record.is_reward:
        return _rewards(record)
    if options is None:
        return None
    has_text = bool(record.metrics.names("loss/"))
    drawn = [_chart(*one, record) for one in _charts(options)]
    return section(
        "preferences",
        "Preferences",
        paragraph(
            f"Loss: {options.loss.value}, beta {options.chosen_beta:g}. {_plain(options.told_loss(has_text))}"
        ),
        _alarm(record, options),
        *_ranked(record),
        figures(*drawn, *_of_held_out(record)),
    )


def _rewards(record: RunRecord) -> Html:
    """Return how a run of a reward model went."""
    centre = record.setting("objective.reward.centre") or 0.0
    drawn = [_chart(*one, record) for one in SCORED]
    return section(
        "preferences",
        "Preferences",
        paragraph(_plain(RewardConfig(centre=centre).described)),
        *_ranked(record),
        figures(*drawn, *_of_held_out(record)),
    )


def _plain(text: str) -> str:
    """Return text of the console without its marks around names."""
    return text.replace("`", "")


def _of_held_out(record: RunRecord) -> list[Html | None]:
    ranked = [_held_out(record, name) for name in record.metrics.names(f"{ACCURACY}/")]
    return [*ranked, *margin_charts(record)]


def _charts(options: PreferenceConfig) -> list[tuple[str, str, dict[str, str], float]]:
    """Return title, unit, lines by key, and factor of the figures of training."""
    sides = ("chosen", "rejected") if options.is_paired else ("desirable", "undesirable")
    compared = "log-ratio" if options.needs_reference else "log-probability"
    of = f"beta times the {compared} of {'a token' if options.loss in OF_MEANS else 'an answer'}"
    found = [
        ("Rewards", of, {f"reward_{side}": side for side in sides}, 1.0),
        (
            "Log-probability of an answer's token",
            "nats per token",
            {f"log_prob_{side}_token": side for side in sides},
            1.0,
        ),
    ]
    if not options.is_paired:
        return [*found, ("Point of reference", "nats an answer", {"reference_point": "point"}, 1.0)]
    return [
        (RIGHT, "%", {"preference_accuracy": "right"}, 100.0),
        ("Reward margin", of, {"reward_margin": "chosen - rejected"}, 1.0),
        *found,
        ("Cross-entropy of chosen answers", "nats per token", {"nll_chosen": "chosen"}, 1.0),
    ]


def _chart(title: str, unit: str, keys: dict[str, str], factor: float, record: RunRecord) -> Html | None:
    lines = [record.metrics.series(key, label).scaled(factor) for key, label in keys.items()]
    # Rows without a margin ask for 0, which is no line of its own.
    lines = [line for line in lines if line.label != ASKED or any(value for _, value in line.points)]
    if not any(line.points for line in lines):
        return None
    is_tied = title == RIGHT and loss_of(record) is not None
    return line_chart(title, STEP, unit, lines, from_zero=title == RIGHT, note=TIES if is_tied else "")


def _held_out(record: RunRecord, name: str) -> Html | None:
    keys = {ACCURACY: "right", f"{ACCURACY}_low": LOW, f"{ACCURACY}_high": HIGH}
    lines: list[Series] = [
        record.metrics.series(by_source(key, name), label).scaled(100.0) for key, label in keys.items()
    ]
    return line_chart(
        f"Held-out pairs of {name} ranked right", STEP, "%", lines, ("chance", 50.0), from_zero=True
    )


def _alarm(record: RunRecord, options: PreferenceConfig) -> Html:
    """Say what the run warned of."""
    warned = [event for event in record.events if event.get("event") == "warned"]
    if warned:
        said = " ".join(f"Step {event.get('step')}: {event.get('why')}" for event in warned)
        return paragraph(element("b", "Alarm. "), said)
    if not options.is_paired:
        return paragraph("Labelled answers have no alarm: see the rewards and log-probabilities below.")
    return paragraph(
        "No alarm: there were no three log lines in a row in which both answers became less likely."
    )


def _ranked(record: RunRecord) -> list[Html]:
    """Return the table of held-out pairs as the last evaluation ranked them."""
    names = record.metrics.names(f"{ACCURACY}/")
    if not names:
        return []
    header = ["Held-out pairs", "Ranked right", "95 % interval", "Margin", "Loss of a pair"]
    header += ["Right where chosen is longer", "Right where chosen is shorter"]
    note = "The interval is Wilson's and takes pairs for independent. Half right is chance."
    return [paragraph(note), table(header, [_row(record, name) for name in names], "Held-out pairs, ranked")]


def _row(record: RunRecord, name: str) -> list[Child]:
    def last(key: str) -> float | None:
        return record.metrics.last(by_source(key, name))

    def share(key: str) -> str:
        value = last(key)
        return "none" if value is None else percent(value)

    margin, loss = last("eval_margin"), last(PAIR_LOSS)
    return [
        name,
        share(ACCURACY),
        f"{share(f'{ACCURACY}_low')} to {share(f'{ACCURACY}_high')}",
        "unknown" if margin is None else signed(margin, 4),
        "unknown" if loss is None else fixed(loss, 4),
        share(f"{ACCURACY}_longer"),
        share(f"{ACCURACY}_shorter"),
    ]
