"""Fixed conversations about everyday things: how far a model's answers have moved on what it was not trained on."""

from __future__ import annotations

import json
from importlib import resources

import numpy as np
import numpy.typing as npt

from trainer.config.data import Format, SourceConfig
from trainer.data.tokens.tokenise import encode_batch
from trainer.data.types import Pack, RowBatch, TokenizerLike

FILE = "chat_prompts.json"


class ChatPrompts:
    """The conversations as packs of one document each, with the assistant's words supervised."""

    def __init__(self, tokenizer: TokenizerLike, seq_len: int) -> None:
        """Render and encode them; those longer than a sequence are left out and counted."""
        text = (resources.files("trainer.evaluate") / FILE).read_text(encoding="utf-8")
        rows = [
            {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}
            for asked, answered in json.loads(text)
        ]
        batch = RowBatch(FILE, "row", list(range(1, len(rows) + 1)), rows)
        encoded = encode_batch(batch, SourceConfig(format=Format.chat), False, tokenizer)
        ends = np.cumsum(encoded.lengths)
        self.seq_len = seq_len
        self._packs = [
            Pack(
                encoded.tokens[end - length : end].astype(np.int64),
                encoded.supervised[end - length : end].astype(np.bool_),
                [int(length)],
            )
            for end, length in zip(ends.tolist(), encoded.lengths.tolist(), strict=True)
            if length <= seq_len
        ]
        self.num_packs = len(self._packs)
        self.left_out = _left_out(len(rows), len(ends), self.num_packs, seq_len)
        """Which of them are not asked and why; None where all are."""
        self.refusal = f"{encoded.problems[0].value}" if encoded.problems and not len(ends) else None
        """What the chat template does to every one of them; None where it renders some."""

    def pack(self, index: int) -> Pack:
        """Return one conversation."""
        return self._packs[index]

    def documents_of(self, index: int) -> npt.NDArray[np.int64]:
        """Return the number of the conversation for its one piece."""
        return np.array([index], dtype=np.int64)


def _left_out(num_all: int, num_rendered: int, num_fit: int, seq_len: int) -> str | None:
    why = [
        *([f"{num_rendered - num_fit} do not fit data.seq_len={seq_len}"] if num_fit < num_rendered else []),
        *([f"the chat template renders {num_all - num_rendered} not"] if num_rendered < num_all else []),
    ]
    return f"{num_fit} of {num_all}: {', '.join(why)}" if why else None
