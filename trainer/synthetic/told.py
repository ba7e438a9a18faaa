"""What a data command says of the rows it made: counts, shares with intervals, and what was dropped, by cause. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trainer.config.many import many
from trainer.config.synthetic import SampleVerbConfig
from trainer.evaluate.wilson import wilson_interval
from trainer.synthetic.pass_rates import pass_rate
from trainer.synthetic.raft import BY_QUESTION, NOT_LOOKED_FOR

Note = Mapping[str, Any]


def share_said(num_right: int, num_all: int) -> str:
    """Return a share with its 95 % interval in words."""
    if not num_all:
        return "of none"
    low, high = wilson_interval(num_right, num_all)
    return f"{100 * num_right / num_all:.1f} % ({100 * low:.1f} to {100 * high:.1f}; {num_right:,} of {num_all:,})"


def dropped_lines(notes: Iterable[Note]) -> list[str]:
    """Return a line for each cause by which rows were dropped, the most frequent first."""
    counts = Counter(note["dropped"] for note in notes if note.get("dropped"))
    return [f"dropped: {many(count, 'row')} {cause}" for cause, count in counts.most_common()]


def summed(notes: Iterable[Note], key: str) -> Counter[str]:
    """Return the sum of the counts that notes have under a key."""
    total: Counter[str] = Counter()
    for note in notes:
        total.update(note.get(key) or {})
    return total


def raft_lines(notes: Sequence[Note]) -> list[str]:
    """Say what became of questions, where the oracle stands, and that every quotation was checked."""
    kept = [note for note in notes if not note.get("dropped")]
    places = [note["place"] for note in kept if note["place"] is not None]
    lines = [f"{len(kept):,} of {many(len(notes), 'question')} made into rows", *dropped_lines(notes)]
    lines.append(f"oracle among the documents: {share_said(len(places), len(kept))}")
    if places:
        sizes = [note["documents"] for note in kept if note["place"] is not None]
        relative = math.fsum((p + 0.5) / n for p, n in zip(places, sizes, strict=True)) / len(places)
        shown = ", ".join(f"{place + 1}: {count:,}" for place, count in sorted(Counter(places).items()))
        lines.append(f"its place, from the first: {shown} (mean {relative:.2f} of the way; 0.5 is even)")
    quoted = sum(note["quotations"] for note in kept)
    lines.append(f"{many(quoted, 'quotation')}, each found in its oracle word for word")
    for cause, count in summed(notes, "passed").most_common():
        lines.append(f"not taken as distractors: {count:,} {cause}")
    for key, what in (("by_question", BY_QUESTION), ("not_looked_for", NOT_LOOKED_FOR)):
        if count := sum(bool(note.get(key)) for note in kept):
            lines.append(f"{count:,} {what}")
    return lines


def answer_lines(notes: Sequence[Note], options: SampleVerbConfig, num_rows: int) -> list[str]:
    """Say how many answers passed, failed or were cut, and pass@1 and pass@k."""
    asked = [note for note in notes if "answers" in note]
    total = {key: sum(note[key] for note in asked) for key in ("answers", "known", "cut", "empty")}
    lines = [
        f"{many(num_rows, 'row')} of {many(len(notes), 'prompt')}, {many(total['answers'], 'answer')}",
        *dropped_lines(notes),
    ]
    if options.reward_model is None:
        counts = [(note["known"], note["passed"]) for note in asked]
        for k in sorted({1, options.num_answers}):
            rate = pass_rate(counts, k)
            left = sum(n < k for n, _ in counts)
            lines.append(str(rate) if rate else f"pass@{k}: no prompt has so many verdicts")
            if rate and left:
                lines.append(f"pass@{k} without {many(left, 'prompt')} that have fewer verdicts")
        failures = summed(notes, "failures")
        if failed := sum(failures.values()):
            lines.append(f"verifier failed on {many(failed, 'answer')}, which count neither way:")
            lines += [f"  {count:,} x it {why}" for why, count in failures.most_common(5)]
        lines += [f"answers with {what}: {count:,}" for what, count in summed(notes, "seen").most_common()]
    for key, what in (
        ("cut", "cut at synthetic.max_new_tokens, scored but never the one to learn"),
        ("empty", "empty"),
    ):
        if total[key]:
            lines.append(f"{many(total[key], 'answer')} {what}")
    return lines


def judge_lines(notes: Sequence[Note], first_is_better: bool) -> list[str]:
    """Say how often both orders agree, what the place alone is worth, and how often the judge agrees with people."""
    judged = [note for note in notes if "margin" in note]
    kept = [note for note in judged if not note.get("dropped")]
    lines = [f"{many(len(kept), 'pair')} of {many(len(notes), 'row')}", *dropped_lines(notes)]
    if not judged:
        return lines
    consistent = sum(note["consistent"] for note in judged)
    lines.append(f"position consistency: {share_said(consistent, len(judged))}")
    bias = math.fsum(note["place_odds"] for note in judged) / len(judged)
    mass = math.fsum(note["mass"] for note in judged) / len(judged)
    lines.append(
        f"log-odds of A for its place alone: {bias:+.3f} nats; of the answers themselves: "
        f"{math.fsum(abs(note['margin']) for note in judged) / len(judged):.3f}"
    )
    lines.append(f"the reply is one of the letters with probability {mass:.3g}")
    if first_is_better:
        right = sum(note["margin"] > 0 for note in kept)
        lines.append(f"agreement with people where both orders agree: {share_said(right, len(kept))}")
        of_all = sum(note["margin"] > 0 for note in judged)
        lines.append(f"agreement with people by the mean of both orders: {share_said(of_all, len(judged))}")
    return lines


def revised_lines(notes: Sequence[Note], num_rows: int) -> list[str]:
    """Say what became of answers: how many revisions are the answers, and how long they are."""
    lines = [f"{many(num_rows, 'row')} of {many(len(notes), 'answer')}", *dropped_lines(notes)]
    revised = [note for note in notes if "ratio" in note]
    if revised:
        same = sum(note["unchanged"] for note in revised)
        ratios = [note["ratio"] for note in revised]
        lines.append(f"revision unchanged: {share_said(same, len(revised))}")
        lines.append(
            f"characters of the revision by those of the answer: median {statistics.median(ratios):.2f}, from "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )
    return lines


def question_lines(notes: Sequence[Note], num_rows: int, num_chunks: int) -> list[str]:
    """Say what became of questions, and how many of them parts of documents answer."""
    asked = [note for note in notes if "yes" in note]
    kept = sum(not note["dropped"] for note in asked)
    lines = [
        f"{many(num_rows, 'row')} of {many(num_chunks, 'part')} of documents, {many(len(notes), 'question')} asked for",
        *dropped_lines(notes),
    ]
    lines.append(f"found answered by a second pass: {share_said(kept, len(asked))}")
    if kept > num_rows:
        lines.append(f"dropped: {many(kept - num_rows, 'row')} whose question is nearly one before")
    return lines
