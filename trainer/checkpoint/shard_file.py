"""One file of a checkpoint's numbers: safetensors, written a tensor at a time and readable by anybody.

The library's own writer wants all tensors in host memory at once; a rank's share of an 8B model with its optimizer is
96 GB. Nothing in the format can run as code.

Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WEIGHT = "weight"
"""Kind of the parameters themselves, in float32 where the optimizer keeps them so."""
BUFFER = "buffer"
"""Kind of what a model remembers and does not train; whole."""
FACTS = "palimpsest"
"""Key of the file's metadata that holds the facts, as JSON."""
_DTYPES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
_SEPARATOR = "@"


@dataclass(frozen=True, slots=True)
class Fragment:
    """Neighbouring numbers of one tensor of the model, or of the optimizer's state of it."""

    kind: str
    """WEIGHT, BUFFER, or a name that the optimizer gives: `exp_avg`."""
    name: str
    """The parameter, by its name below the causal model."""
    begin: int
    """Where among the numbers of the whole tensor, laid out flat, the first one is."""
    values: Tensor
    """Flat, but for a buffer."""

    @property
    def key(self) -> str:
        """Return the name of the tensor in a file."""
        return f"{self.kind}/{self.name}{_SEPARATOR}{self.begin}"


def split_key(key: str) -> tuple[str, str, int]:
    """Return kind, name and begin of a tensor in a file."""
    kind, _, rest = key.partition("/")
    name, _, begin = rest.rpartition(_SEPARATOR)
    return kind, name, int(begin)


def write_shard(path: Path, fragments: Sequence[Fragment], facts: dict[str, Any]) -> None:
    """Write fragments, one in host memory at a time, and what else there is to know of them as plain values.

    Raises:
        OSError: The disk's own words.
    """
    # The widest numbers first, so that each tensor begins at a multiple of its width.
    ordered = sorted(fragments, key=lambda fragment: -fragment.values.element_size())
    header: dict[str, Any] = {"__metadata__": {"format": "pt", FACTS: json.dumps(facts)}}
    end = 0
    for fragment in ordered:
        values = fragment.values
        begin, end = end, end + values.numel() * values.element_size()
        header[fragment.key] = {
            "dtype": _DTYPES[values.dtype],
            "shape": list(values.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for fragment in ordered:
            flat = fragment.values.detach().cpu().contiguous().view(-1)
            file.write(flat.view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
