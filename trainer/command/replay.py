"""Composition root of `palimpsest replay generate`: model, prompts, sampler and store, over all ranks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from trainer import __version__
from trainer.config.generate import GenerateConfig, Prompts, SampleEngine
from trainer.config.many import many
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.schema import RunConfig
from trainer.dist.env import rank_env
from trainer.dist.mesh import Mesh, close_mesh, open_mesh
from trainer.errors import ConfigError
from trainer.metrics.device import describe_device
from trainer.model.attention import AttentionChoice, offered
from trainer.model.base_files import open_base
from trainer.model.digest import model_digest
from trainer.model.dtype import ELEMENT_BYTES, choose_dtype, hardware_here
from trainer.model.load import LoadedModel, load_model, read_config
from trainer.model.resolve import resolve_model
from trainer.model.tensor_by_tensor import looking_up
from trainer.model.tokenizer import Tokenizer, configured_tokenizer
from trainer.model.verify_weights import verify_weights
from trainer.run.heed import GivenUp, heeding
from trainer.runtime.disk import disk_explained
from trainer.runtime.log import adopt_library_loggers, setup_logging
from trainer.runtime.signals import StopFlag
from trainer.sample.generate import Judge, sample_until_enough
from trainer.sample.prompts import PromptPlan, plan_prompts, uses_chat
from trainer.sample.real_prompts import GivenPrompts, given_prompts
from trainer.sample.sampler import Sampler, TransformersSampler, cache_bytes, choose_batch_size
from trainer.sample.samples import WorkFolder, explained, find_store, try_lock
from trainer.sample.show import ProgressView, show_store
from trainer.sample.vllm import VllmSampler, choose_engine, cpu_cache_bytes, start_engine, vllm_version

_LOG = logging.getLogger(__name__)

SAMPLES_VERSION = 1
"""Raise it when the same options give other samples: a new number makes new stores."""
WAIT_S = 2.0


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for, and where it will be."""

    source: str
    model_digest: str
    tokenizer: Tokenizer
    plan: PromptPlan
    engine: SampleEngine
    key: str
    samples_key: str
    """Of what shapes a sample: the key without how many are asked for, at once and in all."""
    target: Path
    given: GivenPrompts | None = None
    """What is asked where that are real prompts."""

    def longest(self, options: GenerateConfig) -> int:
        """Return the tokens of the longest sample, its prompt included."""
        if self.given is not None:
            return self.given.longest + options.max_new_tokens
        return _longest(self.plan, options)


def make_request(config: RunConfig) -> Request:
    """Find out what is asked for without loading the model; made models are made here.

    Raises:
        TrainerError: It cannot be sampled as asked.
    """
    options, model = config.replay.generate, config.model
    cache_dir = Path(config.data.cache_dir)
    if model.kind is ModelKind.random:
        raise ConfigError(
            "`model.kind` must have weights that know something, but is random instead. Name a model."
        )
    source = resolve_model(model, cache_dir)
    tokenizer = configured_tokenizer(replace(model, new_tokens=[]), source)
    is_chat = uses_chat(options.prompts, tokenizer)
    engine = choose_engine(options, torch.cuda.is_available())
    hf_config = read_config(source, model)
    plan = plan_prompts(is_chat, tokenizer, tokenizer.special_ids, stops_of_files(source, hf_config))
    given = None
    if options.prompts is Prompts.given:
        given = _given(config, tokenizer, hf_config)
        plan = replace(plan, header=given.header, bridge=[])
    else:
        _check_context(hf_config, plan, options)
    weights = model_digest(source, model.revision, cache_dir)
    shaping = {name: getattr(value, "value", value) for name, value in asdict(options).items()}
    shaping |= {"output_dir": None, "prompts": "chat" if is_chat else "text"}
    del shaping["prompt_file"]  # the prompts themselves count
    if given is not None:
        shaping["prompts"] = given.digest
    key, samples_key = (
        hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        for described in (
            [SAMPLES_VERSION, weights, tokenizer.digest, shaping],
            [SAMPLES_VERSION, weights, tokenizer.digest, shaping | {"num_tokens": None, "batch_size": None}],
        )
    )
    target = Path(options.output_dir or cache_dir / "generated" / key[:8]).expanduser().resolve()
    return Request(source, weights, tokenizer, plan, engine, key, samples_key, target, given)


