"""Samples with vLLM where it is installed. Not run by the tests or the authors: there was no vLLM to run.

It makes the same drafts as sample.py from the same plan; only the random numbers differ.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

from trainer.config.generate import GenerateConfig, SampleEngine
from trainer.errors import ModelError
from trainer.replay.prompts import Draft, PromptPlan
from trainer.replay.sample import batch_seed


def choose_engine(asked: SampleEngine, on_gpu: bool) -> SampleEngine:
    """Return the engine to sample with.

    Raises:
        ModelError: vLLM is asked for and not installed.
    """
    is_installed = importlib.util.find_spec("vllm") is not None
    if asked is SampleEngine.vllm and not is_installed:
        raise ModelError(
            "`replay.generate.engine` must be installed, but vllm is not. Install it with: pip install vllm; or "
            "set replay.generate.engine=transformers."
        )
    if asked is SampleEngine.vllm or (asked is SampleEngine.auto and is_installed and on_gpu):
        return SampleEngine.vllm
    return SampleEngine.transformers


class VllmSampler:
    """One vLLM engine on this rank's GPU."""

    def __init__(
        self,
        source: str,
        revision: str | None,
        plan: PromptPlan,
        options: GenerateConfig,
        batch_size: int,
        local_rank: int,
        trust_remote_code: bool,
    ) -> None:
        import vllm

        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        # vLLM takes the first GPU that it sees.
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[local_rank] if visible[0] else str(local_rank)
        self._vllm: Any = vllm
        self._llm: Any = vllm.LLM(
            model=source,
            revision=revision,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            generation_config="vllm",  # not the model's: see sample.py
            max_model_len=plan.longest + 2 * options.max_new_tokens,
            trust_remote_code=trust_remote_code,
        )
        self._plan = plan
        self._options = options
        self._batch_size = batch_size

    def sample(self, number: int, should_stop: Callable[[], bool]) -> list[Draft] | None:
        """Sample batch `number`: all questions or texts first, then the answers of those that asked."""
        drafts = [Draft(self._plan, self._options.max_new_tokens) for _ in range(self._batch_size)]
        seed = batch_seed(self._options.seed, number)
        self._grow(drafts, [self._plan.header] * len(drafts), seed)
        asked = [draft for draft in drafts if len(draft.turns) == 2]
        if should_stop():
            return None
        for draft in asked:
            for forced in self._plan.bridge[1:]:
                draft.take(forced)
        self._grow(
            asked, [self._plan.header + d.turns[0] + self._plan.bridge for d in asked], batch_seed(seed, 1)
        )
        return drafts

    def _grow(self, drafts: list[Draft], prompts: list[list[int]], seed: int) -> None:
        options, plan = self._options, self._plan
        stops = sorted({*plan.stops, *plan.bridge[:1]})
        parameters = [
            self._vllm.SamplingParams(
                temperature=options.temperature,
                top_p=options.top_p,
                max_tokens=options.max_new_tokens,
                stop_token_ids=stops,
                ignore_eos=True,
                detokenize=False,
                seed=(seed + row) % 2**63,
            )
            for row in range(len(drafts))
        ]
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self._llm.generate(requests, parameters, use_tqdm=False) if requests else []
        for draft, output in zip(drafts, outputs, strict=True):
            for token in output.outputs[0].token_ids:  # a stop token is the last of them
                draft.take(token)
