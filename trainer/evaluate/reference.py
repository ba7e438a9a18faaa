"""Ask the base model what it says of replay packs and write it down, a part by every rank.

Shapes: Q supervised positions of a pack, K tokens of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from trainer.data.order import PackRef
from trainer.data.reference import ReferenceWriter
from trainer.data.store import SplitStore
from trainer.dist.group import Group
from trainer.engine.build import Engine
from trainer.errors import DataError
from trainer.evaluate.held_out import read_batch, spread
from trainer.step import labels_of, model_inputs


def write_reference(
    engine: Engine,
    group: Group,
    flash: bool,
    stores: Sequence[SplitStore],
    packs: Mapping[int, Sequence[int]],
    num_top: int,
    micro_batch_size: int,
    pad_id: int,
    folder: Path,
    on_batch: Callable[[int], None],
) -> None:
    """Run the model over packs, by number of the source, and write its top tokens under a folder.

    Collective: every rank. One that cannot write goes on with the others and says so at the end, because they
    would wait for it for ever.

    Args:
        on_batch: Told how many packs all ranks have done.
    Raises:
        DataError: A rank could not write its part.
    """
    refs = [PackRef(source, int(pack), 0) for source in packs for pack in packs[source]]
    places = {source: place for place, source in enumerate(packs)}
    error: OSError | None = None
    writer: ReferenceWriter | None = None
    try:
        writer = ReferenceWriter(folder, group.rank)
    except OSError as problem:
        error = problem
    with engine.evaluating():
        for number, batch in enumerate(spread(refs, group.rank, group.world_size, micro_batch_size)):
            micro = read_batch(stores, batch, pad_id)
            ids_QK, log_probs_QK = engine.forward(
                labels=labels_of(micro, group.device),
                num_top=num_top,
                **model_inputs(micro, group.device, flash),
            )
            parts = zip(
                batch,
                torch.split(ids_QK.cpu(), micro.num_targets_B),
                torch.split(log_probs_QK.cpu(), micro.num_targets_B),
                strict=True,
            )
            try:
                for ref, ids, log_probs in parts:
                    if writer is not None and error is None and ref.source in places:
                        writer.add(places[ref.source], ref.pack, ids.numpy(), log_probs.numpy())
            except OSError as problem:
                error = problem
            on_batch(min((number + 1) * micro_batch_size * group.world_size, len(refs)))
    try:
        if writer is not None:
            writer.close()
    except OSError as problem:
        error = error or problem
    problems = [problem for problem in group.gather(error and f"rank {group.rank}: {error}") if problem]
    if problems:
        raise DataError(
            "`data.cache_dir` must be a folder with room that all ranks can write, but is not: "
            f"{problems[0]}. Set data.cache_dir to another one."
        )
