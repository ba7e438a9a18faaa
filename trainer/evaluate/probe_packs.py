"""Documents of all kinds of probes in packs as a run reads them. Kinds share packs: little of them is padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from trainer.data.types import Pack, Unit
from trainer.evaluate.probe_texts import ProbeTokens


class ProbePacks:
    """Packs of documents one after the other; a document that is longer than a pack is cut."""

    unit = Unit.document

    def __init__(self, probes: Sequence[ProbeTokens], seq_len: int) -> None:
        """Lay the documents out."""
        self.seq_len = seq_len
        self.kinds = [probe.kind for probe in probes for _ in probe.tokens]
        """Of each document."""
        self.numbers = [number for probe in probes for number in range(len(probe.tokens))]
        """Of each document within its kind."""
        self.num_bytes = np.array([size for probe in probes for size in probe.num_bytes], dtype=np.int64)
        """UTF-8 bytes of what is supervised of each document, its cuts left out of account."""
        self._laid: list[list[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.bool_]]]] = []
        documents = (pair for probe in probes for pair in zip(probe.tokens, probe.supervised, strict=True))
        room = 0
        for number, (ids, marks) in enumerate(documents):
            for start in range(0, len(ids), seq_len):
                part = ids[start : start + seq_len], marks[start : start + seq_len]
                if len(part[0]) > room:
                    self._laid.append([])
                    room = seq_len
                self._laid[-1].append((number, *part))
                room -= len(part[0])
        self.num_packs = len(self._laid)

    @property
    def kinds_in_order(self) -> list[str]:
        """Return each kind once."""
        return list(dict.fromkeys(self.kinds))

    def documents_of_kind(self, kind: str) -> list[int]:
        """Return the numbers of the documents of a kind."""
        return [number for number, one in enumerate(self.kinds) if one == kind]

    def named(self, document: int) -> tuple[str, int]:
        """Return the kind of a document and its number within it."""
        return self.kinds[document], self.numbers[document]

    def pack(self, index: int) -> Pack:
        """Return a pack."""
        laid = self._laid[index]
        return Pack(
            np.concatenate([ids for _, ids, _ in laid]),
            np.concatenate([marks for _, _, marks in laid]),
            [len(ids) for _, ids, _ in laid],
        )

    def documents_of(self, index: int) -> npt.NDArray[np.int64]:
        """Return the number of the document of each piece of a pack."""
        return np.array([number for number, _, _ in self._laid[index]], dtype=np.int64)
