"""What training and evaluating have in common: ranks, data, model and engine, built in this order."""

from __future__ import annotations

import json
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.layout import find_checkpoints
from trainer.config.model import ModelKind
from trainer.config.record import refuse_other_inputs
from trainer.config.schema import RunConfig
from trainer.config.snapshot import fitted_values, with_fitted, write_atomic
from trainer.config.tune import Init, Quantise, TuneConfig, TuneMethod
from trainer.data.store.overlap import check_disjoint
from trainer.data.store.prepared import find_all
from trainer.data.store.store import Store, check_vocabulary, open_store
from trainer.dist.env import rank_env
from trainer.dist.group import Group, close_group, open_group
from trainer.dist.seed import seed_everything
from trainer.engine.batch import BatchShape, batch_shape
from trainer.engine.ds_config import deepspeed_dict
from trainer.engine.engine import Engine, build_engine, gathered
from trainer.evaluate.forgetting import Forgetting, Subject, prompts_for_kl
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.proofs.agreement import check_head
from trainer.evaluate.tasks.batches import TaskModel
from trainer.evaluate.tasks.harness import load_everywhere
from trainer.evaluate.tasks.scores import TaskScores
from trainer.metrics.device import describe_device, device_memory_gib
from trainer.mix.mixing import Mixing
from trainer.model.attention import choose_attention
from trainer.model.cache import context_length, end_tokens
from trainer.model.causal import CausalLM
from trainer.model.digest import base_digest
from trainer.model.head.head import install_loss_head
from trainer.model.kernels import apply_kernels
from trainer.model.load import (
    LoadedModel,
    announce_zero3,
    check_context,
    check_trainable,
    load_model,
    read_config,
    router_loss,
)
from trainer.model.remat import apply_remat
from trainer.model.resolve import resolve_model
from trainer.model.tokenizer import Tokenizer, configured_tokenizer
from trainer.model.tune.adapters import FACTOR_B, Tuned, apply_tuning, describe_tuned
from trainer.model.tune.lora import fuse_if_same
from trainer.model.tune.new_tokens import NewTokens, vocabulary
from trainer.model.tune.pissa import begin_at_principal
from trainer.model.tune.prompt import check_room
from trainer.model.tune.quantise import held_bytes
from trainer.model.verify_weights import verify_weights
from trainer.optim.groups import decay_groups
from trainer.optim.optimizer import build_optimizer
from trainer.run.identity import known_base
from trainer.runtime.log import adopt_library_loggers, attempt_dir, setup_logging
from trainer.teacher.cached import open_reference
from trainer.teacher.reference import BaseReference

_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """What training and evaluating have in common: ranks, data, model and engine."""

    config: RunConfig
    run_dir: Path
    group: Group
    stores: dict[str, Store]
    tokenizer: Tokenizer
    loaded: LoadedModel
    tuned: Tuned
    engine: Engine
    shape: BatchShape
    _base: str | None = None

    @property
    def flash(self) -> bool:
        """Tell whether attention takes cu_seq_lens."""
        return self.loaded.attention.is_flash

    @property
    def pad_id(self) -> int:
        """Return the token that fills packs; its positions carry no loss."""
        return self.tokenizer.pad_id or 0

    def base_digest(self) -> str:
        """Return what names the weights that training began with. Collective: every rank."""
        if self._base is None:
            model, source = self.config.model, self.loaded.source
            quantise, cache_dir = self.config.tune.quantise, self.config.data.cache_dir
            self._base = str(self.group.from_first(lambda: base_digest(model, quantise, source, cache_dir)))
        return self._base

    def held_out(self) -> HeldOut:
        """Lay out the held-out packs."""
        return HeldOut(
            names=list(self.stores),
            stores=[store.validation for store in self.stores.values()],
            max_packs=self.config.data.max_validation_packs,
            micro_batch_size=self.config.evaluate.micro_batch_size,
            pad_id=self.pad_id,
        )


