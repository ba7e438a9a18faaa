"""A model on its ranks: what it says of packed text, with a gradient or without.

The one thing that objectives, teachers, evaluation and proofs are given; replaces an engine, a mesh and a layout of
attention that travelled together.

Shapes: B packs, T sequence, N = B*T, S supervised tokens, K chosen positions, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from trainer.data.pack.collate import IGNORE, MicroBatch
from trainer.dist.mesh import Mesh
from trainer.engine.engine import Engine, undivided
from trainer.engine.model_inputs import labels_of, model_inputs, move, row_inputs
from trainer.model.around_attention import ARGUMENT
from trainer.model.balance import Balance
from trainer.model.choice_bias import ChoiceBias
from trainer.model.expert_load import ExpertLoad
from trainer.model.head.ask import Ask, Logits, Scores
from trainer.model.head.comparison import Comparison
from trainer.model.head.divergence import TopTokens
from trainer.model.head.log_probs import LogProbs
from trainer.model.head.nll import Nll
from trainer.model.head.top import Top
from trainer.model.token_slices import TokenSlices

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Losses:
    """Cross-entropy of a micro-batch in nats; only the sum has a gradient."""

    loss_sum: Tensor
    """Over supervised tokens, with beta times the KL to a teacher where there is one; packs may have weights."""
    nll_N: Tensor
    """0 where nothing is supervised."""
    kl_R: Tensor | None
    """KL to the teacher at its positions; None without one."""


@dataclass(frozen=True, slots=True)
class Policy:
    """An engine, the ranks it runs on and how its attention is told of documents.

    Every method that runs the model is collective under ZeRO-3: every rank, as many times.
    """

    engine: Engine
    mesh: Mesh
    is_flash: bool
    """Attention takes cu_seq_lens and no mask."""
    in_rows: bool = False
    """Every piece of a pack is a row of its own, and the model makes its own masks."""
    carries: bool = False
    """Layers carry something along a row, so their kernels are told of documents too."""

    @property
    def module(self) -> nn.Module:
        """Return the model itself."""
        return self.engine.module

    @property
    def device(self) -> torch.device:
        """Return what this rank computes on."""
        return self.mesh.device

    @property
    def balance(self) -> Balance | None:
        """Return what works out the routers' loss; None where it is no part of training."""
        found = getattr(self.module, "balance", None)
        return found if isinstance(found, Balance) else None

    @property
    def expert_load(self) -> ExpertLoad | None:
        """Return what counts the tokens of experts; None without experts."""
        found = getattr(self.module, "expert_load", None)
        return found if isinstance(found, ExpertLoad) else None

    @property
    def choice_bias(self) -> ChoiceBias | None:
        """Return what moves the biases of routers; None where they stay."""
        found = getattr(self.module, "choice_bias", None)
        return found if isinstance(found, ChoiceBias) else None

    @property
    def slices(self) -> TokenSlices | None:
        """Return how ranks share the tokens of one pass; None where each has packs of its own."""
        sequence = self.mesh.sequence
        return TokenSlices(sequence, self.mesh.sequence_group) if sequence.size > 1 else None

    def row_length(self, num_tokens: int) -> int:
        """Return the length of the shortest row for so many tokens that ranks can share."""
        return -(-num_tokens // self.mesh.sequence.size) * self.mesh.sequence.size

    def evaluating(self) -> AbstractContextManager[None]:
        """Run without gradients and dropout, then go back to training."""
        return self.engine.evaluating()

    @contextlib.contextmanager
    def differentiating(self) -> Iterator[Policy]:
        """Give this policy past DeepSpeed, to use `torch.autograd.grad` of its answers; nothing of them counts.

        Neither tokens of experts nor losses of routers do. As Engine.differentiating; collective under ZeRO-3.
        """
        load = self.expert_load
        with contextlib.ExitStack() as stack:
            module = stack.enter_context(self.engine.differentiating())
            if self.balance is not None:
                stack.enter_context(self.balance.unseen())
            if load is not None:
                cast(Any, module).expert_load = None
                stack.callback(setattr, module, "expert_load", load)
            yield dataclasses.replace(self, engine=undivided(module, self.engine.stage))

    def answer(self, ask: Ask[A], micro: MicroBatch) -> A:
        """Ask something about a micro-batch."""
        return self.engine.forward(ask, **self.inputs(micro))

    def inputs(self, micro: MicroBatch) -> dict[str, Any]:
        """Return what the model takes of a micro-batch, on the device.

        Ranks share its tokens where they divide them; a row of another length each computes by itself.
        """
        inputs = (
            row_inputs(micro, self.device)
            if self.in_rows
            else model_inputs(micro, self.device, self.is_flash, self.carries)
        )
        if (self.balance is not None or self.expert_load is not None) and micro.num_tokens:
            is_token_BT = micro.units_S[micro.segments_BT] >= 0
            inputs["is_token_N"] = move(torch.from_numpy(is_token_BT.reshape(-1)), self.device)
        slices = self.slices
        if slices is not None and micro.tokens_BT.shape[1] % slices.axis.size == 0:
            inputs[ARGUMENT] = slices
        return inputs

    def answer_raw(self, ask: Ask[A], **inputs: Any) -> A:
        """Ask something about inputs that are no pack: a document with the model's own mask, a generation."""
        return self.engine.forward(ask, **inputs)

    def nll(
        self, micro: MicroBatch, teacher: TopTokens | None = None, weights_B: Sequence[float] | None = None
    ) -> Losses:
        """Return the losses of a micro-batch; their gradient is made in the forward pass.

        Args:
            weights_B: What a token of each pack counts in the sum; None: all alike.

        Where ranks share its tokens and a gradient is made, those of this rank's slice: the sum over ranks is all.
        """
        weights_N: Tensor | None = None
        if weights_B is not None:
            weights = np.repeat(np.array(weights_B, dtype=np.float32), micro.labels_BT.shape[1])
            weights_N = move(torch.from_numpy(weights), self.device)
        ask = Nll(labels_of(micro, self.device).reshape(-1), teacher, weights_N)
        loss_sum, nll_N, *kl = self.answer(ask, micro)
        return Losses(loss_sum, nll_N, kl[0] if kl else None)

    def log_probs(self, micro: MicroBatch) -> Tensor:
        """Return log p of every supervised token [S], float32, differentiable, in the order of the flattened batch.

        Their logits exist a chunk at a time, in both passes.
        """
        labels_N = micro.labels_BT.reshape(-1)
        rows_S = np.flatnonzero(labels_N != IGNORE)
        ask = LogProbs(*(move(torch.from_numpy(found), self.device) for found in (rows_S, labels_N[rows_S])))
        return self.answer(ask, micro)

    def scores(self, micro: MicroBatch, rows_K: Tensor) -> Tensor:
        """Return what the score head says at positions of the flattened batch [K], differentiable."""
        return self.answer(Scores(rows_K), micro)

    def top(self, micro: MicroBatch, num_top: int, how: Comparison | None = None) -> tuple[Tensor, Tensor]:
        """Return ids [S, K] int32 and log-probabilities [S, K] float32 of the most likely tokens, as a teacher does.

        Args:
            how: What is to be compared; then the logarithm of the rest's mass stands behind them.
        """
        return self.answer(Top(labels_of(micro, self.device).reshape(-1), num_top, how), micro)

    def logits(self, micro: MicroBatch, keep_K: Tensor | None = None) -> Tensor:
        """Return logits [N, V], or [K, V] of some positions of the flattened batch: whole, so keep few."""
        logits = self.answer(Logits(keep_K), micro)
        return logits.reshape(-1, logits.shape[-1])
