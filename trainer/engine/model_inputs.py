"""A micro-batch on the device, in the layout that the attention implementation wants.

Shapes: B packs, T sequence.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.data.pack.collate import MicroBatch
from trainer.model.masks import block_mask


def model_inputs(batch: MicroBatch, device: torch.device, flash: bool) -> dict[str, Any]:
    """Move a micro-batch to the device in the layout the attention implementation wants.

    Flash attention gets one row of all packs with explicit int32 `cu_seq_lens` and a Python-int
    maximum, so that transformers need not look for boundaries with a device synchronisation in
    every layer. SDPA gets a block-diagonal causal mask, of which the objective makes those of windows.
    """
    tokens = torch.from_numpy(batch.tokens_BT)
    positions = torch.from_numpy(batch.positions_BT)
    if flash:
        tokens, positions = tokens.reshape(1, -1), positions.reshape(1, -1)
    inputs: dict[str, Any] = {
        "input_ids": move(tokens, device),
        "position_ids": move(positions, device),
    }
    if flash:
        boundaries = move(torch.from_numpy(batch.cu_seq_lens), device)
        inputs |= {
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "max_length_q": batch.max_seq_len,
            "max_length_k": batch.max_seq_len,
        }
    else:
        inputs["attention_mask"] = block_mask(move(torch.from_numpy(batch.segments_BT), device))
    return inputs


def labels_of(batch: MicroBatch, device: torch.device) -> Tensor:
    """Move the labels to the device."""
    return move(torch.from_numpy(batch.labels_BT), device)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it: from pageable memory the host would wait for the stream."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
