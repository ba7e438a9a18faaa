"""What the runs of the forgetting experiment say: drift where methods have learnt the same.

Drift is KL(base || tuned) on fixed conversations; learnt is the fall of held-out loss on the new text. Both of a run.
A method's runs at several rates, or a run's mixtures with its base, are a line of drift over learnt for each seed,
and all is compared on such lines, seed by seed, before means are taken. Intervals are of 95 % by Student's t over
seeds.

What is best on one shift is judged on the others: choosing the largest of many numbers and reporting it would be luck.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

KL_NAME = "KL on chats"
REFERENCE = "none"
INTERPOLATED = "interpolated"
LEVELS = (0.99, 0.95)
"""Shares of what is learnt without anything done about drift, at its rate, that must be kept."""
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t for so many seeds."""


@dataclass(frozen=True)
class Point:
    """One model: trained so, on a shift, with a seed."""

    shift: str
    method: str
    name: str
    seed: int
    order: float
    """Along its method's line: the rate, or alpha."""
    learnt: float
    drift: float
    rise: float
    """Mean change of the probes' losses."""


def points_of(lines: Iterable[dict[str, Any]]) -> list[Point]:
    """Return all models of the lines of runs: what was trained, and what was made of its checkpoints."""
    found = []
    for line in lines:
        shift, seed, rate = line["shift"], line["seed"], line["rate"]
        found.append(_point(shift, line["method"], line["arm"], seed, rate, line["changes"]))
        for swept in line["points"]:
            alpha, of_run = swept["alpha"], f" of {line['arm']}"
            if swept["sweep"] == "alpha":
                method = f"{INTERPOLATED}{of_run}"
                name = f"alpha {alpha:g}{of_run}"
            else:
                method = f"{swept['sweep']}, {INTERPOLATED}{of_run}"
                name = f"{swept['sweep']}{'' if alpha == 1 else f', alpha {alpha:g}'}{of_run}"
            if swept["sweep"] == "alpha" and alpha == 1:
                found.append(_point(shift, method, line["arm"], seed, alpha, swept["changes"]))
            else:
                found.append(_point(shift, method, name, seed, alpha, swept["changes"]))
    return found


def _point(shift: str, method: str, name: str, seed: int, order: float, changes: dict[str, float]) -> Point:
    probes = [value for key, value in changes.items() if key not in ("target", KL_NAME, *REPLAYED)]
    rise = statistics.mean(probes) if probes else 0.0
    return Point(shift, method, name, seed, order, -changes["target"], changes[KL_NAME], rise)


REPLAYED = ("texts", "chats", "general")
"""Held-out sets of what is replayed: measured where it is, so that they are in no mean over arms."""


def crossing(line: Sequence[Point], learnt: float) -> tuple[float, float] | None:
    """Return (drift, rise of probes) where a line has learnt so much, the least drift of several; else None."""
    ordered = sorted(line, key=lambda point: point.order)
    found = [(p.drift, p.rise) for p in ordered if p.learnt == learnt]
    for one, two in itertools.pairwise(ordered):
        low, high = sorted((one.learnt, two.learnt))
        if low < learnt < high:
            share = (learnt - one.learnt) / (two.learnt - one.learnt)
            found.append(
                (one.drift + share * (two.drift - one.drift), one.rise + share * (two.rise - one.rise))
            )
    return min(found, default=None)


def equal_loss(points: Sequence[Point], level: float = LEVELS[0]) -> list[dict[str, Any]]:
    """Return for each shift and method how much of the drift is gone where both have learnt the same.

    That is at `level` of what `none` learns at its rate, where a method's line passes it; else at the method's
    own model nearest to it, with the line of `none` over its rates there. Seeds where that line does not
    reach are counted.
    """
    rows = []
    for shift in dict.fromkeys(p.shift for p in points):
        of_shift = [p for p in points if p.shift == shift]
        for method in dict.fromkeys(p.method for p in of_shift):
            if method == REFERENCE:
                continue
            seen = [
                _compared(of_shift, method, seed, level)
                for seed in dict.fromkeys(p.seed for p in of_shift if p.method == method)
            ]
            good = [one for one in seen if one is not None]
            if good:
                keys = ("kept", "drift", "without", "gone", "rise", "rise_without")
                means = {key: interval([one[key] for one in good]) for key in keys}
                own = {"shift": shift, "method": method, "num_seeds": len(good)}
                rows.append(own | {"num_outside": len(seen) - len(good)} | means)
    return rows


def _compared(points: Sequence[Point], method: str, seed: int, level: float) -> dict[str, float] | None:
    """Return the numbers of one seed; None where `none` reaches no such loss, or did not run."""
    line = [p for p in points if p.method == REFERENCE and p.seed == seed]
    first = next((p for p in line if p.order == 1), None)
    own = [p for p in points if p.method == method and p.seed == seed]
    if first is None or first.learnt <= 0:
        return None
    learnt = level * first.learnt
    here = crossing(own, learnt)
    if here is None:
        nearest = min(own, key=lambda p: abs(p.learnt - learnt))
        learnt, here = nearest.learnt, (nearest.drift, nearest.rise)
    there = crossing(line, learnt)
    if there is None or there[0] <= 0:
        return None
    numbers = {"kept": learnt / first.learnt, "drift": here[0], "without": there[0]}
    return numbers | {"gone": 1 - here[0] / there[0], "rise": here[1], "rise_without": there[1]}