def open_session(config: RunConfig, stack: ExitStack, goes_on: bool = True) -> Session:
    """Join the ranks and build data, model and engine, in this order. The configuration is checked already.

    Args:
        goes_on: What the run directory holds is gone on from or measured, so that it must be of these inputs.
    Raises:
        DataError: They are others.
    """
    env = rank_env(os.environ)
    run_dir = Path(config.run_dir)
    setup_logging(env.rank, env.world_size, None)
    group = open_group(env, config.cluster.comm_timeout_s)
    stack.push(close_group)
    # Nodes may differ in their GPUs or processors: what the first one made of them is what was frozen.
    config = with_fitted(config, *group.from_first(lambda: fitted_values(config)))
    setup_logging(env.rank, env.world_size, group.from_first(lambda: attempt_dir(run_dir)))
    seed_everything(config.seed, group.rank)
    torch.use_deterministic_algorithms(config.deterministic)
    source = resolve_model(config.model, Path(config.data.cache_dir))
    tokenizer = configured_tokenizer(config.model, source)
    # Where they are is asked once: ranks of other nodes need not see the files that stores were made of.
    places = group.from_first(lambda: find_all(config.data, tokenizer))
    stores = {name: open_store(place) for name, place in places.items()}
    if goes_on:
        group.from_first(lambda: _refuse_other_inputs(config, stores, tokenizer.digest, source))
    group.from_first(lambda: check_disjoint(stores))
    shape = batch_shape(
        config.train.global_batch_tokens,
        config.data.seq_len,
        config.train.micro_batch_size,
        group.world_size,
    )
    loaded, tuned, engine = _build_model(config, source, stores, group, shape, tokenizer.new)
    adopt_library_loggers()
    check_head(engine, loaded.model.config, config.data.seq_len, group)
    return Session(config, run_dir, group, stores, tokenizer, loaded, tuned, engine, shape)


def _build_model(
    config: RunConfig,
    source: str,
    stores: dict[str, Store],
    group: Group,
    shape: BatchShape,
    new_tokens: NewTokens | None,
) -> tuple[LoadedModel, Tuned, Engine]:
    """Load the model and hand it to DeepSpeed. Collective: every rank."""
    run_dir = Path(config.run_dir)
    on_gpu = group.device.type == "cuda"
    capability = torch.cuda.get_device_capability(group.device) if on_gpu else None
    attention = choose_attention(
        config.model.attention, capability, config.zero.dtype, needs_mask=config.tune.is_virtual
    )
    ds_config = deepspeed_dict(config.zero, config.optim, shape, on_gpu)
    zero3_config = ds_config if config.zero.stage == 3 else None
    check_trainable(read_config(source, config.model), source)
    loaded = load_model(
        source, config.model, attention, config.zero.dtype, zero3_config, group.device, config.tune.quantise
    )
    if on_gpu:
        _LOG.info("Loaded with a peak of %.2f GiB on this GPU.", device_memory_gib()[0])
    _check_fits(config, loaded, stores, new_tokens)
    num_verified = 0
    if config.model.verify_weights and config.model.kind is not ModelKind.random:
        num_verified = verify_weights(loaded.model, source, gathered)
    keep_alive = announce_zero3(zero3_config)
    tuned = apply_tuning(loaded.model, config.tune, config.seed, new_tokens)
    del keep_alive
    if config.tune.init is Init.pissa:
        moved = begin_at_principal(
            loaded.model, tuned.modules, config.tune, config.seed, run_dir, group.from_first
        )
        _LOG.info("PiSSA moves the base's logits by %.1e of their spread: rounding.", moved)
    loaded.kernels = apply_kernels(loaded.model, config.model.kernels, on_gpu)
    if config.tune.method is TuneMethod.lora:
        loaded.kernels += fuse_if_same(
            loaded.model, config.model.kernels, config.zero.stage, len(tuned.modules)
        )
    recomputed = apply_remat(
        loaded.model,
        config.model.checkpoint_layers,
        config.model.checkpoint_spread,
        has_prefix=config.tune.method is TuneMethod.prefix,
    )
    engine = _build_engine(config, loaded.model, tuned, ds_config, on_gpu)
    if group.is_first:
        write_atomic(run_dir / "deepspeed.json", json.dumps(ds_config, indent=2) + "\n")
    _say_what_was_built(config, loaded, tuned, shape, group.world_size, len(recomputed), num_verified)
    return loaded, tuned, engine


def _build_engine(
    config: RunConfig, model: Any, tuned: Tuned, ds_config: dict[str, Any], on_gpu: bool
) -> Engine:
    """Put the objective around the model and hand both to DeepSpeed. Collective: every rank."""
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    if tuned.virtual is not None:
        embeddings |= {id(p) for p in tuned.virtual.parameters()}
    install_loss_head(model, config.model.loss_chunk_tokens)
    objective = CausalLM(model, tuned.virtual)
    groups = decay_groups(
        objective.named_parameters(),
        config.optim.weight_decay,
        config.optim.decay_embeddings,
        embeddings,
        lambda name: FACTOR_B.search(name) is not None,
        config.tune.lora_plus_ratio,
    )
    optimizer = build_optimizer(groups, config.optim, on_gpu)
    return build_engine(objective, optimizer, ds_config, tuple(config.zero.extra))


