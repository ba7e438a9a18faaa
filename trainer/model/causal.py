"""A Hugging Face causal model as the engine holds it: packed inputs and a question in, the answer out.

Shapes: B packs, T sequence, N positions of all packs, R rows of width W, H hidden.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn

from trainer.errors import ModelError
from trainer.model.around_attention import ARGUMENT, around_all
from trainer.model.balance import Balance
from trainer.model.body import body_of, cache_argument, keeps_state_alone
from trainer.model.choice_bias import ChoiceBias
from trainer.model.expert_load import ExpertLoad
from trainer.model.head.ask import Ask, OwnLogits, Scores
from trainer.model.head.nll import Nll
from trainer.model.masks import layer_masks
from trainer.model.scorer import output_layer
from trainer.model.token_slices import TokenSlices


class CausalLM(nn.Module):
    """A causal model whose output layer is a LossHead."""

    def __init__(
        self,
        lm: nn.Module,
        virtual: nn.Module | None = None,
        scores: nn.Module | None = None,
        balance: Balance | None = None,
        expert_load: ExpertLoad | None = None,
        choice_bias: ChoiceBias | None = None,
    ) -> None:
        """Take the model, what puts virtual tokens before its documents, and a layer [H -> 1] that scores positions.

        Args:
            balance: Works out the routers' loss of what is asked with a gradient; None: it is no part of training.
            expert_load: Counts where tokens of what is asked with a gradient are sent.
            choice_bias: Moves the biases of routers between steps, by those counts.
        """
        super().__init__()
        self.lm = lm
        self.virtual = virtual
        self.scores = scores
        self.balance = balance
        self.expert_load = expert_load
        self.choice_bias = choice_bias

    def forward(self, ask: Ask[Any], **inputs: Any) -> Any:
        """Answer a question about packed text; `Engine.forward` gives the answer its type.

        Args:
            inputs: What the model takes; a cache in `past_key_values` is filled in place. A mask of pairs
                becomes one for each kind of layer. Or `rows` and `place_N` of engine/model_inputs.py.
                With `around_attention` something is done around attention; with TokenSlices there this rank computes
                its slice of the tokens, and the rest is of whole packs.
                `is_token_N` tells the routers' loss, and what counts the tokens of experts, what is no padding.
        Raises:
            ModelError: Scores are asked of a model without a score head.
        """
        lm = cast(Any, self.lm)
        use_cache = inputs.get("past_key_values") is not None
        if isinstance(ask, OwnLogits):
            silent = {} if self.balance is None else {"output_router_logits": False}
            return lm(use_cache=use_cache, **silent, **inputs).logits
        is_token_N = inputs.pop("is_token_N", None)
        slices = _slices(inputs)
        if slices is not None:
            return self._of_slices(ask, self._hidden(inputs, use_cache, is_token_N)[0], slices)
        if "rows" in inputs:
            hidden = self._of_rows(is_token_N=is_token_N, **inputs)
        else:
            hidden, routers = self._hidden(inputs, use_cache, is_token_N)
            self._weigh(routers, is_token_N)
        if isinstance(ask, Scores):
            if self.scores is None:
                raise ModelError(
                    "This model must have a score head to score positions, but has none instead."
                )
            return self.scores(hidden.reshape(-1, hidden.shape[-1])[ask.rows_K])[:, 0]
        return output_layer(lm)(hidden, ask=ask)

    def _of_slices(self, ask: Ask[Any], hidden: Tensor, slices: TokenSlices) -> Any:
        """Answer from hidden states [B, T / ranks, H] of this rank's slices. Collective: the ranks of their group.

        Losses of tokens are zero beside the slice where they have a gradient, so that those of the ranks add up to
        what is asked. Everything else is asked without one, and every rank gets all of it.
        """
        head = output_layer(self.lm)
        if not isinstance(ask, Nll):
            if torch.is_grad_enabled() or isinstance(ask, Scores):
                raise ModelError(
                    f"Slices must be asked for losses, but {type(ask).__name__} is asked instead."
                )
            return head(slices.joined(hidden), ask=ask)
        num_packs, num_tokens = hidden.shape[:2]
        loss_sum, nll_M = head(hidden, ask=ask.within(slices, num_packs))
        nll_N = slices.placed(nll_M.reshape(num_packs, num_tokens)).reshape(-1)
        if torch.is_grad_enabled():
            return loss_sum, nll_N
        return slices.summed(loss_sum), slices.summed(nll_N)

    def _of_rows(self, rows: Sequence[Tensor], place_N: Tensor, is_token_N: Tensor | None) -> Tensor:
        """Return hidden states [1, N, H] in the order of the packs, of rows [R, W] that the model sees one by one."""
        sizes = [tokens_RW.numel() for tokens_RW in rows]
        is_token_M, masks = None, [None] * len(rows)
        if is_token_N is not None:  # padding of packs has the place of a token, and adds nothing there
            ones_M = torch.zeros(sum(sizes), dtype=torch.int64, device=place_N.device)
            is_token_M = ones_M.index_add_(0, place_N, is_token_N.long()) > 0
            masks = list(is_token_M.split(sizes))  # type: ignore[no-untyped-call, unused-ignore]
        found = [
            self._hidden({"input_ids": tokens_RW}, use_cache=False, is_token_N=mask)
            for tokens_RW, mask in zip(rows, masks, strict=True)
        ]
        if is_token_M is not None:
            routers = tuple(map(torch.cat, zip(*(routers for _, routers in found), strict=True)))
            self._weigh(routers, is_token_M)
        return torch.cat([hidden.flatten(0, 1) for hidden, _ in found])[place_N][None]

    def _weigh(self, routers: tuple[Tensor, ...], is_token_N: Tensor | None) -> None:
        """Tell the routers' loss what the routers of each layer said."""
        if self.balance is not None and torch.is_grad_enabled():
            self.balance.add(routers, is_token_N)

    def _heard(self, is_token_N: Tensor | None) -> AbstractContextManager[None]:
        """Count the tokens of experts meanwhile, of what trains: asked with a gradient, and told what is padding."""
        if self.expert_load is None or is_token_N is None or not torch.is_grad_enabled():
            return contextlib.nullcontext()
        return self.expert_load.hearing(is_token_N)

    def _hidden(
        self, inputs: dict[str, Any], use_cache: bool, is_token_N: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return hidden states of what is given, those of virtual tokens apart, and logits of routers if they count."""
        lm, num_added = cast(Any, self.lm), 0
        if self.balance is not None:
            inputs["output_router_logits"] = torch.is_grad_enabled()
        if self.virtual is not None:
            inputs, num_added = self.virtual(inputs)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            dtype = lm.get_input_embeddings().weight.dtype
            inputs["attention_mask"] = layer_masks(lm.config, mask, inputs["position_ids"], dtype)
        slices = _slices(inputs)
        if slices is not None:
            whole = inputs["input_ids"]
            inputs |= {name: slices.own(inputs[name]) for name in ("input_ids", "position_ids")}
            if is_token_N is not None:
                is_token_N = slices.own(is_token_N.reshape(whole.shape)).reshape(-1)
        body = body_of(lm)
        if use_cache:
            inputs[cache_argument(body)] = inputs.pop("past_key_values")
            if mask is not None and keeps_state_alone(body):
                # A state has no keys to mask: only padding among what is given counts, and Mamba 1 takes no wider mask.
                inputs["attention_mask"] = mask[:, -inputs["input_ids"].shape[1] :]
        with self._heard(is_token_N), around_all(inputs.get(ARGUMENT), lm):
            found = body(use_cache=use_cache, **inputs)
        hidden: Tensor = found.last_hidden_state
        return hidden[:, num_added:], getattr(found, "router_logits", None) or ()


def _slices(inputs: dict[str, Any]) -> TokenSlices | None:
    """Return how ranks share the tokens of a pass; None where each has packs of its own."""
    around = inputs.get(ARGUMENT)
    return around if isinstance(around, TokenSlices) else None
