"""The teacher of a distillation: loaded beside the student, proved to be asked rightly, and given up again."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.config.model import ModelConfig, ModelKind
from trainer.config.optim import Offload
from trainer.config.teacher import of_teacher, teacher_model
from trainer.config.tune import Quantise
from trainer.data.store.prepared import in_rows
from trainer.dist.seed import capture_rng, restore_rng
from trainer.engine.ds_config import deepspeed_dict
from trainer.engine.frozen_engine import frozen_engine
from trainer.engine.gathering import gathered, looking_up_at_gathers
from trainer.engine.policy import Policy
from trainer.errors import ModelError, SelfCheckError
from trainer.evaluate.proofs.agreement import check_head, check_packing, check_rows
from trainer.evaluate.proofs.isolation import check_isolation
from trainer.model.attention import choose_attention, offered
from trainer.model.base_files import open_base
from trainer.model.carry import carried_by
from trainer.model.causal import CausalLM
from trainer.model.digest import base_digest
from trainer.model.head.head import install_loss_head
from trainer.model.kernels import apply_kernels
from trainer.model.load import load_model, read_config
from trainer.model.masks import reach
from trainer.model.packed import packing_of
from trainer.model.resolve import resolve_model
from trainer.model.tensor_by_tensor import looking_up
from trainer.model.verify_weights import verify_weights
from trainer.run.heed import heeding
from trainer.run.session import Session

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class TeacherFiles:
    """A teacher before it is loaded."""

    model: ModelConfig
    source: str
    hf_config: Any
    digest: str
    """Of its weights."""

    @property
    def num_rows(self) -> int:
        """Return the ids that it has."""
        return int(self.hf_config.get_text_config().vocab_size)


def find_teacher(session: Session) -> TeacherFiles:
    """Return what is known of the teacher from its files. Collective: every rank.

    Raises:
        ModelError: It cannot be read.
    """
    config = session.config
    model, cache_dir = teacher_model(config.objective.distill, config.model), config.data.cache_dir
    with told_of_teacher():
        source = resolve_model(model, Path(cache_dir))
        digest = session.mesh.from_first(lambda: base_digest(model, Quantise.none, source, cache_dir))
        return TeacherFiles(model, source, read_config(source, model), str(digest))


@contextlib.contextmanager
def told_of_teacher() -> Iterator[None]:
    """Let what is wrong with a model be told of the teacher's key."""
    try:
        yield
    except ModelError as error:
        raise ModelError(of_teacher(str(error))) from error


@contextlib.contextmanager
def teacher_policy(session: Session, teacher: TeacherFiles) -> Iterator[Policy]:
    """Give the teacher, to be asked; afterwards its memory is free. Collective: every rank.

    Generators of random numbers are as before, whether a teacher was loaded or not.

    Raises:
        ModelError: It cannot be loaded.
        SelfCheckError: Its weights are not those of its files, what is read is not its own logits, or documents of a
            pack see each other in it.
    """
    before = capture_rng()
    with told_of_teacher():
        policy = _load(session, teacher)
    _prove(session, teacher, policy)
    restore_rng(before)
    try:
        yield policy
    finally:
        policy.engine.release()
        del policy
        gc.collect()
        if session.mesh.device.type == "cuda":
            torch.cuda.empty_cache()


def _prove(session: Session, teacher: TeacherFiles, policy: Policy) -> None:
    """Prove what a run needs of a model that it asks, as of the one that it trains."""
    seq_len, hf_config = session.config.data.seq_len, teacher.hf_config
    heed = heeding(session.mesh, session.stop_flag)

    def before_pass(num_tokens: int) -> None:
        heed()

    try:
        check_head(policy, hf_config, seq_len, before_pass)
        if session.config.train.isolation_probe:
            check_isolation(policy, teacher.num_rows, seq_len, reach(hf_config), before_pass)
            (check_rows if policy.in_rows else check_packing)(policy, hf_config, seq_len, before_pass)
    except SelfCheckError as error:
        raise SelfCheckError(f"Of the teacher {teacher.source}: {error}") from error


def _load(session: Session, teacher: TeacherFiles) -> Policy:
    config, mesh, model = session.config, session.mesh, teacher.model
    on_gpu, dtype = mesh.device.type == "cuda", config.zero.dtype
    asked = config.objective.distill.shard_teacher
    is_sharded = config.zero.stage == 3 if asked is None else asked
    ds_config = _inference(session) if is_sharded else None
    capability = torch.cuda.get_device_capability(mesh.device) if on_gpu else None
    attention = choose_attention(model.attention, capability, dtype, has=offered(teacher.hf_config))
    heed = heeding(mesh, session.stop_flag)
    gathers = contextlib.nullcontext() if ds_config is None else looking_up_at_gathers(heed)
    with looking_up(heed), gathers:
        loaded = load_model(teacher.source, model, attention, dtype, ds_config, mesh.device)
    is_plain = packing_of(teacher.hf_config) is None and model.kind is not ModelKind.random
    num_verified = 0
    if model.verify_weights and is_plain:
        num_verified = verify_weights(loaded.model, open_base(teacher.source, model), gathered)
    apply_kernels(loaded.model, model.kernels, on_gpu)
    install_loss_head(loaded.model, model.loss_chunk_tokens)
    engine = frozen_engine(CausalLM(loaded.model), ds_config)
    _LOG.info(
        "Teacher %s: %.1f M parameters, attention %s, %s, %d tensors compared with their files.",
        teacher.source,
        loaded.num_parameters / 1e6,
        attention.name,
        "spread over all ranks" if is_sharded else "whole on each rank",
        num_verified,
    )
    carries = carried_by(teacher.hf_config) is not None
    return Policy(engine, mesh, attention.is_flash, in_rows(config.data), carries)


def _inference(session: Session) -> dict[str, Any]:
    """Return DeepSpeed's configuration of a model that is spread over ranks and never trained."""
    config = session.config
    zero = dataclasses.replace(
        config.zero, stage=3, offload_optimizer=Offload.none, offload_param=Offload.none, extra={}
    )
    return deepspeed_dict(zero, config.optim, session.shape, session.mesh.device.type == "cuda")
