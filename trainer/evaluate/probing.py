"""Probes that nobody had to name: the base before the first step against the tuned model, by kind of text.

They are held-out sets of their own, beside those of the run: no gate, mean or best checkpoint counts them.
Collective: every rank calls everything here in the same order; rank 0 writes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from trainer.data.store.prepared import digest_of
from trainer.data.store.store import SplitStore
from trainer.engine.policy import Policy
from trainer.errors import DataError
from trainer.evaluate.base import LAYOUT, BaseEvaluation, BaseIdentity, read_base, write_base
from trainer.evaluate.compare import SetComparison, by_document, compare_set, mean_with_interval
from trainer.evaluate.forgotten import counted_pieces
from trainer.evaluate.forgotten_scores import MeasuredSets
from trainer.evaluate.held_out import HeldOut, PieceLosses, held_out_losses
from trainer.evaluate.kl import TOP, divergences, take_references
from trainer.evaluate.probe_packs import ProbePacks
from trainer.evaluate.record import Divergence, LeftOut

_LOG = logging.getLogger(__name__)
FILE_NAME = "probe_evaluation.npz"
PROBES = "probes"
"""Name of all kinds together in that file."""


@dataclass(frozen=True, slots=True)
class ProbeFindings:
    """What training changed on the kinds of text."""

    sets: list[SetComparison] = field(default_factory=list)
    kl: list[Divergence] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    measured: list[MeasuredSets] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ProbeQuestion:
    """What is asked, and of whom."""

    policy: Policy
    packs: ProbePacks
    held_out: HeldOut
    """The packs, as held-out losses are taken of them."""
    left_out: Sequence[LeftOut]
    is_during: bool = False
    """At every evaluation during training too."""

    @property
    def digest(self) -> str:
        """Return what names the tokens that are asked about."""
        laid = [self.packs.pack(index) for index in range(self.packs.num_packs)]
        return digest_of([[pack.tokens.tolist(), pack.supervised.tolist(), pack.lengths] for pack in laid])


class ProbeMeasurement:
    """Keeps what the base said of probes and compares the tuned model with it."""

    def __init__(self, run_dir: Path, cache_dir: Path, question: ProbeQuestion, base: BaseIdentity) -> None:
        """Find what the base said: in this run, or in another of the same base and probes. Collective: every rank."""
        self._question = question
        self._path = run_dir / FILE_NAME
        self._key = digest_of([LAYOUT, base.digest, question.digest, base.dtype, TOP])
        self._cache = cache_dir / "evaluations" / f"{base.shared_key(self._key, PROBES)}.npz"
        self._base: BaseEvaluation | None = question.policy.mesh.from_first(self._find)
        self._newest: tuple[int, dict[str, PieceLosses]] = (-1, {})

    def _find(self) -> BaseEvaluation | None:
        for path in (self._path, self._cache):
            if not path.exists():
                continue
            try:
                found = read_base(path, self._key)
            except DataError as error:  # of other probes, or damaged
                _LOG.warning("What the base said of probes is not used. %s", error)
                continue
            if path is self._cache:
                write_base(self._path, found)
            return found
        return None

    def measure_base(self) -> None:
        """Ask the model before the first step, unless it is known what it says."""
        if self._base is not None or not self._question.packs.num_packs:
            return
        policy, held_out = self._question.policy, self._question.held_out
        found = held_out_losses(policy, held_out, keeps_tokens=True)
        references = take_references(policy, held_out)
        self._base = base = BaseEvaluation(self._key, found.pieces, references, found.tokens)

        def keep() -> None:
            write_base(self._path, base)
            write_base(self._cache, base)

        policy.mesh.from_first(keep)

    def during(self, step: int) -> list[SetComparison]:
        """Compare the model as it is after a step with the base; empty where that is left to the end.

        A kind whose loss is not finite is left out. Collective: every rank, which all get the same.
        """
        if self._base is None or not self._question.is_during:
            return []
        return self._by_kind(self._base, self._tuned(step), finite_only=True)

    def _tuned(self, step: int) -> dict[str, PieceLosses]:
        """Return what the model says after a step, which is asked once."""
        if self._newest[0] != step:
            self._newest = (step, held_out_losses(self._question.policy, self._question.held_out).pieces)
        return self._newest[1]

    def compare(self, step: int) -> ProbeFindings:
        """Ask the tuned model, which is that of a step, and compare it with the base."""
        question, base = self._question, self._base
        left_out = list(question.left_out)
        if not question.packs.num_packs:
            return ProbeFindings(left_out=left_out)
        if base is None:
            why = "this run began before its base was asked about them. Another run_dir measures them."
            return ProbeFindings(left_out=[*left_out, LeftOut("Kinds of text that nobody named", why)])
        tuned = self._tuned(step)
        moved = divergences(question.policy, question.held_out, base.references).get(PROBES, {})
        measured = MeasuredSets(
            question.held_out,
            base.pieces,
            base.tokens,
            tuned,
            lambda name, document: question.packs.named(document),
        )
        kl = []
        for kind in question.packs.kinds_in_order:
            rows = [moved[number] for number in question.packs.documents_of_kind(kind) if number in moved]
            kl += [_divergence(kind, rows)] if rows else []
        return ProbeFindings(self._by_kind(base, tuned), kl, left_out, [measured])

    def _by_kind(
        self, base: BaseEvaluation, tuned: dict[str, PieceLosses], finite_only: bool = False
    ) -> list[SetComparison]:
        question = self._question
        # The packs are of documents as those of a store are.
        packs = cast(SplitStore, question.packs)
        documents_P = np.array(
            [piece.document for piece, _ in counted_pieces(packs, question.held_out.max_packs)],
            dtype=np.int64,
        )
        numbers_D = np.unique(documents_P)
        before, after = base.pieces[PROBES], tuned[PROBES]
        sums = [by_document(documents_P, one) for one in (before.nll_P, after.nll_P, before.targets_P)]
        bytes_D = question.packs.num_bytes[numbers_D]
        found = []
        for kind in question.packs.kinds_in_order:
            of_kind = np.isin(numbers_D, question.packs.documents_of_kind(kind))
            base_D, tuned_D, targets_D = (values_D[of_kind] for values_D in sums)
            if finite_only and not np.isfinite(tuned_D).all():
                continue
            found.append(compare_set(kind, "probe", base_D, tuned_D, targets_D, bytes_D[of_kind]))
        return found


def _divergence(kind: str, rows: Sequence[tuple[float, int]]) -> Divergence:
    sums, counts = np.array([kl for kl, _ in rows]), np.array([count for _, count in rows], dtype=np.int64)
    found = mean_with_interval(kind, sums, counts)
    return Divergence(
        f"{kind} (probe)", found.mean, found.low, found.high, found.num_tokens, found.num_documents
    )


def layout(packs: Any, micro_batch_size: int, pad_id: int) -> HeldOut:
    """Return probes as held-out losses are taken of them."""
    return HeldOut([PROBES], [packs], max(packs.num_packs, 1), micro_batch_size, pad_id)
