"""Rules about the model that a run begins with. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from trainer.config.model import ModelConfig, ModelKind
from trainer.config.options import group_options
from trainer.config.rule import Problem, must, problem


def is_day(text: str) -> bool:
    """Tell whether a text is a day as YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def model_problems(model: ModelConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    if model.kind is ModelKind.tiny:
        yield from _tiny_problems(model.tiny)
    if model.kind is ModelKind.pretrained and not model.path:
        names = ", ".join(name for name in group_options()["model"] if name != "none")
        yield problem(
            "model",
            f"must be given, but is none instead. Set model=NAME (one of {names}) or model.path=FOLDER.",
            is_open=True,
        )
    if model.kind is ModelKind.random and not model.path:
        yield must("model.path", "a name or folder for model.kind=random", "", "Set model.path=FOLDER.")
    if model.chat_template_date is not None and not is_day(model.chat_template_date):
        yield must(
            "model.chat_template_date",
            "a day as YYYY-MM-DD",
            model.chat_template_date,
            "Set model.chat_template_date=2026-11-28.",
        )
    if model.checkpoint_layers is not None and model.checkpoint_layers < -1:
        yield must(
            "model.checkpoint_layers",
            "-1 (all), 0, a count or null",
            model.checkpoint_layers,
            "Use -1 for all.",
        )
    if model.loss_chunk_tokens < 1:
        yield must("model.loss_chunk_tokens", "at least 1", model.loss_chunk_tokens, "Use 4096.")


def _tiny_problems(shape: dict[str, int]) -> Iterator[Problem]:
    known = ModelConfig().tiny
    for key in set(shape) - set(known):
        yield must(f"model.tiny.{key}", f"one of {', '.join(known)}", shape[key], "Remove it.")
    for key in known:
        if shape.get(key, 0) < 1:
            yield must(f"model.tiny.{key}", "at least 1", shape.get(key), f"Set {known[key]}.")
            return
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    if shape["hidden_size"] % (2 * heads):
        yield must(
            "model.tiny.hidden_size",
            f"a multiple of 2 x num_attention_heads = {2 * heads}",
            shape["hidden_size"],
            f"Set {16 * heads}.",
        )
    if heads % kv_heads:
        yield must("model.tiny.num_key_value_heads", f"a divisor of {heads}", kv_heads, "Set 1.")
