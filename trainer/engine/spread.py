"""Experts of a mixture spread over ranks (expert parallelism), by DeepSpeed's AutoEP.

A layer's experts are shared out to `zero.expert_parallel` neighbouring ranks; every token is sent to the ranks of its
experts and its answers come back. DeepSpeed's own way in, a key of its configuration, knows no model inside an
objective and no optimizer that is ours, so its parts are used: it finds the layers and replaces each, we make the
groups of the optimizer, and prove each layer.

Source: deepspeed 0.19.8, module_inject/auto_ep.py, auto_ep_layer.py, runtime/engine.py `_configure_expert_parallel`.

Shapes: T positions of a probe, H hidden.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.many import many
from trainer.dist.mesh import Mesh
from trainer.engine.gathering import gathered
from trainer.engine.spread_layout import DOWN, GATE, UP, Spread, SpreadLayer
from trainer.errors import ConfigError, ModelError, SelfCheckError
from trainer.model.exact_routers import exact_routers, make_exact
from trainer.model.experts import size_of
from trainer.model.load import router_loss

_LOG = logging.getLogger(__name__)

KEY = "zero.expert_parallel"
NUM_TOKENS = 64
SHARE = 0.9
"""Of a probe's positions, those that must agree: rounding may send a token to another expert."""
FLOOR = {torch.float64: 1e-7, torch.float32: 1e-4}
"""Largest difference of a position as a share of its largest number. 2^-5 for other types, as in the proof of the
gradient."""


def check_spread(size: int, hf_config: Any) -> None:
    """Refuse a model whose experts cannot be spread over so many ranks; 1 is always right.

    Raises:
        ConfigError: DeepSpeed does not know its experts, cannot share them out evenly, or leaves something of its
            layers out.
    """
    if size == 1:
        return
    from deepspeed.module_inject.auto_ep_presets import registry

    text = hf_config.get_text_config()
    found = registry.preset_name_for_hf_model_type(text.model_type)
    if found is None:
        known = sorted({kind for preset in registry.PRESET_MODELS.values() for kind in preset.hf_model_types})
        raise ConfigError(
            f"`{KEY}` must be 1 for {text.model_type}, but is {size} instead: only the experts of "
            f"{', '.join(known)} can be spread over ranks. Set {KEY}=1."
        )
    num_experts = getattr(text, registry.PRESET_MODELS[found].num_experts_attr)
    if num_experts % size:
        fits = [count for count in range(1, size) if num_experts % count == 0]
        raise ConfigError(
            f"`{KEY}` must be a divisor of the {num_experts} experts of a layer, but is {size} instead. Set "
            f"{KEY}={fits[-1]}."
        )
    if router_loss(hf_config):
        raise ConfigError(
            f"`output_router_logits` must be false in the model's config.json with {KEY}={size}, but is true instead: "
            f"spread layers do not give the logits of their routers. Set it to false in a copy of the folder, or "
            f"{KEY}=1."
        )
    if getattr(text, "router_jitter_noise", 0):
        raise ConfigError(
            f"`router_jitter_noise` must be 0 in the model's config.json with {KEY}={size}, but is "
            f"{text.router_jitter_noise} instead: spread layers have no such noise. Set it to 0 in a copy of the "
            f"folder, or {KEY}=1."
        )


