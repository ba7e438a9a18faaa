"""What a run kept, lost and gained, and what nobody can tell, in plain words: the first thing on the page.

By its 95 % interval: lost or gained is what leaves out 0 and is not all within SAME_NATS; kept is what leaves out a
loss above MARGIN_NATS (a non-inferiority margin); of what does neither, or has no interval, it is not known. What could
not be measured is said with what to do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.config.many import many
from trainer.config.metric import ACCURACY, CHAT_PROMPTS
from trainer.evaluate.compare import MIN_DOCUMENTS, SAME_NATS, SetComparison
from trainer.evaluate.tasks.score import TaskComparison
from trainer.metrics.tracker import by_source
from trainer.report.number import decimals_for, fixed, percent
from trainer.report.record import RunRecord
from trainer.report.verdict import listed

MARGIN_NATS = 0.05
"""A larger loss must be ruled out where something is called kept: what `gate=default` refuses."""
MARGIN_POINTS = 0.02
"""The same of shares of right answers and rankings, which are in [0, 1]; of other scores the share of the base's."""
_ROLES = {"target": " (what it was taught)", "replay": " (older text that it was reminded of)", "probe": ""}
_ANSWERS = {"preference": "chosen answers of ", "unpaired": "desirable answers of "}
CHANCE = 0.5
STANDARD_ERRORS = 1.96
MOST_NAMED = 3


@dataclass(frozen=True, slots=True)
class OutcomeItem:
    """One thing that was measured."""

    name: str
    words: str
    lost: float
    """In its own unit, by which findings of a list are ordered; negative where it was gained."""
    is_taught: bool = False
    is_rest: bool = True
    """It is about something else than what it was trained on."""


