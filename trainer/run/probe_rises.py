"""What changed on probes at every evaluation: as it is logged, and said when a kind of text is first lost."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from trainer.config.metric import PROBE, PROBE_HIGH, PROBE_LOW
from trainer.evaluate.compare import SetComparison, side
from trainer.metrics.tracker import by_source

_LOG = logging.getLogger(__name__)


class ProbeRises:
    """Remembers which kinds were lost at the evaluation before."""

    def __init__(self, says: bool) -> None:
        """Take whether this rank says what it sees."""
        self._says = says
        self._lost: set[str] = set()

    def take(self, found: Sequence[SetComparison], step: int) -> dict[str, float]:
        """Return the rise of each kind over the base in nats a token, and its 95 % interval where it has one."""
        logged: dict[str, float] = {}
        lost = {}
        for one in found:
            logged[by_source(PROBE, one.name)] = one.change_nats
            if one.change_low is None or one.change_high is None:
                continue
            logged[by_source(PROBE_LOW, one.name)] = one.change_low
            logged[by_source(PROBE_HIGH, one.name)] = one.change_high
            if side(one.change_low, one.change_high) > 0:
                lost[one.name] = (
                    f"{one.name} +{one.change_nats:.3f} nats ({one.change_low:.3f} to {one.change_high:.3f})"
                )
        new = [words for name, words in lost.items() if name not in self._lost]
        self._lost = set(lost)
        if new and self._says:
            _LOG.info(
                "Step %d: lost of what nobody named, where it was not before: %s.", step, "; ".join(new)
            )
        return logged