def spread_experts(model: Any, size: int, mesh: Mesh, on_gpu: bool) -> Spread:
    """Replace the layers of experts of a causal model, in place, and prove each. Collective: every rank.

    Until here every rank holds the whole model, below ZeRO-3. Each replaced layer must answer, forward and backward, as
    the model's own block did on this rank before.

    Raises:
        ModelError: Its layers are others than its architecture says, or a part of it is frozen.
        SelfCheckError: A replaced layer answers otherwise.
    """
    from deepspeed.module_inject.auto_ep import AutoEP
    from deepspeed.module_inject.auto_ep_config import AutoEPConfig
    from deepspeed.utils import groups

    if not all(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            f"Every parameter of the model must train with `{KEY}`={size}, but some are frozen instead. Set {KEY}=1."
        )
    dtype = next(model.parameters()).dtype
    groups._create_expert_and_data_parallel(expert_parallel_size_=size)
    # The grouped product takes bf16 alone; the loop over experts anything.
    is_grouped = on_gpu and dtype == torch.bfloat16
    auto = AutoEP(model, AutoEPConfig(enabled=True, autoep_size=size, use_grouped_mm=is_grouped))
    specs = auto.ep_parser()
    layers = tuple(_layer(model, spec) for spec in specs)
    is_exact = bool(exact_routers(model))
    probes = [_Probe(model.get_submodule(spec.moe_module_name), spec.hidden_size, mesh) for spec in specs]
    with torch.random.fork_rng(devices=[]):  # parameters are made, and filled with ours
        shard = _sharding(model)
        for spec in specs:
            # Not by `replace_moe_layers`: it also rewires what records routers, which fails with transformers 5.24.
            block, _ = auto._replace_moe_layer_without_retarget(spec, size, mesh.rank % size)
            if shard is not None:
                shard(block)
    del auto
    gc.collect()  # the replaced blocks, of which every rank held all
    if on_gpu:
        torch.cuda.empty_cache()
    apart = [0.0, 0.0]
    for layer, probe in zip(layers, probes, strict=True):
        block = model.get_submodule(layer.path)
        _settle(block, is_exact)
        found = [max(values) for values in zip(*mesh.gather(probe.apart(block)), strict=True)]
        allowed = FLOOR.get(dtype, 2.0**-5)
        if not max(found) <= allowed:
            raise SelfCheckError(
                f"Layer {layer.path} must answer as before when its experts are spread over ranks, but its answer "
                f"differs by {found[0]:.1e} of the largest and its gradient by {found[1]:.1e} instead (allowed: "
                f"{allowed:.1e}). Set {KEY}=1, and report this model."
            )
        apart = [max(pair) for pair in zip(apart, found, strict=True)]
    _LOG.info(
        "Experts of %s are spread over %d ranks each; every layer answers as the model's own block: apart by %.1e of "
        "the largest, its gradient by %.1e. The proof of the gradient has spread layers on both sides.",
        many(len(layers), "layer"),
        size,
        *apart,
    )
    return Spread(size, layers)


def _sharding(model: nn.Module) -> Callable[[Any], None] | None:
    """Return what shards a replaced layer's experts over the ranks that hold the same ones; None below ZeRO-3."""
    from deepspeed.utils import groups

    converts = (getattr(p, "convert_to_zero_parameters", None) for p in model.parameters())
    convert = next((found for found in converts if found is not None), None)
    if convert is None:
        return None

    def shard(block: Any) -> None:
        experts = [*block.experts.parameters()]
        for parameter in experts:
            parameter.ds_zero_partition_process_group = groups._get_expert_data_parallel_group(
                block.ep_group_name
            )
        convert(param_list=experts)
        gc.collect()  # sharded parameters hold on to themselves

    return shard


def spread_groups(groups: list[dict[str, Any]], spread: Spread | None) -> list[dict[str, Any]]:
    """Return an optimizer's groups with experts of a rank in groups of their own, as DeepSpeed's ZeRO wants them."""
    if spread is None:
        return groups
    found = []
    for group in groups:
        experts = [p for p in group["params"] if not getattr(p, "allreduce", True)]
        others = [p for p in group["params"] if getattr(p, "allreduce", True)]
        found.append({**group, "params": others})
        found.append({**group, "params": experts, "name": f"ep_size_{spread.size}", "moe": True})
    return [group for group in found if group["params"]]


