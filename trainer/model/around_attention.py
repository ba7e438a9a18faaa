"""What is done around each call of a model's attention: told to it by a keyword that transformers hands on.

The keyword goes from a model's body through its layers with everything else that they hand to attention, so that a
layer that is recomputed has it too. Ranks that share a pack exchange heads there, and answers that share a prompt get
its keys.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.errors import ModelError

ARGUMENT = "around_attention"
"""Under which layers hand it on."""
Attend = Callable[..., Any]
"""An attention of transformers: takes queries, keys and values [B, heads, T, size]; gives [B, T, heads, size]."""


@dataclass(slots=True)
class AttentionCall:
    """A call of an attention as a layer makes it."""

    attend: Attend
    module: Any
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    others: tuple[Any, ...]
    options: dict[str, Any]

    @classmethod
    def of(
        cls,
        attend: Attend,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *others: Any,
        **options: Any,
    ) -> AttentionCall:
        """Take what a layer gives, by place or by name."""
        return cls(attend, module, query, key, value, attention_mask, others, options)

    def answered(self) -> Any:
        """Call attention."""
        states = self.query, self.key, self.value
        return self.attend(self.module, *states, self.mask, *self.others, **self.options)


class AroundAttention(Protocol):
    """Something that is done around every call of attention of a pass."""

    num_calls: int
    """Calls so far."""

    def attend(self, call: AttentionCall) -> Any:
        """Call attention, and return what it returns.

        Raises:
            ModelError: It cannot be done around a call with these options.
        """

    def refusal(self, model_type: str, num_missed: int, num_layers: int) -> str:
        """Return the sentence about a model of which so many layers never came here."""


def told(attend: Attend) -> Attend:
    """Return an attention of transformers around which something is done where it is told so; else it is as before."""

    @functools.wraps(attend)
    def attend_told(*args: Any, **options: Any) -> Any:
        around: AroundAttention | None = options.pop(ARGUMENT, None)
        if around is None:
            return attend(*args, **options)
        return around.attend(AttentionCall.of(attend, *args, **options))

    return attend_told


def let_attention_be_told(name: str, key: str, value: str, given: str) -> None:
    """Make an attention of transformers heed the keyword, once, for all models of this process.

    Args:
        key: Of the configuration, that asks for it.
        value: With which it does not.
        given: Its value, in words.

    Raises:
        ModelError: Its code is in the model's own file (eager attention).
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if name not in ALL_ATTENTION_FUNCTIONS:
        raise ModelError(
            f"`{key}` must be {value} with {name} attention, which is in the model's own code, but is {given} instead. "
            f"Set {key}={value}, or train where there is a flash attention that the model takes."
        )
    attend = ALL_ATTENTION_FUNCTIONS[name]
    if not hasattr(attend, "__wrapped__"):
        ALL_ATTENTION_FUNCTIONS.register(name, told(attend))


@contextlib.contextmanager
def around_all(around: AroundAttention | None, model: Any) -> Iterator[None]:
    """Refuse a model of which not every layer's attention is told in the forward pass within.

    Args:
        around: None: nothing is done, and nothing is asked.

    Raises:
        ModelError: Some are not, or do not run because of it.
    """
    if around is None:
        yield
        return
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if around.num_calls:
            raise
        raise _not_all(around, model.config) from error
    if around.num_calls != model.config.get_text_config().num_hidden_layers:
        raise _not_all(around, model.config)


def _not_all(around: AroundAttention, hf_config: Any) -> ModelError:
    text = hf_config.get_text_config()
    num_layers = text.num_hidden_layers
    return ModelError(around.refusal(text.model_type, num_layers - around.num_calls, num_layers))
