"""Refuses answers with labels that are all of one class: nothing could be told from them."""

from __future__ import annotations

from collections.abc import Mapping

from trainer.data.store.store import Store
from trainer.data.types import Unit
from trainer.errors import DataError


def check_labels(stores: Mapping[str, Store]) -> None:
    """Raise where the answers of all sources together have one label.

    Raises:
        DataError: Names the sources, how many answers they have, and which label.
    """
    of_answers = {name: store for name, store in stores.items() if store.train.unit is Unit.answer}
    counts = [
        sum(store.meta["counts"].get(key, 0) for store in of_answers.values())
        for key in ("desirable", "undesirable")
    ]
    if not of_answers or min(counts):
        return
    first = next(iter(of_answers))
    shown = " and ".join(f"data.sources.{name}" for name in of_answers)
    raise DataError(
        f"`data.sources.{first}.columns.label` must be true in some rows and false in others, but is "
        f"{'true' if counts[0] else 'false'} in all {sum(counts):,} answers of {shown} instead. Add rows of the other "
        "kind, or learn from them as format=completion."
    )
