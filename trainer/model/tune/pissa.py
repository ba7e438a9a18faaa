"""PiSSA: the factors begin as the largest singular vectors of each weight, and the weight as what is left of it.

Both beginnings are kept in a file of the run, because resuming must take the same part out of the base again, and
because a folder for others must stand beside the whole base: W + s (B A - B0 A0) is plain LoRA of twice the rank.

Source: Meng et al. 2024 (arXiv:2404.02948); the conversion is that of peft (docs, "PiSSA", convert to LoRA).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trainer.config.snapshot import write_atomic
from trainer.config.tune import TuneConfig
from trainer.errors import ModelError, SelfCheckError
from trainer.model.tune.adapters import ADAPTER

FILE_NAME = "adapter_init.safetensors"
EXACT_UP_TO = 2048
"""Smaller side of a weight up to which its SVD is exact; above, the largest vectors are found by 16 subspace
iterations, which peft's documentation calls equivalent in training."""
NUM_TOKENS = 32
LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""How far logits may move, as a share of their spread: rounding what is left of the weights. SmolLM2 in bf16 is 0.033
from itself in float32; without the factors logits move by about 1."""


def begin_at_principal(
    model: Any, modules: Sequence[str], tune: TuneConfig, seed: int, run_dir: Path, first: Callable[..., Any]
) -> float:
    """Move the principal part of each adapted weight into its factors, in place; return how far that moved the logits.

    Args:
        first: Runs a function on the first rank while the others wait. Collective: every rank.
    Raises:
        SelfCheckError: The model is no longer its base.
    """
    layers = {name: model.get_submodule(name) for name in modules}
    before = _probe(model)
    path = run_dir / FILE_NAME
    first(lambda: None if path.exists() else _write(path, layers, tune, seed))
    factors = load_file(str(path))
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        a, b = (factors[f"{name}.{which}"].to(weight) for which in ("A", "B"))
        layer.lora_A[ADAPTER].weight.data.copy_(a)
        layer.lora_B[ADAPTER].weight.data.copy_(b)
        weight.data.copy_(weight.float() - _scale(tune) * b.float() @ a.float())
    after = _probe(model)
    spread = before - before.mean(dim=-1, keepdim=True)
    moved = float((after - before).square().mean().sqrt() / spread.square().mean().sqrt())
    if not moved <= LIMITS[next(model.parameters()).dtype]:
        raise SelfCheckError(
            "PiSSA must leave the base's logits as they are before the first step, within rounding, but moves them by "
            f"{moved:.1e} of their spread. Set tune.init=default, or report this model."
        )
    return moved


def as_plain_lora(
    stream: Iterable[tuple[str, Tensor]], peft_config: Any, run_dir: Path
) -> tuple[Iterable[tuple[str, Tensor]], Any]:
    """Return trained tensors and their description for the whole base; unchanged but after PiSSA.

    Raises:
        ModelError: The file with the beginnings is gone.
    """
    if getattr(peft_config, "init_lora_weights", True) != "pissa":
        return stream, peft_config
    path = run_dir / FILE_NAME
    if not path.is_file():
        raise ModelError(
            f"{path} must hold what PiSSA took out of the base, but is missing. Bring it back, or train again."
        )
    plain = copy.deepcopy(peft_config)
    root = math.sqrt(plain.r) if plain.use_rslora else plain.r
    plain.lora_alpha = plain.lora_alpha / root * 2 * plain.r
    plain.r, plain.use_rslora, plain.init_lora_weights = 2 * plain.r, False, True
    return _converted(stream, load_file(str(path))), plain


def _converted(
    stream: Iterable[tuple[str, Tensor]], factors: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in stream:
        module, _, rest = name.rpartition(".lora_")
        if rest.startswith("A."):
            yield name, torch.cat([tensor, factors[f"{module}.A"].to(tensor.dtype)], dim=0)
        elif rest.startswith("B."):
            yield name, torch.cat([tensor, -factors[f"{module}.B"].to(tensor.dtype)], dim=1)
        else:
            yield name, tensor


def _scale(tune: TuneConfig) -> float:
    return tune.scale_alpha / (math.sqrt(tune.r) if tune.rslora else tune.r)


def _write(path: Path, layers: dict[str, Any], tune: TuneConfig, seed: int) -> None:
    """Write the factors of all layers in the dtype they train in, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weight = layer.get_base_layer().weight
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            left, values, right = _largest(weight.detach().float(), tune.r)
        root = (values / _scale(tune)).sqrt()
        tensors[f"{name}.A"] = (root[:, None] * right).to(weight.dtype).contiguous().cpu()
        tensors[f"{name}.B"] = (left * root).to(weight.dtype).contiguous().cpu()
    write_atomic(path, save(tensors))  # save_file would leave it to its owner alone


def _largest(weight: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the r largest singular vectors and values: [out, r], [r], [r, in]."""
    if min(weight.shape) <= EXACT_UP_TO:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        return left[:, :r], values[:r], right[:r]
    left, values, right = torch.svd_lowrank(weight, q=r, niter=16)
    return left, values, right.t()


def _probe(model: nn.Module) -> Tensor:
    """Return logits on fixed tokens, float32."""
    some = next(model.parameters())
    tokens = torch.arange(NUM_TOKENS, device=some.device) % model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    with torch.no_grad(), _as_evaluated(model):
        return torch.as_tensor(model(input_ids=tokens[None], use_cache=False).logits[0]).float()


@contextlib.contextmanager
def _as_evaluated(model: nn.Module) -> Iterator[None]:
    was = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was)
