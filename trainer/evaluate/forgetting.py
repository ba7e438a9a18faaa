"""The forgetting measurement: the base model before the first step against the tuned one, on the same held-out text.

Collective: every rank calls everything here in the same order; rank 0 writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.checkpoint.layout import step_dir
from trainer.checkpoint.state import TrainState
from trainer.config.data import DataConfig, Role
from trainer.config.metric import CHAT_PROMPTS
from trainer.config.snapshot import write_atomic
from trainer.data.store.prepared import digest_of
from trainer.data.store.store import SplitStore, Store
from trainer.data.types import TokenizerLike
from trainer.engine.policy import Policy
from trainer.evaluate.base import LAYOUT, BaseEvaluation, BaseIdentity, DamagedBase, read_base, write_base
from trainer.evaluate.compare import SetComparison, by_document, compare_set, mean_with_interval
from trainer.evaluate.conversations import ChatPrompts
from trainer.evaluate.forgotten import FILE_NAME as FORGOTTEN
from trainer.evaluate.forgotten import ForgottenDocument, counted_pieces, forgotten_text
from trainer.evaluate.forgotten_scores import MeasuredSets, forgotten_documents
from trainer.evaluate.held_out import HeldOut, PieceLosses, held_out_losses
from trainer.evaluate.kl import TOP, divergence_by_document, take_references
from trainer.evaluate.probing import ProbeFindings, ProbeMeasurement
from trainer.evaluate.record import (
    BASE_FILE,
    FILE_NAME,
    Divergence,
    ForgettingRecord,
    Recovery,
    Replay,
    RunFacts,
    read_forgetting,
)
from trainer.evaluate.tasks.score import TaskComparison
from trainer.evaluate.text_bytes import text_bytes
from trainer.metrics.device import describe_device

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured and the text it is measured on."""

    policy: Policy
    held_out: HeldOut
    prompts: HeldOut
    """New-task text and conversations for the KL to the base."""
    probes: ProbeMeasurement | None = None
    """Kinds of text that nobody named; None where none are asked for."""
    num_shown: int = 0
    """Documents that are shown of those that lost most."""


