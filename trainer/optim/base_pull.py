"""Decoupled decay towards the weights that training began with: w <- w - lr * base_decay * (w - w0).

It follows AdamW's update of a step, on the float32 masters, before they are rounded to the weights' dtype; a step that
is not applied pulls nothing, and the moments never see it.

Source: L2-SP (Li et al. 2018, arXiv:1802.01483) adds (w - w0)^2 to the loss, with SGD. Here it is decoupled from Adam's
scaling as weight decay is in AdamW (Loshchilov and Hutter, arXiv:1711.05101): both together, measured by neither.

One mechanism is enough. A pull w <- w + a (w0 - w) every N steps shrinks the way from the base by 1 - a; so does the
decay over those steps, where the shares lr * base_decay of all of them leave as much (test_base_pull.py).
What sets such pulls apart is the last one, after which nothing is learnt any more, and that is `export.alpha`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

CHUNK = 2**24
"""Elements pulled at once, so that their start in float32 takes 64 MB and not as much as the weights."""


class BasePull:
    """What the masters of this rank began as, and the pull towards it; a hook of the optimizer after its steps."""

    def __init__(self, masters: Iterable[Tensor], dtype: torch.dtype, decay: float) -> None:
        """Copy the masters, in `dtype` where it holds them exactly: weights that were read in bf16 take half.

        Args:
            masters: Flat or whole tensors that the optimizer updates, as training begins.
            dtype: Of the weights.
            decay: `optim.base_decay`.
        """
        self._decay = decay
        self._starts = {id(master): (master, _narrow(master.detach(), dtype)) for master in masters}

    @property
    def num_bytes(self) -> int:
        """Return what the start takes on this rank."""
        return sum(start.numel() * start.element_size() for _, start in self._starts.values())

    def stop(self) -> None:
        """Pull nothing any more."""
        self._decay = 0.0

    def __call__(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Pull what the optimizer has just updated."""
        for group in optimizer.param_groups:
            self.pull(group)

    @torch.no_grad()
    def pull(self, group: dict[str, Any]) -> None:
        """Pull the masters of a group by its learning rate.

        Raises:
            KeyError: One was not there when training began.
        """
        share = float(group["lr"]) * self._decay
        if not share:
            return
        for master in group["params"]:
            held, start = self._starts[id(master)]
            assert held is master, "a master of the optimizer was replaced by another tensor"
            now, then = master.view(-1), start.view(-1)
            for begin in range(0, now.numel(), CHUNK):
                part = now[begin : begin + CHUNK]
                # lerp keeps w where w is w0, to the bit, which w * (1 - share) + w0 * share does not.
                part.lerp_(then[begin : begin + CHUNK].to(part.dtype), share)


def _narrow(master: Tensor, dtype: torch.dtype) -> Tensor:
    narrow = master.to(dtype, copy=True)
    return narrow if torch.equal(narrow.to(master.dtype), master) else master.clone()
