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

from trainer.config.model import Kernels, ModelKind
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.config.tune import Init, Quantise, TuneConfig, TuneMethod
from trainer.data.overlap import check_disjoint
from trainer.data.prepared import digest_of, open_all
from trainer.data.reference import BaseReference
from trainer.data.store import Store
from trainer.dist.env import rank_env
from trainer.dist.group import Group, close_group, open_group
from trainer.dist.seed import seed_everything
from trainer.engine.batch import BatchShape, batch_shape
from trainer.engine.build import Engine, build_engine, gathered
from trainer.engine.ds_config import deepspeed_dict
from trainer.errors import DataError
from trainer.evaluate.batches import TaskModel
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.tasks import load_everywhere
from trainer.forgetting import Forgetting, Subject, prompts_for_kl
from trainer.metrics.memory import describe_device, device_memory_gib
from trainer.mixing import Mixing
from trainer.model.adapters import ADAPTER, FACTOR_B, Tuned, apply_tuning
from trainer.model.attention import choose_attention
from trainer.model.cache import context_length, end_tokens
from trainer.model.digest import model_digest
from trainer.model.kernels import apply_kernels
from trainer.model.load import LoadedModel, announce_zero3, check_context, load_model
from trainer.model.new_tokens import NewTokens, vocabulary
from trainer.model.pissa import begin_at_principal
from trainer.model.prompt import check_room
from trainer.model.quantise import NF4, held_bytes
from trainer.model.remat import apply_remat
from trainer.model.resolve import resolve_model, tokenizer_source
from trainer.model.tokenizer import Tokenizer, load_tokenizer
from trainer.model.verify import verify_weights
from trainer.objective.causal_lm import CausalLM
from trainer.objective.head import install_loss_head
from trainer.optim.build import build_optimizer
from trainer.optim.groups import decay_groups
from trainer.replay_kl import open_reference
from trainer.runtime.log import adopt_library_loggers, attempt_dir, setup_logging
from trainer.task_scores import TaskScores

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
        digest: str = self.group.from_first(lambda: _base_digest(self.config, self.loaded.source))
        return digest

    def held_out(self) -> HeldOut:
        """Lay out the held-out packs."""
        return HeldOut(
            names=list(self.stores),
            stores=[store.validation for store in self.stores.values()],
            max_packs=self.config.data.max_validation_packs,
            micro_batch_size=self.config.evaluate.micro_batch_size,
            pad_id=self.pad_id,
        )


def open_session(config: RunConfig, stack: ExitStack) -> Session:
    """Join the ranks and build data, model and engine, in this order. The configuration is checked already."""
    env = rank_env(os.environ)
    run_dir = Path(config.run_dir)
    setup_logging(env.rank, env.world_size, None)
    group = open_group(env, config.cluster.comm_timeout_s)
    stack.callback(close_group)
    log_dir = group.from_first(lambda: attempt_dir(run_dir))
    setup_logging(env.rank, env.world_size, log_dir)
    seed_everything(config.seed, group.rank)
    torch.use_deterministic_algorithms(config.deterministic)
    cache_dir = Path(config.data.cache_dir).expanduser()
    source = resolve_model(config.model, cache_dir)
    tokenizer = load_tokenizer(
        tokenizer_source(config.model, source),
        config.model.revision,
        config.model.chat_template,
        config.model.trust_remote_code,
        config.model.new_tokens,
    )
    stores = open_all(config.data, tokenizer)
    group.from_first(lambda: check_disjoint(stores))
    shape = batch_shape(
        config.train.global_batch_tokens,
        config.data.seq_len,
        config.train.micro_batch_size,
        group.world_size,
    )
    loaded, tuned, engine = _build_model(config, source, stores, group, shape, tokenizer.new)
    adopt_library_loggers()
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
    attention = choose_attention(config.model.attention, capability, needs_mask=config.tune.is_virtual)
    ds_config = deepspeed_dict(config.zero, config.optim, shape, on_gpu)
    zero3_config = ds_config if config.zero.stage == 3 else None
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
        loaded.kernels += _fuse_lora(loaded.model, config, len(tuned.modules))
    recomputed = apply_remat(
        loaded.model,
        config.model.checkpoint_layers,
        config.model.checkpoint_spread,
        has_prefix=config.tune.method is TuneMethod.prefix,
    )
    embeddings = {id(p) for p in loaded.model.get_input_embeddings().parameters()}
    if tuned.virtual is not None:
        embeddings |= {id(p) for p in tuned.virtual.parameters()}
    install_loss_head(loaded.model, config.model.loss_chunk_tokens)
    objective = CausalLM(loaded.model, tuned.virtual)
    groups = decay_groups(
        objective.named_parameters(),
        config.optim.weight_decay,
        config.optim.decay_embeddings,
        embeddings,
        lambda name: FACTOR_B.search(name) is not None,
        config.tune.lora_plus_ratio,
    )
    engine = build_engine(objective, build_optimizer(groups, config.optim, on_gpu), ds_config)
    if group.is_first:
        write_atomic(run_dir / "deepspeed.json", json.dumps(ds_config, indent=2) + "\n")
    _say_what_was_built(config, loaded, tuned, shape, group.world_size, len(recomputed), num_verified)
    return loaded, tuned, engine


def _fuse_lora(model: Any, config: RunConfig, num_layers: int) -> str:
    """Compute adapters within their layers where that is the same function; return what was done, for the log.

    ZeRO-3 gathers the weight of a layer by a hook on its module, which the fused forward passes by.
    """
    if config.model.kernels is Kernels.none:
        return ", LoRA by peft"
    if config.zero.stage == 3:
        return ", LoRA by peft (ZeRO-3)"
    from trainer.model.lora import fuse_lora  # imports peft

    return f", LoRA fused into {fuse_lora(model, ADAPTER)} of {num_layers} layers"


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
    if config.tune.quantise is not Quantise.none:
        _LOG.info(
            "The base is in NF4 with double quantisation: %.4g MB on this rank, embeddings and norms included.",
            held_bytes(loaded.model) / 1e6,
        )
    if tuned.is_partial:
        _LOG.info(
            "Training %s of %s parameters (%.2f %%)%s.",
            f"{tuned.num_trainable:,}",
            f"{tuned.num_total:,}",
            100 * tuned.num_trainable / tuned.num_total,
            f": {config.tune.method.value} on {len(tuned.modules)} linear layers" if tuned.modules else "",
        )
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
        needed = int(store.meta["vocab_size"])
        if needed > num_rows:
            raise DataError(
                f"`data.sources.{name}` must hold ids below the model's vocabulary of {num_rows}, "
                f"but holds {needed - 1} instead. Prepare it with the tokenizer of this model."
            )
    check_context(hf_config, config.data.seq_len)
    check_room(hf_config, config.tune, config.data.seq_len)


def _base_digest(config: RunConfig, source: str) -> str:
    """Return the digest of their files, or of the recipe of random ones."""
    if config.model.kind is ModelKind.random:
        return digest_of([Path(source, "config.json").read_text(encoding="utf-8"), config.model.seed])
    digest = model_digest(source, config.model.revision, Path(config.data.cache_dir).expanduser())
    return digest if config.tune.quantise is Quantise.none else digest_of([digest, NF4])


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