class ForgettingMeasurement:
    """Keeps what the base model said and compares the tuned model with it."""

    def __init__(
        self,
        run_dir: Path,
        name: str,
        subject: Subject,
        base: BaseIdentity,
        data: DataConfig,
        data_digest: str,
    ) -> None:
        """Find the base's evaluation: of this run, or in the cache of another run of the same base and data.

        Collective: every rank.

        Args:
            name: Of the run.
        Raises:
            DataError: The run directory holds the evaluation of another base.
        """
        self._path = run_dir / BASE_FILE
        self._run_dir = run_dir
        self._name = name
        self._data = data
        self._subject = subject
        self._identity = base
        self._key = digest_of(
            {
                "layout": LAYOUT,
                "base": base.digest,
                "data": data_digest,
                "seq_len": data.seq_len,
                "packs": [data.max_validation_packs, TOP],
                "dtype": base.dtype,
            }
        )
        alike = base.shared_key(self._key, subject.prompts.max_packs, subject.prompts.names)
        self._cache = Path(data.cache_dir) / "evaluations" / f"{alike}.npz"
        self._base: BaseEvaluation | None = subject.policy.mesh.from_first(self._find)

    def _find(self) -> BaseEvaluation | None:
        if self._path.exists():
            return read_base(self._path, self._key)
        if self._cache.exists():
            try:
                found = read_base(self._cache, self._key)
            except DamagedBase as error:
                _LOG.warning("%s The base model is evaluated anew.", error)
                return None
            write_base(self._path, found)
            return found
        return None

    @property
    def has_base(self) -> bool:
        """Tell whether it is known what the base said."""
        return self._base is not None

    def measure_base(self) -> dict[str, float]:
        """Evaluate the model before the first step, or take what is known of it; return held-out losses."""
        subject = self._subject
        if self._base is None:
            found = held_out_losses(subject.policy, subject.held_out, keeps_tokens=True)
            references = take_references(subject.policy, subject.prompts)
            self._base = base = BaseEvaluation(self._key, found.pieces, references, found.tokens)

            def keep() -> None:
                write_base(self._path, base)
                write_base(self._cache, base)

            subject.policy.mesh.from_first(keep)
        else:
            _LOG.info("The base model's evaluation is known (%s).", self._key[:12])
        if subject.probes is not None:
            subject.probes.measure_base()
        return {name: losses.mean for name, losses in self._base.pieces.items()}

    def probes_during(self, step: int) -> list[SetComparison]:
        """Return what changed on probes up to a step; empty where they are read at the ends alone."""
        probes = self._subject.probes
        return [] if probes is None else probes.during(step)

    def divergence_means(self) -> dict[str, float]:
        """Return the mean KL to the base in nats by set of prompts; none where the base was not evaluated."""
        if self._base is None:
            return {}
        found = divergence_by_document(self._subject.policy, self._subject.prompts, self._base.references)
        return {name: sum(sums) / sum(counts) for name, (sums, counts) in found.items()}

    def compare(
        self,
        state: TrainState,
        tuned: Mapping[str, PieceLosses],
        texts: Texts,
        replay: Replay | None,
        tasks: Sequence[TaskComparison],
        recover: Callable[[], Recovery | None] = lambda: None,
    ) -> bool:
        """Write forgetting.json; tell whether there was a base to compare with.

        Args:
            tasks: Scores of benchmark tasks on base and tuned model; none: those known of this checkpoint stay.
            recover: The recovery probe; called last, because it changes the weights.
        """
        subject, base = self._subject, self._base
        if base is None:
            _LOG.warning("No forgetting report: this run began before its base was evaluated.")
            return False
        divergences = divergence_by_document(subject.policy, subject.prompts, base.references)
        probed = ProbeFindings() if subject.probes is None else subject.probes.compare(state.step)
        measured = [MeasuredSets(subject.held_out, base.pieces, base.tokens, tuned), *probed.measured]
        forgotten = forgotten_documents(subject.policy, measured, subject.num_shown, texts.tokenizer.decode)
        recovery = recover()

        def write() -> None:
            self._write_forgotten(self._label(state), forgotten)
            known = self._known(state)
            record = ForgettingRecord(
                run=self._facts(state),
                sets=tuple(
                    self._compare_set(name, base.pieces[name], tuned[name], texts)
                    for name in tuned
                    if name in base.pieces
                ),
                kl=(*(_divergence(name, *found) for name, found in divergences.items()), *probed.kl),
                tasks=tuple(tasks) or (known.tasks if known is not None else ()),
                recovery=recovery or (known.recovery if known is not None else None),
                replay=replay,
                probes=tuple(probed.sets),
                left_out=tuple(probed.left_out),
            )
            write_atomic(self._run_dir / FILE_NAME, record.to_text())

        subject.policy.mesh.from_first(write)
        return True

    def _write_forgotten(self, label: str, documents: Sequence[ForgottenDocument]) -> None:
        """Write the documents that lost most, or take away those of another checkpoint where none are asked for."""
        path = self._run_dir / FORGOTTEN
        if self._subject.num_shown:
            write_atomic(path, forgotten_text(label, documents))
        else:
            path.unlink(missing_ok=True)

    def _known(self, state: TrainState) -> ForgettingRecord | None:
        """Return what was measured of this checkpoint before: not all of it is at every evaluation."""
        found = read_forgetting(self._run_dir / FILE_NAME)
        return found if found is not None and found.run.tuned == self._label(state) else None

    def _label(self, state: TrainState) -> str:
        return step_dir(self._run_dir, state.step).name

    def _facts(self, state: TrainState) -> RunFacts:
        return RunFacts(
            name=self._name,
            base=self._identity.name,
            base_digest=self._identity.digest,
            tuned=self._label(state),
            steps=state.step,
            tokens_seen=state.tokens_seen,
            device=describe_device(),
            dtype=self._identity.said_dtype,
        )

    def _compare_set(self, name: str, base: PieceLosses, tuned: PieceLosses, texts: Texts) -> SetComparison:
        split = texts.stores[name].validation
        documents_P, bytes_P = _of_pieces(split, self._data.max_validation_packs, texts.tokenizer)
        return compare_set(
            name,
            self._data.sources[name].role.value,
            by_document(documents_P, base.nll_P),
            by_document(documents_P, tuned.nll_P),
            by_document(documents_P, base.targets_P),
            by_document(documents_P, bytes_P),
        )


@dataclass(frozen=True, slots=True)
class Texts:
    """Where the text of held-out pieces is found again, for losses by byte."""

    stores: Mapping[str, Store]
    tokenizer: TokenizerLike


def prompts_for_kl(data: DataConfig, max_packs: int, texts: Texts, pad_id: int) -> HeldOut:
    """Lay out the held-out text of the target sources and, for a chat model, the fixed conversations."""
    chosen: dict[str, Any] = {
        name: store.validation
        for name, store in texts.stores.items()
        if data.sources[name].role is Role.target
    }
    if texts.tokenizer.has_chat_template:
        chosen[CHAT_PROMPTS] = prompts = ChatPrompts(texts.tokenizer, data.seq_len)
        if prompts.left_out is not None:
            _LOG.warning("KL to the base on %s is of %s.", CHAT_PROMPTS, prompts.left_out)
    return HeldOut(
        names=list(chosen),
        stores=list(chosen.values()),
        max_packs=max_packs,
        micro_batch_size=1,
        pad_id=pad_id,
    )


def _divergence(name: str, sums: list[float], counts: list[int]) -> Divergence:
    found = mean_with_interval(name, np.array(sums), np.array(counts, dtype=np.int64))
    return Divergence(name, found.mean, found.low, found.high, found.num_tokens, found.num_documents)


def _of_pieces(
    split: SplitStore, max_packs: int, tokenizer: TokenizerLike
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the document of each piece that held-out losses count, and the UTF-8 bytes of its supervised text."""
    documents, num_bytes = [], []
    for piece, pack in counted_pieces(split, max_packs):
        here = slice(piece.start + 1, piece.start + piece.length)
        documents.append(piece.document)
        num_bytes.append(text_bytes(tokenizer, pack.tokens[here][pack.supervised[here]]))
    return np.array(documents, dtype=np.int64), np.array(num_bytes, dtype=np.int64)