@dataclass(slots=True)
class RunOutcome:
    """The lists of the first screen."""

    has_words: bool = True
    """A reward model has none, and nothing of them to keep."""
    kept: list[OutcomeItem] = field(default_factory=list)
    lost: list[OutcomeItem] = field(default_factory=list)
    gained: list[OutcomeItem] = field(default_factory=list)
    unknown: list[OutcomeItem] = field(default_factory=list)
    """Measured, but a loss that matters and none at all are both within chance."""
    unmeasured: list[str] = field(default_factory=list)
    """What was not measured, and why, in sentences."""
    moved: list[str] = field(default_factory=list)
    """How far answers are from the base's, in sentences."""

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing at all was measured."""
        return not self._all

    @property
    def knows_rest(self) -> bool:
        """Tell whether anything but what was taught was measured."""
        return any(one.is_rest for one in self._all)

    @property
    def _all(self) -> list[OutcomeItem]:
        return [*self.kept, *self.lost, *self.gained, *self.unknown]

    @property
    def verdict(self) -> str:
        """Return the whole in a sentence."""
        if self.is_empty:
            return "What this run kept, lost and gained was not measured."
        others = [one.name for one in self.lost if not one.is_taught]
        taught, rest = self._taught(), self._lost(others) if others else self._kept()
        joint = "" if not taught or not rest else ", but " if others else ", and "
        sentence = f"{taught}{joint}{rest}."
        return sentence[0].upper() + sentence[1:]

    def _lost(self, others: Sequence[str]) -> str:
        unclear = [one.name for one in self.unknown if not one.is_taught]
        return f"it lost on {_named(others)}" + (f"; of {_named(unclear)} it is not known" if unclear else "")

    def _kept(self) -> str:
        if not self.has_words:
            return ""
        if not self.knows_rest:
            return "nobody measured what else it knew"
        kept = sum(one.is_rest for one in (*self.kept, *self.gained))
        unclear = sum(one.is_rest for one in self.unknown)
        if not unclear:
            return "it kept all else that was measured"
        if not kept:
            return "whether it kept anything else is not known: too little text was measured to tell"
        return (
            f"it kept {kept} of {kept + unclear} other things that were measured; of the rest it is not known"
        )

    def _taught(self) -> str:
        by_list = [
            [one.name for one in found if one.is_taught]
            for found in (self.gained, self.lost, self.kept, self.unknown)
        ]
        said = (
            "It got better at {}",
            "it got worse at {}",
            "no change was seen in {}",
            "whether it got better at {} is not known",
        )
        parts = [text.format(listed(names)) for text, names in zip(said, by_list, strict=True) if names]
        return ", ".join(parts)


def _named(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return listed([*names[:MOST_NAMED], *([f"{more} more"] if more > 0 else [])])


def outcome(record: RunRecord) -> RunOutcome:
    """Sort what the files of a run say into kept, lost, gained and not known."""
    found = RunOutcome(has_words=not record.is_reward)
    _take_pairs(found, record)
    forgetting = record.forgetting
    if forgetting is None:
        found.unmeasured.append(_why_nothing(record.is_reward))
        return found
    is_of_pairs = bool(record.metrics.names(f"{ACCURACY}/"))
    for one in (*forgetting.sets, *forgetting.probes):
        _take_set(found, record, one, is_of_pairs)
    for task in forgetting.tasks:
        _take_task(found, task)
    for row in forgetting.kl:
        if row.prompts == CHAT_PROMPTS:
            found.moved.append(
                f"On everyday conversations its next words are {fixed(row.nats, 3)} nats away from the base's "
                f"({_range(row.low, row.high)}): 0 would be the same model."
            )
    found.unmeasured += [f"{one.name}: {one.why}" for one in forgetting.left_out]
    if not found.is_empty and not found.knows_rest:
        found.unmeasured.append(
            "What it knew beside what it was taught: nothing of it was measured. evaluate.probes=all measures kinds of "
            "text that need no files; replay=general holds out some of what is replayed."
        )
    for group in (found.kept, found.lost, found.unknown):
        group.sort(key=lambda one: (not one.is_taught, -one.lost))
    found.gained.sort(key=lambda one: (not one.is_taught, one.lost))
    return found


def _why_nothing(is_reward: bool) -> str:
    if is_reward:
        return (
            "What it still knows of text: a reward model answers with a score and no words, so there is no text of "
            "which it could have become less likely. Pairs it had not seen are what can be measured."
        )
    return (
        "What it knew before: this run was not compared with its base (no forgetting.json). Train with "
        "evaluate.forgetting=true and data.validation_frac above 0."
    )


def _take_set(found: RunOutcome, record: RunRecord, one: SetComparison, is_of_pairs: bool) -> None:
    kind = record.setting(f"data.sources.{one.name}.format")
    name = _ANSWERS.get(str(kind), "") + one.name
    is_rest = one.role != "target"
    is_taught = not is_rest and not is_of_pairs
    role = _ROLES[one.role]
    low, high, change = one.change_low, one.change_high, one.change_nats
    if low is None or high is None:
        way, size = "rose" if change > 0 else "fell", fixed(abs(change), 3)
        words = (
            f"its loss {way} by {size} nats, but {many(one.num_documents, 'document')} cannot tell a change from "
            f"chance: it takes {MIN_DOCUMENTS}"
        )
        found.unknown.append(OutcomeItem(name, words, math.inf, is_taught, is_rest))
        return
    decimals = decimals_for(low, high)
    between = f"somewhere between {_end(low, decimals)} and {_end(high, decimals)}"
    if low > 0 and high > SAME_NATS:
        words = f"lost {fixed(change, decimals)} nats, {fixed(low, decimals)} to {fixed(high, decimals)}"
        found.lost.append(
            OutcomeItem(name, f"{words}: {_likelier(change)}{role}", change, is_taught, is_rest)
        )
    elif high < 0 and low < -SAME_NATS:
        words = f"gained {fixed(-change, decimals)} nats, {fixed(-high, decimals)} to {fixed(-low, decimals)}"
        found.gained.append(
            OutcomeItem(name, f"{words}: {_likelier(change)}{role}", change, is_taught, is_rest)
        )
    elif high <= MARGIN_NATS:
        found.kept.append(OutcomeItem(name, f"{between}{role}", change, is_taught, is_rest))
    else:
        words = f"{between}; {_documents_to_tell(one, low, high)}{role}"
        found.unknown.append(OutcomeItem(name, words, high, is_taught, is_rest))


def _documents_to_tell(one: SetComparison, low: float, high: float) -> str:
    """Return how many documents like these would tell, were the change as it was measured.

    An interval is as much narrower as the root of their number is larger.
    """
    change = one.change_nats
    ways = [(high - change) / (MARGIN_NATS - change)] if change < MARGIN_NATS else []
    ways += [(change - low) / change] if change > 0 else []
    number = math.ceil(one.num_documents * min(ways) ** 2)
    size = 10 ** max(len(str(number)) - 2, 0)
    return f"about {math.ceil(number / size) * size} documents would tell, and it had {one.num_documents}"


def _end(nats: float, decimals: int) -> str:
    return f"{fixed(abs(nats), decimals)} {'lost' if nats > 0 else 'gained'}"


def _likelier(change: float) -> str:
    """Return what a change of loss does to the probability of the right next word."""
    if change < -math.log(2):
        return f"the right next word is {math.exp(-change):.1f} times as likely"
    share = math.exp(-change) - 1
    size = f"{100 * abs(share):.0f}" if abs(share) >= 0.01 else f"{100 * abs(share):.1f}"
    return f"the right next word is {size} % {'more' if share > 0 else 'less'} likely"


def _take_pairs(found: RunOutcome, record: RunRecord) -> None:
    """Take how held-out pairs are ranked, against the first evaluation or, where that ranks nothing, chance."""
    for name in record.metrics.names(f"{ACCURACY}/"):
        points = record.metrics.series(by_source(ACCURACY, name)).points
        low, high = (record.metrics.last(by_source(f"{ACCURACY}_{end}", name)) for end in ("low", "high"))
        if not points or low is None or high is None:
            continue
        is_known = points[0][0] == 0 and len(points) > 1
        before = points[0][1] if is_known else CHANCE
        now = points[-1][1]
        words = (
            f"{percent(now)} ranked right, {percent(low)} to {percent(high)}, against "
            f"{percent(before)} {'before' if is_known else 'by chance'} (what it was taught)"
        )
        one = OutcomeItem(f"ranking held-out pairs of {name}", words, before - now, True, False)
        # Against chance there is nothing that could have been kept.
        _list_for(found, low - before, high - before, MARGIN_POINTS if is_known else 0.0).append(one)


def _take_task(found: RunOutcome, task: TaskComparison) -> None:
    """Take a benchmark, whose scores are taken as independent: its interval is rather too wide."""
    base, tuned = task.base, task.tuned
    if base is None or tuned is None or task.base_stderr is None or task.tuned_stderr is None:
        found.unmeasured.append(
            f"Benchmark {task.task} ({task.metric}): it has no score, or no standard error."
        )
        return
    half, change = STANDARD_ERRORS * math.hypot(task.base_stderr, task.tuned_stderr), tuned - base
    better = change if task.higher_is_better is not False else -change
    is_share = min(base, tuned) >= 0 and max(base, tuned) <= 1
    words = (
        f"{task.metric} {fixed(base, 3)} before, {fixed(tuned, 3)} now; a change of "
        f"{_range(change - half, change + half)}"
    )
    one = OutcomeItem(f"Benchmark {task.task}", words, -better)
    margin = MARGIN_POINTS * (1 if is_share else abs(base))
    _list_for(found, better - half, better + half, margin).append(one)


def _list_for(found: RunOutcome, low: float, high: float, margin: float) -> list[OutcomeItem]:
    """Return the list of a gain that lies between two numbers; kept where a loss above the margin is ruled out."""
    if low > 0:
        return found.gained
    if high < 0:
        return found.lost
    return found.kept if low >= -margin and margin else found.unknown


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"fewer than {MIN_DOCUMENTS} documents, so no interval"
    decimals = decimals_for(low, high)
    return f"{fixed(low, decimals)} to {fixed(high, decimals)}"
