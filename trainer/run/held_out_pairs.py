"""The held-out pairs of a run: ranked as its loss compares answers, logged and told."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.config.metric import ACCURACY, PAIR_LOSS
from trainer.config.objective import ObjectiveKind
from trainer.config.preference import PreferenceConfig
from trainer.config.snapshot import write_atomic
from trainer.data.pack.refs import PackRef
from trainer.data.types import Unit
from trainer.evaluate.held_out import HeldOut, HeldOutLosses
from trainer.metrics.tracker import by_source
from trainer.objective.preference.judged import JudgedPairs, judge
from trainer.objective.preference.pair_losses import Sides
from trainer.run.session import Session
from trainer.teacher.answer_sums import AnswerSums

_LOG = logging.getLogger(__name__)
MARGINS = "held_out_margins.json"
"""How the margins of held-out pairs were spread at the newest evaluation."""


@dataclass(frozen=True, slots=True)
class HeldOutPairs:
    """What ranks the held-out pairs of a run."""

    options: PreferenceConfig
    held_out: HeldOut
    """Of all sources."""
    reference: AnswerSums | None
    """Of the held-out answers; None where the loss needs none."""
    run_dir: Path | None = None

    @property
    def alone(self) -> HeldOut:
        """Return the held-out packs of the sources of pairs."""
        held_out = self.held_out
        kept = [number for number, store in enumerate(held_out.stores) if store.unit is Unit.pair]
        return dataclasses.replace(
            held_out,
            names=[held_out.names[number] for number in kept],
            stores=[held_out.stores[number] for number in kept],
        )

    def judge(self, found: HeldOutLosses) -> dict[str, JudgedPairs]:
        """Rank the pairs of every source that has some held out."""
        judged = {}
        for name, rejected in found.rejected.items():
            sides = found.pieces[name], rejected
            references = self._references(name)
            chosen, other = (
                Sides(torch.from_numpy(-side.nll_P), torch.from_numpy(side.targets_P), reference_P)
                for side, reference_P in zip(sides, references, strict=True)
            )
            judged[name] = judge(chosen, other, self.options)
        return judged

    def _references(self, name: str) -> tuple[Tensor | None, Tensor | None]:
        if self.reference is None:
            return None, None
        source = list(self.held_out.names).index(name)
        num_packs = min(self.held_out.stores[source].num_packs, self.held_out.max_packs)
        sums = np.ascontiguousarray(
            self.reference.of([PackRef(source, pack, 0) for pack in range(num_packs)])
        )
        return torch.from_numpy(sums[0::2].copy()), torch.from_numpy(sums[1::2].copy())

    def logged(self, judged: Mapping[str, JudgedPairs], is_begun: bool) -> dict[str, float]:
        """Return what is logged of them, by key.

        Args:
            is_begun: False before the first step, where all rewards against a reference are 0 but for rounding and
                rank nothing.
        """
        return logged_pairs(judged, is_begun or not self.options.needs_reference)


def logged_pairs(judged: Mapping[str, JudgedPairs], ranks: bool) -> dict[str, float]:
    """Return what is logged of held-out pairs, by key.

    Args:
        ranks: Rewards rank them already.
    """
    record: dict[str, float | None] = {}
    for name, found in judged.items():
        record |= {
            by_source(PAIR_LOSS, name): found.loss,
            by_source("eval_reward_chosen", name): found.reward_chosen,
            by_source("eval_reward_rejected", name): found.reward_rejected,
            by_source("eval_margin", name): found.margin,
        }
        if ranks:
            low, high = found.ranked.interval or (None, None)
            record |= {
                by_source(ACCURACY, name): found.ranked.accuracy,
                by_source(f"{ACCURACY}_low", name): low,
                by_source(f"{ACCURACY}_high", name): high,
                by_source(f"{ACCURACY}_longer", name): found.longer.accuracy,
                by_source(f"{ACCURACY}_shorter", name): found.shorter.accuracy,
            }
    return {key: value for key, value in record.items() if value is not None}


def tell(judged: Mapping[str, JudgedPairs], step: int, run_dir: Path | None) -> None:
    """Say in a line a source how many are right, and keep how margins are spread in a file of the run."""
    for name, found in judged.items():
        _LOG.info("Held-out pairs of %s: %s", name, told(found))
    if judged and run_dir is not None:
        spread = {name: found.histogram.to_plain() for name, found in judged.items()}
        write_atomic(run_dir / MARGINS, json.dumps({"step": step, "sources": spread}, indent=2) + "\n")


def told(found: JudgedPairs) -> str:
    """Return in words how pairs are ranked."""
    accuracy, interval = found.ranked.accuracy, found.ranked.interval
    if accuracy is None or interval is None:
        return "none."
    by_length = [
        f"{side.num_right / side.num_pairs:.1%} of {side.num_pairs} whose chosen answer is {word}"
        for side, word in ((found.longer, "longer"), (found.shorter, "shorter"))
        if side.num_pairs
    ]
    return (
        f"{accuracy:.1%} of {found.ranked.num_pairs} ranked right (95 %: {interval[0]:.1%} to {interval[1]:.1%}), by "
        f"{found.margin:+.4g} in the mean{'; ' if by_length else ''}{', '.join(by_length)}."
    )


def held_out_pairs(session: Session, reference: AnswerSums | None) -> HeldOutPairs | None:
    """Return what ranks the held-out pairs of a run; None where its loss is not of pairs."""
    options = session.config.objective
    if options.kind is not ObjectiveKind.preference or not options.preference.is_paired:
        return None
    return HeldOutPairs(options.preference, session.held_out(), reference, session.run_dir)
