"""KL to the base on replay: find what the base model says of it, or ask the base before anything is trained.

Collective: every rank calls everything here in the same order; rank 0 publishes.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.checkpoint.space import bytes_free
from trainer.config.schema import RunConfig
from trainer.data.store.prepared import cache_folder, digest_of
from trainer.data.store.store import Store
from trainer.data.store.writer import cache_explained
from trainer.data.types import Int64s
from trainer.dist.group import Group
from trainer.engine.engine import Engine
from trainer.errors import DataError
from trainer.runtime.publish import clear_leftovers, staged
from trainer.teacher.inquiry import write_reference
from trainer.teacher.reference import (
    BYTES_PER_TOKEN,
    VERSION,
    BaseReference,
    is_whole,
    publish,
    references_folder,
)

_LOG = logging.getLogger(__name__)
LINE_EVERY_S = 10.0


def open_reference(
    config: RunConfig,
    engine: Engine,
    group: Group,
    flash: bool,
    stores: Mapping[str, Store],
    packs: Mapping[int, Int64s],
    base_digest: str,
    pad_id: int,
) -> BaseReference:
    """Return what the base says of replay packs, by number of the source; ask it when nobody has before.

    The engine must hold the base: call this before a checkpoint is loaded, resumed runs included.

    Raises:
        DataError: The disk has no room, or a rank cannot write there.
    """
    key, described = describe(config, stores, packs, base_digest)
    references = references_folder(cache_folder(config.data))
    folder = references / key
    splits = [store.train for store in stores.values()]
    num_rows = sum(int(splits[source].pack_targets[packs[source]].sum()) for source in packs)
    if group.from_first(lambda: is_whole(folder)):
        _LOG.info("What the base model says of %d replay tokens is known (%s).", num_rows, key[:12])
    else:
        if group.is_first and folder.exists():
            _LOG.warning("%s is damaged: the base model is asked again.", folder)
        num_top = config.replay.kl.top
        num_packs = sum(map(len, packs.values()))
        group.from_first(lambda: check_room(folder, num_rows, num_top))
        with ExitStack() as stack:
            stack.enter_context(cache_explained(config.data.cache_dir, "the base model's log-probabilities"))
            group.from_first(lambda: clear_leftovers(references))
            work: Path = group.from_first(lambda: stack.enter_context(staged(folder)))
            write_reference(
                engine,
                group,
                flash,
                splits,
                {source: found.tolist() for source, found in packs.items()},
                num_top,
                config.evaluate.micro_batch_size,
                pad_id,
                work,
                stack.enter_context(_progress(num_packs, group.is_first)),
            )
            group.from_first(lambda: publish(work, folder, described, group.world_size))
    return BaseReference(folder, {source: place for place, source in enumerate(packs)})


def describe(
    config: RunConfig, stores: Mapping[str, Store], packs: Mapping[int, Int64s], base_digest: str
) -> tuple[str, dict[str, object]]:
    """Return the key of a reference and what it is a digest of."""
    digests = [store.digest for store in stores.values()]
    described: dict[str, object] = {
        "version": VERSION,
        "base": base_digest,
        "dtype": config.zero.dtype,
        "top": config.replay.kl.top,
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


@contextmanager
def _progress(num_packs: int, is_first: bool) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how many packs are done: a bar on a terminal, a line every ten seconds elsewhere."""
    console = Console(file=sys.stderr)
    if not is_first or not console.is_terminal:
        last = time.monotonic()

        def show(done: int) -> None:
            nonlocal last
            if is_first and time.monotonic() - last >= LINE_EVERY_S:
                last = time.monotonic()
                _LOG.info("Base model on replay: %d of %d packs.", done, num_packs)

        yield show
        return
    columns = (TextColumn("base model on replay"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("packs", total=num_packs)
        yield lambda done: bar.update(task, completed=done)
