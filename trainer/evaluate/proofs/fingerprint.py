"""A logits fingerprint: what the trained model answers on a fixed text, stored with every checkpoint.

A resumed model must give the same logits before it takes a step, and an exported one within rounding.
Source: GPT-NeoX's checkpoint_validation_with_forward_pass; here always on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from trainer.data.pack.collate import collate
from trainer.data.store.store import Store
from trainer.data.types import Pack
from trainer.engine.policy import Policy
from trainer.errors import DamagedError, DataError, SelfCheckError

NUM_TOKENS = 64
NUM_KEPT = 16
"""Last positions whose logits are kept: 16 x 128k x 4 bytes is 8 MB."""

OTHER_DEVICE_LIMIT = 0.15
"""What `difference` may be between kinds of device: their kernels round differently. SmolLM2 in bf16 is 0.033
from itself in float32 (H200), so two devices are some 0.05 apart. Finds gross errors only; on the same kind
nothing may move."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Tokens [T] int64 and the logits [K, V] float32 of the last K positions; of a reward model scores [K, 1]."""

    tokens_T: torch.Tensor
    logits_KV: torch.Tensor

    @property
    def is_finite(self) -> bool:
        """Tell whether the model answered in numbers."""
        return bool(torch.isfinite(self.logits_KV).all())


def probe_tokens(stores: Iterable[Store]) -> np.ndarray:
    """Return the fixed text of a run's fingerprint: the first pack there is, held out or not.

    Raises:
        DataError: There is none.
    """
    for store in stores:
        for split in (store.validation, store.train):
            if split.num_packs:
                return np.asarray(split.pack(0).tokens[:NUM_TOKENS], dtype=np.int64)
    raise DataError("`data.sources` must hold at least one document, but hold none instead. Add data.")


def take_fingerprint(policy: Policy, tokens: np.ndarray) -> Fingerprint:
    """Run the model on the fixed text. Collective: every rank, same text."""
    pack = Pack(tokens=tokens, supervised=np.ones(len(tokens), dtype=bool), lengths=[len(tokens)])
    micro = collate([pack], [0], len(tokens), 0)
    with policy.evaluating():
        kept = policy.logits(micro)[-NUM_KEPT:].float().cpu()
    return Fingerprint(torch.from_numpy(tokens.copy()), kept)


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write a fingerprint as safetensors."""
    save_file({"tokens": fingerprint.tokens_T, "logits": fingerprint.logits_KV}, str(path))


def read_fingerprint(path: Path) -> Fingerprint:
    """Read a fingerprint.

    Raises:
        DamagedError: It holds what no run writes, whoever sealed it.
        OSError, SafetensorError: It cannot be read.
    """
    tensors = load_file(str(path))
    if tensors.keys() == {"tokens", "logits"}:
        tokens_T, logits_KV = tensors["tokens"], tensors["logits"]
        shapes_fit = tokens_T.ndim == 1 and logits_KV.ndim == 2 and 0 < len(logits_KV) <= len(tokens_T)
        kinds_fit = tokens_T.dtype is torch.int64 and logits_KV.dtype is torch.float32
        if shapes_fit and kinds_fit and int(tokens_T.min()) >= 0:
            num_tokens = logits_KV.shape[1] if logits_KV.shape[1] > 1 else None  # scores do not tell
            if num_tokens is None or int(tokens_T.max()) < num_tokens:
                return Fingerprint(tokens_T, logits_KV)
    raise DamagedError(
        f"{path} must hold tokens and what a model answered to them, but holds something else instead. Bring the "
        "checkpoint back from its source, or go on from another."
    )


def difference(expected_KV: torch.Tensor, actual_KV: torch.Tensor) -> float:
    """Return the RMS difference of logits as a share of their RMS deviation from each position's mean.

    Of scores, one a position, from the mean of all positions.
    """
    spread = expected_KV - expected_KV.mean(dim=-1 if expected_KV.shape[-1] > 1 else 0, keepdim=True)
    scale = max(float(spread.square().mean().sqrt()), 1e-30)
    return float((expected_KV - actual_KV).square().mean().sqrt()) / scale


def check_same(expected: Fingerprint, actual: Fingerprint, is_same_device: bool) -> float:
    """Raise unless a resumed model answers as the saved one did: exactly on the same kind of device.

    Raises:
        SelfCheckError: Something was lost between save and load.
    """
    shapes = expected.logits_KV.shape, actual.logits_KV.shape
    moved = difference(expected.logits_KV, actual.logits_KV) if shapes[0] == shapes[1] else math.inf
    allowed = 0.0 if is_same_device else OTHER_DEVICE_LIMIT
    if not moved <= allowed:
        raise SelfCheckError(
            f"The resumed model must answer as the saved one did, but its logits moved by {moved:.2e} of "
            f"their spread (allowed: {allowed:.1e}). The checkpoint does not hold what was trained."
        )
    return moved
