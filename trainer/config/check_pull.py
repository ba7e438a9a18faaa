"""Rules about the decay towards the weights that training began with. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig


def pull_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield every broken rule of `optim.base_decay`."""
    optim, key = config.optim, "optim.base_decay"
    if not optim.base_decay >= 0:
        yield must(key, "0 (off) or more", optim.base_decay, f"Set {key}=0.")
        return
    fastest = optim.lr * max(config.tune.lora_plus_ratio, 1.0)
    if optim.base_decay * fastest >= 1:
        yield must(
            key,
            f"below 1 / {fastest:g}, the largest learning rate, so that no step goes past the base",
            optim.base_decay,
            f"Set {key}={0.1 / fastest:.3g} or less.",
        )
    if optim.base_decay and "ratio" in _offload(config.zero.extra):
        yield must(
            "zero.extra.zero_optimization.offload_optimizer.ratio",
            f"left out with {key}={optim.base_decay:g}, since another optimizer updates what stays on the GPU",
            _offload(config.zero.extra)["ratio"],
            f"Remove it, or set {key}=0.",
        )


def _offload(extra: Mapping[str, object]) -> Mapping[str, object]:
    """Return what is added to DeepSpeed's section about an optimizer in host memory."""
    found: object = extra
    for name in ("zero_optimization", "offload_optimizer"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
