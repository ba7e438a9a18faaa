"""A micro-batch on the device, in the layout that the attention implementation wants.

Shapes: B packs, T sequence, N = B*T, R rows of width W.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trainer.data.pack.collate import MicroBatch
from trainer.data.pack.pack import row_width
from trainer.model.around_attention import ARGUMENT
from trainer.model.masks import block_mask, with_prefixes
from trainer.model.shared_prompts import shared_prompts


def model_inputs(
    batch: MicroBatch, device: torch.device, flash: bool, carries: bool = False
) -> dict[str, Any]:
    """Move a micro-batch to the device in the layout the attention implementation wants.

    Flash attention gets one row of all packs with explicit int32 `cu_seq_lens` and a Python-int
    maximum, so that transformers need not look for boundaries with a device synchronisation in
    every layer. SDPA gets a block-diagonal causal mask, of which the objective makes those of windows. Where answers
    share a prompt, it is in the mask, and flash attention is told around its call.

    Args:
        carries: Layers carry something along a row. Kernels of convolutions and scans take `seq_idx`, the document of
            each token, and those of linear attention `cu_seq_lens_q`; code without kernels heeds neither.
    """
    tokens = torch.from_numpy(batch.tokens_BT)
    positions = torch.from_numpy(batch.positions_BT)
    segments = torch.from_numpy(batch.segments_BT)
    if flash:
        tokens, positions, segments = (each.reshape(1, -1) for each in (tokens, positions, segments))
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
        if batch.shares_prompts:
            inputs[ARGUMENT] = shared_prompts(
                batch.cu_seq_lens, batch.prefixes_S, batch.firsts_S, lambda numbers: moved(numbers, device)
            )
    else:
        on_device_BT = move(segments, device)
        mask = block_mask(on_device_BT)
        if batch.shares_prompts:
            of_segment = (batch.firsts_S[batch.segments_BT], batch.prefixes_S[batch.segments_BT])
            first_BT, prefix_BT = (moved(numbers, device) for numbers in of_segment)
            mask = with_prefixes(mask, on_device_BT, inputs["position_ids"], first_BT, prefix_BT)
        inputs["attention_mask"] = mask
    if carries:
        inputs["seq_idx"] = move(segments.int(), device)
    return inputs


def row_inputs(batch: MicroBatch, device: torch.device) -> dict[str, Any]:
    """Move a micro-batch to the device with a row for every piece, for models that carry something along a row.

    The rows of a pack go through the model together. Padding stands at their end, so that no document sees any in
    layers that look back; the model is given nothing else and makes its own masks.

    Returns:
        `rows`, token ids [R, W] of each call of the model, and `place_N`, where among the positions of all calls each
        position of the packs is; padding of packs has no place and is given that of the first token.
    """
    num_packs, seq_len = batch.tokens_BT.shape
    place_BT = np.zeros((num_packs, seq_len), dtype=np.int64)
    calls = [range(num_packs)] if batch.is_one_call else [range(pack, pack + 1) for pack in range(num_packs)]
    rows: list[Tensor] = []
    before = 0
    for packs in calls:
        lengths = [length for pack in packs for length in batch.lengths_B[pack]]
        width = int(row_width(max(lengths), seq_len))
        # Any token pads: nothing that counts sees it.
        tokens_RW = np.full((len(lengths), width), batch.tokens_BT[packs[0], 0], dtype=np.int64)
        row = 0
        for pack in packs:
            start = 0
            for length in batch.lengths_B[pack]:
                piece = slice(start, start + length)
                tokens_RW[row, :length] = batch.tokens_BT[pack, piece]
                place_BT[pack, piece] = before + row * width + np.arange(length)
                row, start = row + 1, start + length
        rows.append(move(torch.from_numpy(tokens_RW), device))
        before += tokens_RW.size
    return {"rows": rows, "place_N": move(torch.from_numpy(place_BT.reshape(-1)), device)}


def labels_of(batch: MicroBatch, device: torch.device) -> Tensor:
    """Move the labels to the device."""
    return move(torch.from_numpy(batch.labels_BT), device)


def moved(numbers: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Copy an array of the host to the device without waiting for it."""
    return move(torch.from_numpy(numbers), device)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting for it: from pageable memory the host would wait for the stream."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor
