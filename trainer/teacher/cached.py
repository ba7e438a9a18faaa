"""Learning from a frozen model: find what it says of the data, or ask it before anything is trained.

Collective: every rank calls everything here in the same order; rank 0 publishes.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from trainer.checkpoint.space import bytes_free
from trainer.config.data import DataConfig
from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.refs import PackRef
from trainer.data.store.prepared import cache_folder, digest_of
from trainer.data.store.store import SplitStore, Store
from trainer.data.store.writer import cache_explained
from trainer.data.types import Int64s
from trainer.dist.mesh import Mesh
from trainer.engine.model_inputs import move
from trainer.engine.policy import Policy
from trainer.errors import DataError
from trainer.model.head.comparison import PLAIN, Comparison
from trainer.model.head.divergence import TopTokens
from trainer.runtime.publish import clear_leftovers, staged
from trainer.teacher.inquiry import Question, write_reference
from trainer.teacher.reference import (
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
class CachedBase:
    """A frozen model as a reference has it. Implements Teacher without asking the model."""

    beta: float
    reference: BaseReference
    how: Comparison = PLAIN

    def attach(self, micro: MicroBatch, refs: Sequence[PackRef]) -> BaseRows | None:
        """Read what the reference holds of these packs."""
        return self.reference.rows_of(micro, refs)

    def top_tokens(self, policy: Policy, micro: MicroBatch) -> TopTokens | None:
        """Move what came with the micro-batch to the device."""
        rows = micro.attached
        if not isinstance(rows, BaseRows):
            return None
        rows_R, ids_RK, log_probs_RK, log_rest_R = (
            None if array is None else move(torch.from_numpy(array), policy.device)
            for array in (rows.rows_R, rows.ids_RK, rows.log_probs_RK, rows.log_rest_R)
        )
        assert rows_R is not None and ids_RK is not None and log_probs_RK is not None
        return TopTokens(rows_R, rows.rows_R, ids_RK, log_probs_RK, self.beta, self.how, log_rest_R)


def open_reference(
    mesh: Mesh,
    asking: Callable[[], AbstractContextManager[Policy]],
    data: DataConfig,
    stores: Mapping[str, Store],
    packs: Mapping[int, Int64s],
    question: Question,
    heed: Callable[[], None] = lambda: None,
) -> BaseReference:
    """Return what a frozen model says of packs, by number of the source; ask it where nobody has before.

    What was asked is kept block by block, so that a process that is ended loses the last one alone.

    Args:
        asking: Gives the model that is asked; entered only where something is to be asked. Where it is what trains,
            call this before a checkpoint is loaded, resumed runs included.
        heed: Called by every rank after each batch that is asked; may raise on all of them, to give up.
    Raises:
        DataError: The disk has no room, or a rank cannot write there.
    """
    key, described = describe(question, stores, packs)
    references = references_folder(cache_folder(data))
    splits = [store.train for store in stores.values()]
    blocks = _blocks(splits, packs, question.block_rows)
    folders = [references / key / f"{number:05d}" for number in range(len(blocks))]
    sizes = [sum(int(splits[ref.source].pack_targets[ref.pack]) for ref in block) for block in blocks]
    missing = mesh.from_first(lambda: _missing(folders, question))
    places = {source: place for place, source in enumerate(packs)}
    num_rows = sum(sizes[number] for number in missing)
    _say_known(question, sum(sizes) - num_rows, sum(sizes), key)
    if not missing:
        return BaseReference(folders, places, question.who)
    mesh.from_first(lambda: check_room(references / key, num_rows, question))
    with ExitStack() as stack:
        policy = stack.enter_context(asking())
        stack.enter_context(cache_explained(data.cache_dir, f"{question.who}'s log-probabilities"))
        mesh.from_first(lambda: clear_leftovers(references / key))
        num_packs = sum(len(blocks[number]) for number in missing)
        title = f"{question.who.removeprefix('the ').capitalize()} on {question.about}"
        show = stack.enter_context(showing(title, num_packs, mesh.is_first))
        if mesh.is_first:
            stack.callback(_remove_if_empty, references / key)
        done = 0
        for number in missing:

            def on_batch(asked: int, before: int = done) -> None:
                show(before + asked)
                heed()

            refs = blocks[number]
            with _staged_by_first(mesh, folders[number]) as work:
                write_reference(policy, splits, refs, places, question, work, on_batch)
                finished = (work, folders[number], described, mesh.num_ranks, question.precision)
                mesh.from_first(partial(publish, *finished))
            done += len(refs)
    return BaseReference(folders, places, question.who)


@contextlib.contextmanager
def _staged_by_first(mesh: Mesh, target: Path) -> Iterator[Path]:
    """Give every rank the empty folder that the first one made beside a place. Collective: every rank."""
    with ExitStack() as stack:
        work: Path = mesh.from_first(lambda: stack.enter_context(staged(target)))
        yield work


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
        "block": question.block_rows,
        "packs": [
            [digests[source], hashlib.sha256(found.astype("<i8").tobytes()).hexdigest()]
            for source, found in packs.items()
        ],
    }
    if question.how is not None:
        described |= {
            "precision": question.precision,
            "temperature": question.how.temperature,
            "num_ids": question.how.num_ids,
        }
    return digest_of(described), described


def _say_known(question: Question, num_known: int, num_all: int, key: str) -> None:
    if num_known:
        part = f"{num_all}" if num_known == num_all else f"{num_known} of {num_all}"
        _LOG.info("What %s says of %s %s tokens is known (%s).", question.who, part, question.about, key[:12])


def _blocks(
    splits: Sequence[SplitStore], packs: Mapping[int, Int64s], block_rows: int
) -> list[list[PackRef]]:
    """Cut packs into blocks of about so many supervised positions, whatever the ranks; at least one."""
    blocks: list[list[PackRef]] = [[]]
    num_rows = 0
    for source, found in packs.items():
        for pack in found.tolist():
            if num_rows >= block_rows:
                blocks.append([])
                num_rows = 0
            blocks[-1].append(PackRef(source, pack, 0))
            num_rows += int(splits[source].pack_targets[pack])
    return blocks


def _missing(folders: Sequence[Path], question: Question) -> list[int]:
    """Return the numbers of the blocks that are not there whole."""
    missing = [number for number, folder in enumerate(folders) if not is_whole(folder)]
    for number in missing:
        if folders[number].exists():
            _LOG.warning("%s is damaged: %s is asked again.", folders[number], question.who)
    return missing


def check_room(folder: Path, num_rows: int, question: Question) -> None:
    """Say how large a reference will be, and raise when the disk has no room for it."""
    need_bytes = num_rows * question.bytes_per_token
    _LOG.info(
        "Asking %s for its top %d next tokens at %d supervised %s tokens: %d bytes a token, %.3g GiB in %s.",
        question.who,
        question.num_top,
        num_rows,
        question.about,
        question.bytes_per_token,
        need_bytes / 2**30,
        folder,
    )
    free_bytes = bytes_free(folder)
    if free_bytes < need_bytes:
        raise DataError(
            f"`data.cache_dir` must have room for {question.who}'s log-probabilities ({need_bytes / 2**30:.1f} GiB), "
            f"but {folder.parent} has {free_bytes / 2**30:.1f} GiB left instead. Choose a larger disk, or "
            f"{question.room}."
        )


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a reference of which no block was finished."""
    with contextlib.suppress(OSError):
        folder.rmdir()
