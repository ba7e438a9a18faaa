"""Finds documents that are held out in one source and trained on in another."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trainer.data.store.store import Store
from trainer.errors import DataError


def check_disjoint(stores: Mapping[str, Store]) -> None:
    """Raise when a held-out document is also trained on: its loss would say nothing about the others.

    Documents are compared by their content after cleaning, whole. Within a source, and between sources
    with one held-out share, equal documents are on the same side by the way they are split.

    Raises:
        DataError: Names both sources and how many documents they share.
    """
    held_out = {name: store.validation.document_hashes() for name, store in stores.items()}
    for name, store in stores.items():
        trained = store.train.document_hashes()
        for other, hashes in held_out.items():
            if other == name or not len(trained) or not len(hashes):
                continue
            place = np.minimum(np.searchsorted(trained, hashes), len(trained) - 1)
            shared = int(np.count_nonzero(trained[place] == hashes))
            if shared:
                raise DataError(
                    f"`data.sources.{other}` must hold out documents that no source trains on, but {shared} of its "
                    f"{len(hashes)} held-out documents are also in the training part of `data.sources.{name}` "
                    "instead. Remove them from the files of one of the two; clean.min_chars drops headings and "
                    "other short ones that repeat by chance."
                )