def _layer(model: Any, spec: Any) -> SpreadLayer:
    """Say how the names and shapes of a block will change.

    Raises:
        ModelError: Its experts are no two tensors of three dimensions.
    """
    from deepspeed.moe.fused_expert_layout import classify_fused_gate_up_layout

    path = spec.moe_module_name
    experts = model.get_submodule(f"{path}.{spec.experts_name}")
    first, second = (getattr(experts, name, None) for name in (spec.expert_w1_name, spec.expert_w2_name))
    layout = None
    if spec.expert_storage == "fused_3d" and spec.expert_w3_name is None and None not in (first, second):
        layout = classify_fused_gate_up_layout(size_of(first), size_of(second))
    if layout is None:
        raise ModelError(
            f"The experts of {path} must be two tensors, gate with up and down, to be spread over ranks, but are "
            f"others instead. Set {KEY}=1."
        )
    renamed = [(f"{path}.router.gate.", f"{path}.{spec.router_name}.")]
    if spec.e_score_correction_bias_path is not None:
        owner = ".".join(filter(None, (path, spec.e_score_correction_bias_path)))
        renamed.append((f"{path}.router.", f"{owner}."))
    if spec.shared_experts_gate_name:
        renamed.append((f"{path}.shared_experts_gate.", f"{path}.{spec.shared_experts_gate_name}."))
    if spec.shared_experts_name:
        renamed.append((f"{path}.shared_experts.", f"{path}.{spec.shared_experts_name}."))
    experts = f"{path}.{spec.experts_name}"
    gate_up, down = f"{experts}.{spec.expert_w1_name}", f"{experts}.{spec.expert_w2_name}"
    return SpreadLayer(path, tuple(renamed), gate_up, down, layout.needs_transpose)


def _settle(block: Any, is_exact: bool) -> None:
    """Tell a replaced layer its ranks, its parameters of how large tensors they are a part, its router to be exact."""
    block.set_deepspeed_parallelism()
    for name, module in [*block._modules.items()]:
        if module is block.router and name != "router":
            delattr(block, name)  # a second name, for recording what the router says
    for name in (GATE, DOWN, UP):
        parameter = block.get_parameter(name)
        parameter.whole_shape = (block.num_experts, *size_of(parameter)[1:])
    if is_exact:
        make_exact(block.router)


class _Probe:
    """What a block answered to positions that are others on every rank, and the gradient that flowed out of it."""

    def __init__(self, block: nn.Module, hidden_size: int, mesh: Mesh) -> None:
        weight = next(block.parameters())
        generator = torch.Generator().manual_seed(mesh.rank)
        given = torch.randn(2, 1, NUM_TOKENS, hidden_size, generator=generator)
        self._given_1TH, self._slope_1TH = given.to(weight.device, weight.dtype)
        self._own = self._asked(block)

    def apart(self, block: nn.Module) -> tuple[float, float]:
        """Return how far a block's answers and gradients are from those, as shares. Collective for a spread one."""
        found = self._asked(block)
        first, second = (_apart(own, other) for own, other in zip(self._own, found, strict=True))
        return first, second

    def _asked(self, block: nn.Module) -> tuple[Tensor, Tensor]:
        was = block.training
        block.eval()
        given_1TH = self._given_1TH.clone().requires_grad_()
        with gathered([*block.parameters()]), torch.enable_grad():
            answer = block(given_1TH)
            answer = answer[0] if isinstance(answer, tuple) else answer
            (slope_1TH,) = torch.autograd.grad(answer, given_1TH, self._slope_1TH.reshape(answer.shape))
        block.train(was)
        return answer.detach().reshape(NUM_TOKENS, -1), slope_1TH[0]


def _apart(own_TH: Tensor, other_TH: Tensor) -> float:
    """Return the difference of positions as a share of their largest number that the given share of them keeps."""
    own_TH, other_TH = own_TH.double(), other_TH.double()
    shares_T = (own_TH - other_TH).abs().amax(-1) / own_TH.abs().amax(-1).clamp(min=1e-30)
    return float("nan") if shares_T.isnan().any() else float(shares_T.quantile(SHARE))
