"""The model of a run: loaded, checked, what trains of it chosen, handed to DeepSpeed."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from trainer.config.check_context import check_context
from trainer.config.check_sequence import KEY as SEQUENCE
from trainer.config.check_sharing import KEY as SHARING
from trainer.config.many import many
from trainer.config.model import ModelKind
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.config.tune import Init, Quantise, TuneMethod
from trainer.data.store.store import Store, check_vocabulary
from trainer.dist.mesh import Mesh
from trainer.engine.batch import BatchShape
from trainer.engine.ds_config import deepspeed_dict
from trainer.engine.engine import Engine
from trainer.engine.gathering import filling, gathered, looking_up_at_gathers
from trainer.engine.initialize import build_engine
from trainer.engine.spread import check_spread, spread_experts, spread_groups
from trainer.errors import ModelError
from trainer.metrics.device import describe_device, device_memory_gib
from trainer.model.around_attention import let_attention_be_told
from trainer.model.attention import choose_attention, offered
from trainer.model.balance import balance_of
from trainer.model.base_files import open_base
from trainer.model.cache import context_length
from trainer.model.causal import CausalLM
from trainer.model.choice_bias import choice_bias_of
from trainer.model.exact_routers import exact_routers
from trainer.model.expert_load import ExpertLoad
from trainer.model.experts import describe_mixture
from trainer.model.head.head import install_loss_head
from trainer.model.kernels import apply_kernels, say_missing_kernels
from trainer.model.load import (
    LoadedModel,
    announce_zero3,
    load_model,
    read_whole_config,
    router_loss,
    trained_part,
)
from trainer.model.packed import packing_of
from trainer.model.packing_kind import check_packing, is_nf4
from trainer.model.remat import apply_remat
from trainer.model.scorer import begin_score, output_layer
from trainer.model.tensor_by_tensor import looking_up
from trainer.model.token_slices import check_slices
from trainer.model.tune.adapters import FACTOR_B, Tuned, apply_tuning, describe_tuned
from trainer.model.tune.gated import fuse_if_same
from trainer.model.tune.new_tokens import NewTokens, vocabulary
from trainer.model.tune.pissa import begin_at_principal
from trainer.model.tune.quantise import held_bytes
from trainer.model.tune.started import StartAdapter
from trainer.model.verify_weights import verify_weights
from trainer.optim.groups import decay_groups
from trainer.optim.optimizer import build_optimizer
from trainer.run.room import require_room

_LOG = logging.getLogger(__name__)


def build_model(
    config: RunConfig,
    source: str,
    stores: dict[str, Store],
    mesh: Mesh,
    shape: BatchShape,
    new_tokens: NewTokens | None,
    heed: Callable[[], None],
    start: StartAdapter | None = None,
) -> tuple[LoadedModel, Tuned, Engine]:
    """Load the model and hand it to DeepSpeed. Collective: every rank.

    Args:
        heed: Called by every rank between tensors and between stages; may raise on all of them, to give up.
        start: What the adapter begins as; None for a fresh one.
    """
    run_dir = Path(config.run_dir)
    on_gpu = mesh.device.type == "cuda"
    whole = read_whole_config(source, config.model)
    hf_config = trained_part(whole)
    check_spread(config.zero.expert_parallel, hf_config)
    check_slices(mesh.sequence.size, hf_config)
    ds_config = deepspeed_dict(config.zero, config.optim, shape, on_gpu)
    zero3_config = ds_config if config.zero.stage == 3 else None
    check_packing(packing := packing_of(whole), source, config.tune.quantise)
    require_room(config, source, packing, mesh)
    loaded = _load(config, source, hf_config, mesh, zero3_config, heed)
    _check_fits(config, loaded, stores, new_tokens)
    num_verified = _verify(config, loaded, packing is None or is_nf4(packing))
    heed()
    rate = config.train.router_bias_rate
    packs_now = config.tune.quantise is not Quantise.none
    num_exact = len(exact_routers(loaded.model))
    mixture = describe_mixture(loaded.model, config.zero.dtype, packs_now, rate, num_exact)
    # Before an adapter wraps what they are put into.
    loaded.kernels = apply_kernels(loaded.model, config.model.kernels, on_gpu)
    tuned = _tune(config, loaded, mesh, new_tokens, zero3_config, start)
    recomputed = apply_remat(
        loaded.model,
        config.model.checkpoint_layers,
        config.model.checkpoint_spread,
        has_prefix=config.tune.method is TuneMethod.prefix,
    )
    heed()
    engine = _build_engine(config, loaded.model, tuned, ds_config, mesh)
    if config.optim.base_decay:
        held = engine.decay_to_start(config.optim.base_decay)
        _LOG.info("What trains is pulled to what it began as, of which this rank holds %.4g MB.", held / 1e6)
    if mesh.is_first:
        write_atomic(run_dir / "deepspeed.json", json.dumps(ds_config, indent=2) + "\n")
    _say_what_was_built(config, loaded, tuned, shape, mesh.num_ranks, len(recomputed), num_verified, mixture)
    return loaded, tuned, engine


def _tune(
    config: RunConfig,
    loaded: LoadedModel,
    mesh: Mesh,
    new_tokens: NewTokens | None,
    zero3_config: dict[str, Any] | None,
    start: StartAdapter | None,
) -> Tuned:
    """Put adapters around a model, or freeze what does not train, in place. Collective: every rank."""
    keep_alive = announce_zero3(zero3_config)
    tuned = apply_tuning(loaded.model, config.tune, config.seed, new_tokens, start)
    del keep_alive
    if config.tune.init is Init.pissa:
        run_dir = Path(config.run_dir)
        moved = begin_at_principal(
            loaded.model, tuned.modules, config.tune, config.seed, run_dir, mesh.from_first
        )
        _LOG.info("PiSSA moves the base's logits by %.1e of their spread: rounding.", moved)
    if config.tune.method is TuneMethod.lora:
        on_gpu = mesh.device.type == "cuda"
        loaded.kernels += fuse_if_same(
            loaded.model, config.model.kernels, config.zero.stage, len(tuned.modules), on_gpu
        )
    return tuned


def _load(
    config: RunConfig,
    source: str,
    hf_config: Any,
    mesh: Mesh,
    zero3_config: dict[str, Any] | None,
    heed: Callable[[], None],
) -> LoadedModel:
    """Read the weights, heeding signals before every tensor; with ZeRO-3 before every gather into which one is read."""
    on_gpu, dtype = mesh.device.type == "cuda", config.zero.dtype
    attention = choose_attention(
        config.model.attention,
        torch.cuda.get_device_capability(mesh.device) if on_gpu else None,
        dtype,
        needs_mask=config.tune.is_virtual,
        has=offered(hf_config),
    )
    if mesh.sequence.size > 1:
        let_attention_be_told(attention.name, SEQUENCE, "1", "more")
    if config.data.share_prompts and attention.is_flash:
        let_attention_be_told(attention.name, SHARING, "false", "true")
    gathers: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if zero3_config is not None:
        gathers = looking_up_at_gathers(heed)
    with looking_up(heed), gathers:
        loaded = load_model(
            source, config.model, attention, dtype, zero3_config, mesh.device, config.tune.quantise
        )
    if loaded.has_new_score:
        weight = output_layer(loaded.model).weight
        with filling(weight):
            begin_score(weight, hf_config, config.seed)
        _LOG.info("The layer that scores is new: normal, from seed %d.", config.seed)
    if on_gpu:
        _LOG.info("Loaded with a peak of %.2f GiB on this GPU.", device_memory_gib()[0])
    return loaded


def _verify(config: RunConfig, loaded: LoadedModel, is_there: bool) -> int:
    """Compare weights with their files; return how many tensors. Collective at ZeRO-3.

    Args:
        is_there: The files hold the weights as they train.
    """
    if not (config.model.verify_weights and config.model.kind is not ModelKind.random and is_there):
        return 0
    return verify_weights(loaded.model, open_base(loaded.source, config.model), gathered)


def _build_engine(
    config: RunConfig, model: Any, tuned: Tuned, ds_config: dict[str, Any], mesh: Mesh
) -> Engine:
    """Put the objective around the model and hand both to DeepSpeed. Collective: every rank."""
    on_gpu, size = mesh.device.type == "cuda", config.zero.expert_parallel
    spread = spread_experts(model, size, mesh, on_gpu) if size > 1 else None
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    if tuned.virtual is not None:
        embeddings |= {id(p) for p in tuned.virtual.parameters()}
    install_loss_head(model, config.model.loss_chunk_tokens)
    weight = router_loss(model.config)
    balance = balance_of(model, weight) if weight else None
    if balance is not None and tuned.virtual is not None:
        raise ModelError(
            "`output_router_logits` must be false in the model's config.json with virtual tokens, but is true instead: "
            "its loss of routers is not worked out for them. Set it to false in a copy of the folder."
        )
    if balance is not None and mesh.sequence.size > 1:
        raise ModelError(
            "`output_router_logits` must be false in the model's config.json with train.sequence_parallel, but is true "
            "instead: its loss of routers is that of whole packs. Set it to false in a copy of the folder."
        )
    load, rate = ExpertLoad(model), config.train.router_bias_rate
    bias = choice_bias_of(model, load, rate) if rate else None
    heard = load if load.sizes else None
    objective = CausalLM(model, tuned.virtual, balance=balance, expert_load=heard, choice_bias=bias)
    groups = decay_groups(
        objective.named_parameters(),
        config.optim.weight_decay,
        config.optim.decay_embeddings,
        embeddings,
        lambda name: FACTOR_B.search(name) is not None,
        config.tune.lora_plus_ratio,
    )
    optimizer = build_optimizer(spread_groups(groups, spread), config.optim, on_gpu)
    return build_engine(objective, optimizer, ds_config, tuple(config.zero.extra), spread)


def _say_what_was_built(
    config: RunConfig,
    loaded: LoadedModel,
    tuned: Tuned,
    shape: BatchShape,
    num_ranks: int,
    num_recomputed: int,
    num_verified: int,
    mixture: list[str],
) -> None:
    """Log the model, what trains of it, and how it is spread over ranks."""
    _LOG.info(
        "Model %s: %.1f M parameters, attention %s (%s), kernels: %s, %d layers recomputed, %d tensors "
        "compared with their files.",
        loaded.source,
        loaded.num_parameters / 1e6,
        loaded.attention.name,
        loaded.attention.reason,
        loaded.kernels,
        num_recomputed,
        num_verified,
    )
    if config.tune.quantise is not Quantise.none:
        _LOG.info(
            "The base is in NF4 with double quantisation: %.4g MB on this rank, embeddings and norms included.",
            held_bytes(loaded.model) / 1e6,
        )
    slow = say_missing_kernels(loaded.model, torch.cuda.is_available())
    for line in [*([slow] if slow else ()), *mixture, *describe_tuned(tuned, config.tune.method)]:
        _LOG.info(line)
    _LOG.info(
        "%s on %s, ZeRO-%d %s, %s of %d tokens a step = %s of %d a rank%s.",
        many(num_ranks, "rank"),
        describe_device(),
        config.zero.stage,
        config.zero.dtype,
        many(shape.packs_per_step, "pack"),
        shape.seq_len,
        many(shape.num_micro_steps, "micro-step"),
        shape.micro_batch_size,
        f", each shared by {shape.sequence_parallel} ranks" if shape.sequence_parallel > 1 else "",
    )


def _check_fits(
    config: RunConfig, loaded: LoadedModel, stores: dict[str, Store], new_tokens: NewTokens | None
) -> None:
    """Refuse data that the model cannot read."""
    hf_config = loaded.model.config
    num_rows = vocabulary(hf_config.vocab_size, new_tokens.ids if new_tokens is not None else ())
    for name, store in stores.items():
        check_vocabulary(name, store, num_rows)
    check_context(context_length(hf_config), config.data.seq_len, config.tune)
