"""Measure how far the clocks of nodes are apart, over questions and answers at the store."""

from __future__ import annotations

import time

from trainer.preflight.facts import ClockFacts
from trainer.preflight.meeting import Meeting

NUM_ROUNDS = 4


def answer(meeting: Meeting, rank: int, wait_s: float) -> None:
    """Tell the first node's time whenever a node asks; first process, one node after the other.

    Raises:
        TopologyError: The node does not ask.
    """
    for number in range(NUM_ROUNDS):
        meeting.hear(f"clock/ask/{rank}/{number}", wait_s)
        meeting.tell(f"clock/time/{rank}/{number}", repr(time.time()))


def ask(meeting: Meeting, wait_s: float) -> ClockFacts:
    """Return this node's offset by the shortest of several exchanges; the first process of a node.

    Whatever the first process was doing when it was asked only makes an exchange longer, and so the answer
    less certain: an offset never seems larger than it is by more than half the exchange.
    """
    best: ClockFacts | None = None
    rank = meeting.env.rank
    for number in range(NUM_ROUNDS):
        # In this order, so that whatever comes between the two only makes the exchange longer.
        start, before = time.monotonic(), time.time()
        meeting.tell(f"clock/ask/{rank}/{number}", "")
        theirs = float(meeting.hear(f"clock/time/{rank}/{number}", wait_s))
        took = time.monotonic() - start
        if best is None or took < best.round_trip_s:
            best = ClockFacts(meeting.node, before + took / 2 - theirs, took)
    assert best is not None, "there is at least one round"
    return best