def _say_what_was_built(
    config: RunConfig,
    loaded: LoadedModel,
    tuned: Tuned,
    shape: BatchShape,
    num_ranks: int,
    num_recomputed: int,
    num_verified: int,
) -> None:
    """Log the model, what trains of it, and how it is spread over ranks."""
    _LOG.info(
        "Model %s: %.1f M parameters, attention %s (%s), kernels %s, %d layers recomputed, %d tensors "
        "compared with their files.",
        loaded.source,
        loaded.num_parameters / 1e6,
        loaded.attention.name,
        loaded.attention.reason,
        loaded.kernels,
        num_recomputed,
        num_verified,
    )
    if router_loss(loaded.model.config):
        _LOG.info("The routers' own loss is not part of training, as the model's config.json has it.")
    if config.tune.quantise is not Quantise.none:
        _LOG.info(
            "The base is in NF4 with double quantisation: %.4g MB on this rank, embeddings and norms included.",
            held_bytes(loaded.model) / 1e6,
        )
    for line in describe_tuned(tuned, config.tune.method):
        _LOG.info(line)
    _LOG.info(
        "%d rank(s) on %s, ZeRO-%d %s, %d packs of %d tokens a step = %d micro-step(s) of %d a rank.",
        num_ranks,
        describe_device(),
        config.zero.stage,
        config.zero.dtype,
        shape.packs_per_step,
        shape.seq_len,
        shape.num_micro_steps,
        shape.micro_batch_size,
    )


def _check_fits(
    config: RunConfig, loaded: LoadedModel, stores: dict[str, Store], new_tokens: NewTokens | None
) -> None:
    """Refuse data that the model cannot read."""
    hf_config = loaded.model.config
    num_rows = vocabulary(hf_config.vocab_size, new_tokens.ids if new_tokens is not None else ())
    for name, store in stores.items():
        check_vocabulary(name, store, num_rows)
    check_context(hf_config, config.data.seq_len)
    check_room(hf_config, config.tune, config.data.seq_len)


def _refuse_other_inputs(config: RunConfig, stores: dict[str, Store], tokenizer: str, source: str) -> None:
    """Raise when a run that goes on, or is evaluated, would read other data or another base than it began with."""
    run_dir = Path(config.run_dir)
    if find_checkpoints(run_dir):
        described = {name: store.described for name, store in stores.items()}
        refuse_other_inputs(run_dir, described, tokenizer, known_base(config, source))


def build_forgetting(session: Session) -> Forgetting | None:
    """Return the measurement of the base against the tuned model, if there is text to measure on."""
    config, group = session.config, session.group
    has_text = any(store.validation.num_packs for store in session.stores.values())
    if not config.evaluate.forgetting or not (has_text or config.evaluate.tasks.names):
        return None
    prompts = prompts_for_kl(config, session.stores, session.tokenizer, session.pad_id)
    subject = Subject(session.engine, group, session.flash, session.held_out(), prompts)
    digest = session.base_digest()
    return Forgetting(session.run_dir, config, subject, digest, config.model.path or config.model.kind.value)


def build_task_scores(session: Session) -> TaskScores | None:
    """Return what runs benchmark tasks, if any are asked for. Collective: every rank loads them."""
    config, group, loaded = session.config, session.group, session.loaded
    options = config.evaluate.tasks
    if not options.names:
        return None
    hf_config, tokenizer = loaded.model.config, session.tokenizer
    own_ends = frozenset() if tokenizer.eos_id is None else frozenset([tokenizer.eos_id])
    model = TaskModel(
        engine=session.engine,
        group=group,
        flash=session.flash,
        hf_config=hf_config,
        pad_id=session.pad_id,
        end_ids=end_tokens(loaded.model) | own_ends,
        max_length=options.max_length or _room(hf_config, config.tune) or config.data.seq_len,
        batch_tokens=options.batch_tokens,
    )
    digest = session.base_digest()
    tasks = load_everywhere(options, group)
    return TaskScores(session.run_dir, config, tasks, model, tokenizer, digest)


def _room(hf_config: Any, tune: TuneConfig) -> int | None:
    """Return the longest document the model was made for, behind its virtual tokens."""
    longest = context_length(hf_config)
    return longest - tune.virtual_tokens if longest is not None and tune.is_virtual else longest


def build_reference(session: Session, mixing: Mixing) -> BaseReference | None:
    """Return what the base model says of the replay that the run can draw; None without replay.kl."""
    config, group = session.config, session.group
    if not config.replay.kl.beta:
        return None
    return open_reference(
        config,
        session.engine,
        group,
        session.flash,
        session.stores,
        mixing.replay_to_draw(),
        session.base_digest(),
        session.pad_id,
    )