def _given(config: RunConfig, tokenizer: Tokenizer, hf_config: Any) -> GivenPrompts:
    options = config.replay.generate
    context = getattr(hf_config, "max_position_embeddings", None)
    most = None if context is None else context - options.max_new_tokens
    return given_prompts(options.prompt_file, config.data, tokenizer, most, options.seed)


def stops_of_files(source: str, hf_config: Any) -> list[int]:
    """Return the end tokens of the model's own files: some tokenizers name only one of several."""
    found = getattr(hf_config, "eos_token_id", None)
    file = Path(source) / "generation_config.json"
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") or found
    if found is None:
        return []
    return [int(token) for token in (found if isinstance(found, list) else [found])]


def _longest(plan: PromptPlan, options: GenerateConfig) -> int:
    return plan.longest + options.max_new_tokens * (2 if plan.is_chat else 1)


def _check_context(hf_config: Any, plan: PromptPlan, options: GenerateConfig) -> None:
    longest = getattr(hf_config, "max_position_embeddings", None)
    if longest is not None and _longest(plan, options) > longest:
        turns = "two turns" if plan.is_chat else "a text"
        fits = max((longest - plan.longest) // (2 if plan.is_chat else 1), 1)
        raise ConfigError(
            f"`replay.generate.max_new_tokens` must let {turns} fit into the model's context of {longest}, but is "
            f"{options.max_new_tokens} instead. Set at most {fits}."
        )


def show_finished(config: RunConfig) -> bool:
    """Print the store that is asked for when it is there already; check that it can be made otherwise."""
    request = make_request(config)
    with explained(request.target.parent):
        meta = find_store(request.target, request.key)
        if meta is not None:
            print("These samples are there already.")
            show_store(request.target, meta, Console())
            return True
        request.target.parent.mkdir(parents=True, exist_ok=True)
    return False


def run_generation(config: RunConfig) -> bool:
    """Generate as configured; return False when a signal ended it early. Collective: every rank."""
    with ExitStack() as stack:
        env = rank_env(os.environ)
        stop_flag = stack.enter_context(StopFlag(tells=env.is_first))
        stop_flag.when = "after the samples that are under way, which are kept; the same command goes on."
        setup_logging(env.rank, env.world_size, None)
        mesh = open_mesh(env, config.cluster.comm_timeout_s)
        stack.push(close_mesh)
        adopt_library_loggers()
        with disk_explained(None):
            return generate_on(mesh, config, stop_flag)


def generate_on(mesh: Mesh, config: RunConfig, stop_flag: StopFlag) -> bool:
    """Generate with the ranks of a group, or wait for a process that does. Collective: every rank."""
    # Rank 0 alone makes models and digests; the others find them made.
    mesh.from_first(lambda: make_request(config).key)
    request = make_request(config)
    with ExitStack() as stack, explained(request.target.parent):
        while not mesh.from_first(lambda: _claim(request, stack)):
            if any(mesh.gather(stop_flag.requested)):
                return False
        meta = mesh.from_first(lambda: find_store(request.target, request.key))
        if meta is None:
            meta = _generate(mesh, config, request, stop_flag, stack)
        elif mesh.is_first:
            WorkFolder(request.target).remove()  # of a process that died right after it published
        if meta is not None and mesh.is_first:
            show_store(request.target, meta, Console())
        return meta is not None


def _claim(request: Request, stack: ExitStack) -> bool:
    """Take the store's lock; wait a little when another process has it. Rank 0."""
    lock = try_lock(request.target)
    if lock is None:
        _LOG.info("Another process is making %s: waiting for it.", request.target)
        time.sleep(WAIT_S)
        return False
    stack.enter_context(lock)
    return True


def _generate(
    mesh: Mesh, config: RunConfig, request: Request, stop_flag: StopFlag, stack: ExitStack
) -> dict[str, Any] | None:
    options = config.replay.generate
    gpu_bytes: int | None = None
    if mesh.device.type == "cuda":
        gpu_bytes = int(torch.cuda.get_device_properties(mesh.device).total_memory)
    dtype: str = mesh.from_first(lambda: sampling_dtype(request.engine, mesh.device))
    try:
        loaded = _load(mesh, config.model, request, dtype, heeding(mesh, stop_flag))
    except GivenUp:
        return None
    batch_size = options.batch_size or choose_batch_size(
        read_config(request.source, config.model),
        request.longest(options),
        gpu_bytes,
        loaded.num_parameters if loaded is not None else 0,
        ELEMENT_BYTES[dtype],
    )
    work = WorkFolder(request.target)
    asked = {
        "engine": request.engine.value,
        "batch_size": batch_size,
        "dtype": dtype,
        "prompts": request.plan.to_plain(),
        "samples_key": request.samples_key,
    }
    agreed = mesh.from_first(lambda: work.begin(asked))
    plan = PromptPlan(**agreed["prompts"])
    sampler = _build_sampler(mesh, config, request, plan, agreed, loaded)
    view = ProgressView(options.num_tokens, Console(file=sys.stderr)) if mesh.is_first else None
    if view is not None:
        stack.callback(view.close)
        _LOG.info(
            "Sampling %s of %s until %s tokens are kept: %d rank(s), %s in %s, batches of %d.",
            "texts" if not plan.is_chat else "chats" if request.given is None else "answers",
            request.source,
            f"{options.num_tokens:,}",
            mesh.num_ranks,
            request.engine.value,
            dtype,
            agreed["batch_size"],
        )
        _say_given(request.given)
    judge = Judge(plan, options, request.tokenizer, request.tokenizer.special_ids, request.given)
    tally = sample_until_enough(
        sampler,
        judge,
        work,
        mesh,
        lambda: stop_flag.requested,
        view.show if view is not None else lambda tally: None,
    )
    if view is not None:
        view.close()
    if tally is None:
        return None
    num_batches, facts = tally.num_batches, _facts(config, request, agreed) | {"counts": tally.to_plain()}
    return dict(mesh.from_first(lambda: work.publish(num_batches, facts)))


def _build_sampler(
    mesh: Mesh,
    config: RunConfig,
    request: Request,
    plan: PromptPlan,
    agreed: dict[str, Any],
    loaded: LoadedModel | None,
) -> Sampler:
    options, model, batch_size = config.replay.generate, config.model, int(agreed["batch_size"])
    if loaded is not None:
        return TransformersSampler(loaded.model, plan, options, batch_size, mesh.device, request.given)
    longest = request.longest(options)
    gpu: int | None = mesh.local_rank
    room: int | None = None
    if mesh.device.type != "cuda":
        gpu = None
        token_bytes = cache_bytes(read_config(request.source, model), ELEMENT_BYTES[agreed["dtype"]])
        room = cpu_cache_bytes(token_bytes, longest, batch_size)
    engine = start_engine(
        request.source, model.revision, model.trust_remote_code, longest, gpu, room, agreed["dtype"]
    )
    return VllmSampler(engine, plan, options, batch_size, request.given)


def _say_given(given: GivenPrompts | None) -> None:
    if given is not None:
        causes = "".join(f"; {count:,} {what}" for what, count in given.counts.items() if count)
        _LOG.info("They answer %s%s.", many(len(given.rest), "prompt"), causes)


def _facts(config: RunConfig, request: Request, agreed: dict[str, Any]) -> dict[str, Any]:
    options = asdict(config.replay.generate)
    versions = {"palimpsest": __version__, "torch": torch.__version__, "samples": SAMPLES_VERSION}
    if request.engine is SampleEngine.vllm:
        versions["vllm"] = vllm_version()
    return {
        "key": request.key,
        "model": config.model.path or config.model.kind.value,
        "model_digest": request.model_digest,
        "tokenizer_digest": request.tokenizer.digest,
        "format": "chat" if request.plan.is_chat else "text",
        **({} if request.given is None else {"given": request.given.to_plain()}),
        "options": {name: getattr(value, "value", value) for name, value in options.items()},
        **agreed,
        "device": describe_device(),
        "versions": versions,
    }


def sampling_dtype(engine: SampleEngine, device: torch.device) -> str:
    """Return what to sample in: transformers on a CPU in float32 in any case."""
    if engine is SampleEngine.transformers and device.type != "cuda":
        return "fp32"
    return choose_dtype(hardware_here()).name


def _load(
    mesh: Mesh, model: ModelConfig, request: Request, dtype: str, heed: Callable[[], None]
) -> LoadedModel | None:
    """Load the model for plain transformers; vLLM loads it itself. Collective: every rank.

    Raises:
        GivenUp: A rank was asked to stop meanwhile.
    """
    if request.engine is SampleEngine.vllm:
        return None
    has = offered(read_config(request.source, model))
    attention = AttentionChoice("sdpa" if has.has_sdpa else "eager", "one query a row")
    with looking_up(heed):
        loaded = load_model(request.source, model, attention, dtype, None, mesh.device)
    if model.verify_weights:
        verify_weights(
            loaded.model, open_base(request.source, model), lambda parameters: contextlib.nullcontext()
        )
    return loaded