def arms(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return for each shift and model name its means over seeds, beside `none` at its rate: all at equal tokens."""
    rows = []
    for shift in dict.fromkeys(p.shift for p in points):
        of_shift = [p for p in points if p.shift == shift]
        base = {p.seed: p for p in of_shift if p.method == REFERENCE and p.order == 1}
        for name in dict.fromkeys(p.name for p in of_shift):
            own = {
                p.seed: p for p in reversed(of_shift) if p.name == name
            }  # of two that are one model, the first
            pairs = [(p, base[seed]) for seed, p in own.items() if seed in base and base[seed].learnt > 0]
            if not pairs:
                continue
            rows.append(
                {
                    "shift": shift,
                    "arm": name,
                    "method": pairs[0][0].method,
                    "order": pairs[0][0].order,
                    "num_seeds": len(pairs),
                    "learnt": interval([p.learnt for p, _ in pairs]),
                    "kept": interval([p.learnt / b.learnt for p, b in pairs]),
                    "drift": interval([p.drift for p, _ in pairs]),
                    "gone": interval([1 - p.drift / b.drift for p, b in pairs]),
                    "rise": interval([p.rise for p, _ in pairs]),
                }
            )
    return rows


def interval(values: Sequence[float]) -> list[float | None]:
    """Return mean and half of the interval of 95 %; None in its place for one value."""
    mean = statistics.mean(values)
    if len(values) < 2:
        return [mean, None]
    t = T_95.get(len(values), 2.0)
    return [mean, t * statistics.stdev(values) / len(values) ** 0.5]


def chosen_and_judged(points: Sequence[Point]) -> list[dict[str, Any]]:
    """Return for each shift and level the method with most of the drift gone there, and what it does on the others.

    Among those that ran with all of that shift's seeds and keep, in the mean, that much of what is learnt; half a per
    cent of rounding is allowed.
    """
    found = []
    for level in LEVELS:
        rows = equal_loss(points, level)
        most = max((row["num_seeds"] for row in rows), default=0)
        for shift in dict.fromkeys(row["shift"] for row in rows):
            able = [r for r in rows if r["shift"] == shift and r["num_seeds"] == most]
            able = [r for r in able if r["kept"][0] >= level - 0.005]
            if not able:
                found.append({"level": level, "chosen_on": shift, "method": None, "judged": []})
                continue
            best = max(able, key=lambda row: row["gone"][0])
            judged = [r for r in rows if r["method"] == best["method"] and r["shift"] != shift]
            found.append(
                {
                    "level": level,
                    "chosen_on": shift,
                    "method": best["method"],
                    "there": {key: best[key] for key in ("kept", "gone")},
                    "judged": [
                        {key: r[key] for key in ("shift", "kept", "gone", "num_seeds")} for r in judged
                    ],
                }
            )
    return found


def frontier(rows: Sequence[dict[str, Any]]) -> set[tuple[str, str]]:
    """Return (shift, arm) of those that no other of the shift beats in both, by means: learns more and drifts less."""
    return {
        (one["shift"], one["arm"])
        for one in rows
        if not any(
            other["shift"] == one["shift"]
            and other["kept"][0] >= one["kept"][0]
            and other["drift"][0] <= one["drift"][0]
            and (other["kept"][0], other["drift"][0]) != (one["kept"][0], one["drift"][0])
            for other in rows
        )
    }


def shown(pair: Sequence[float | None], scale: float = 1.0, digits: int = 3) -> str:
    """Return a mean and its interval as tables have it."""
    mean, half = pair
    assert mean is not None
    text = f"{round(scale * mean, digits) + 0.0:.{digits}f}"  # no -0
    return text if half is None else f"{text} \u00b1 {scale * half:.{digits}f}"


def equal_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparison at equal loss as a Markdown table."""
    lines = [
        "| at equal loss | shift | seeds | learnt, % | KL on chats | without | gone, % | probes | without |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['method']} | {r['shift']} | {r['num_seeds']} | {shown(r['kept'], 100, 1)} | {shown(r['drift'])} | "
        f"{shown(r['without'])} | {shown(r['gone'], 100, 0)} | {shown(r['rise'])} | {shown(r['rise_without'])} |"
        for r in rows
    ]
    return "\n".join(lines)


def arms_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return all models at equal tokens as a Markdown table."""
    lines = [
        "| at equal tokens | shift | seeds | learnt, nats | of none, % | KL on chats | gone, % | probes |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['arm']} | {r['shift']} | {r['num_seeds']} | {shown(r['learnt'])} | {shown(r['kept'], 100, 1)} | "
        f"{shown(r['drift'])} | {shown(r['gone'], 100, 0)} | {shown(r['rise'])} |"
        for r in rows
    ]
    return "\n".join(lines)


def judged_table(found: Sequence[dict[str, Any]]) -> str:
    """Return what was chosen where, and how it did elsewhere, as a Markdown table."""
    lines = ["| must keep, % | chosen on | method | gone there, % | judged on | learnt, % | gone, % |"]
    lines.append("|---:|---|---|---:|---|---:|---:|")
    for one in found:
        begin = f"| {100 * one['level']:g} | {one['chosen_on']} | "
        if one["method"] is None:
            lines.append(f"{begin}none keeps so much | | | | |")
        for row in one["judged"]:
            lines.append(
                f"{begin}{one['method']} | {shown(one['there']['gone'], 100, 0)} | {row['shift']} | "
                f"{shown(row['kept'], 100, 1)} | {shown(row['gone'], 100, 0)} |"
            )
    return "\n".join(lines)
