"""KL to the base on replay: find what the base model says of it, or ask the base before anything is trained.

Collective: every rank calls everything here in the same order; rank 0 publishes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.checkpoint.space import bytes_free
from trainer.config.data import DataConfig
from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.data.store.prepared import cache_folder, digest_of
from trainer.data.store.store import Store
from trainer.data.store.writer import cache_explained
from trainer.data.types import Int64s
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.errors import DataError
from trainer.model.head.divergence import TopTokens
from trainer.runtime.publish import clear_leftovers, staged
from trainer.teacher.inquiry import write_reference
from trainer.teacher.reference import (
    BYTES_PER_TOKEN,
    VERSION,
    BaseReference,
    BaseRows,
    is_whole,
    publish,
    references_folder,
)
from trainer.teacher.showing import showing

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of which base model."""

    base_digest: str
    dtype: str
    num_top: int
    """Most likely next tokens that are kept of a position."""
    micro_batch_size: int
    """Packs that a rank asks about at once."""


@dataclass(frozen=True, slots=True)
class CachedBase:
    """The base model as a reference has it. Implements Teacher without asking the model."""

    beta: float
    reference: BaseReference

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> BaseRows | None:
        """Read what the reference holds of these packs."""
        return self.reference.rows_of(micro, refs)

    def top_tokens(self, policy: Policy, micro: MicroBatch) -> TopTokens | None:
        """Move what came with the micro-batch to the device."""
        if not isinstance(micro.attached, BaseRows):
            return None
        rows_R, ids_RK, log_probs_RK = (
            move(torch.from_numpy(array), policy.device)
            for array in (micro.attached.rows_R, micro.attached.ids_RK, micro.attached.log_probs_RK)
        )
        return TopTokens(rows_R, micro.attached.rows_R, ids_RK, log_probs_RK, self.beta)


def open_reference(
    policy: Policy,
    data: DataConfig,
    stores: Mapping[str, Store],
    packs: Mapping[int, Int64s],
    question: Question,
    pad_id: int,
    heed: Callable[[], None] = lambda: None,
) -> BaseReference:
    """Return what the base says of replay packs, by number of the source; ask it when nobody has before.

    The policy must be the base: call this before a checkpoint is loaded, resumed runs included.

    Args:
        heed: Called by every rank after each batch that the base is asked; may raise on all of them, to give up.
    Raises:
        DataError: The disk has no room, or a rank cannot write there.
    """
    key, described = describe(question, stores, packs)
    references = references_folder(cache_folder(data))
    mesh = policy.mesh
    folder = references / key
    splits = [store.train for store in stores.values()]
    num_rows = sum(int(splits[source].pack_targets[packs[source]].sum()) for source in packs)
    if mesh.from_first(lambda: is_whole(folder)):
        _LOG.info("What the base model says of %d replay tokens is known (%s).", num_rows, key[:12])
    else:
        if mesh.is_first and folder.exists():
            _LOG.warning("%s is damaged: the base model is asked again.", folder)
        num_packs = sum(map(len, packs.values()))
        mesh.from_first(lambda: check_room(folder, num_rows, question.num_top))
        with ExitStack() as stack:
            stack.enter_context(cache_explained(data.cache_dir, "the base model's log-probabilities"))
            mesh.from_first(lambda: clear_leftovers(references))
            show = stack.enter_context(showing("Base model on replay", num_packs, mesh.is_first))

            def on_batch(done: int) -> None:
                show(done)
                heed()

            work: Path = mesh.from_first(lambda: stack.enter_context(staged(folder)))
            write_reference(
                policy,
                splits,
                {source: found.tolist() for source, found in packs.items()},
                question.num_top,
                question.micro_batch_size,
                pad_id,
                work,
                on_batch,
            )
            mesh.from_first(lambda: publish(work, folder, described, mesh.num_ranks))
    return BaseReference(folder, {source: place for place, source in enumerate(packs)})


def describe(
    question: Question, stores: Mapping[str, Store], packs: Mapping[int, Int64s]
) -> tuple[str, dict[str, object]]:
    """Return the key of a reference and what it is a digest of."""
    digests = [store.digest for store in stores.values()]
    described: dict[str, object] = {
        "version": VERSION,
        "base": question.base_digest,
        "dtype": question.dtype,
        "top": question.num_top,
        "packs": [
            [digests[source], hashlib.sha256(found.astype("<i8").tobytes()).hexdigest()]
            for source, found in packs.items()
        ],
    }
    return digest_of(described), described


def check_room(folder: Path, num_rows: int, num_top: int) -> None:
    """Say how large a reference will be, and raise when the disk has no room for it."""
    need_bytes = num_rows * num_top * BYTES_PER_TOKEN
    _LOG.info(
        "Asking the base model for its top %d next tokens at %d supervised replay tokens: %.3g GiB in %s.",
        num_top,
        num_rows,
        need_bytes / 2**30,
        folder,
    )
    free_bytes = bytes_free(folder)
    if free_bytes < need_bytes:
        raise DataError(
            f"`data.cache_dir` must have room for the base model's log-probabilities ({need_bytes / 2**30:.1f} GiB), "
            f"but {folder.parent} has {free_bytes / 2**30:.1f} GiB left instead. Choose a larger disk, lower "
            "replay.kl.top or the replay ratio, or shorten the run."
        )
