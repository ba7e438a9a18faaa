"""The model that a data command asks: what names it, and how it is loaded."""

from __future__ import annotations

import dataclasses
import datetime
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from trainer.command.plain_model import device_here, load_plain
from trainer.command.replay import sampling_dtype, stops_of_files
from trainer.config.check_synthetic import sampling
from trainer.config.generate import SampleEngine
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.schema import RunConfig
from trainer.config.synthetic import SyntheticConfig
from trainer.errors import ConfigError
from trainer.model.cache import context_length
from trainer.model.digest import model_digest
from trainer.model.dtype import ELEMENT_BYTES
from trainer.model.load import read_config
from trainer.model.resolve import resolve_model
from trainer.model.tokenizer import Tokenizer, configured_tokenizer
from trainer.sample.answering import AnswerSource, ModelAnswering, VllmAnswering
from trainer.sample.sampler import cache_bytes
from trainer.sample.vllm import choose_engine, cpu_cache_bytes, start_engine
from trainer.synthetic.asked_model import AskedModel, LetterReader
from trainer.synthetic.made_file import begun_facts

KEY = "synthetic.engine"
VLLM_LONGEST = 32_768
"""Tokens of the longest sequence that vLLM is started for: for a longer one it may have no room."""


@dataclass(frozen=True)
class NamedData:
    """A model by its digest, not loaded yet."""

    source: str
    model: ModelConfig
    options: SyntheticConfig
    cache_dir: Path
    tokenizer: Tokenizer
    digest: str
    engine: SampleEngine
    dtype: str

    @property
    def at_once(self) -> int:
        """Given rows that are answered together."""
        return (VllmAnswering if self.engine is SampleEngine.vllm else ModelAnswering).at_once

    @property
    def decides(self) -> dict[str, Any]:
        """What of it decides its answers, as JSON values."""
        names = {"model": self.digest, "tokenizer": self.tokenizer.digest, "dtype": self.dtype}
        day = self.model.chat_template_date if self.tokenizer.asks_date else None
        return {**names, "engine": self.engine.value, "device": device_here().type, "day": day}

    @cached_property
    def loaded(self) -> Any:
        """The model as transformers loads it."""
        return load_plain(self.model, self.cache_dir)

    def asked(self) -> AskedModel:
        """Load it, and return what answers."""
        hf_config = read_config(self.source, self.model)
        longest = context_length(hf_config)
        answering: AnswerSource
        if self.engine is SampleEngine.vllm:
            longest = min(longest or VLLM_LONGEST, VLLM_LONGEST)
            on_gpu = torch.cuda.is_available()
            room = None
            if not on_gpu:
                token_bytes = cache_bytes(hf_config, ELEMENT_BYTES[self.dtype])
                room = cpu_cache_bytes(token_bytes, longest, 1)
            engine = start_engine(
                self.source,
                self.model.revision,
                self.model.trust_remote_code,
                longest,
                0 if on_gpu else None,
                room,
                self.dtype,
                KEY,
            )
            stops = stops_of_files(self.source, hf_config)
            answering = VllmAnswering(engine, self.tokenizer, sampling(self.options), stops)
        else:
            answering = ModelAnswering(self.loaded, self.tokenizer, sampling(self.options))
        return AskedModel(self.tokenizer, answering, self.options.max_new_tokens, longest)

    def letters(self) -> LetterReader:
        """Load it with transformers, and return what reads the probability of letters."""
        return LetterReader(self.loaded, self.tokenizer, context_length(self.loaded.config))


def named_model(config: RunConfig, samples: bool = True) -> NamedData:
    """Find out which model is asked, without loading it.

    Args:
        samples: It is sampled; else its probabilities are read, which transformers does.
    Raises:
        TrainerError: There is none, or none that knows anything.
    """
    model, options, cache_dir = config.model, config.synthetic, Path(config.data.cache_dir)
    if model.kind is ModelKind.random:
        raise ConfigError(
            "`model.kind` must have weights that know something, but is random instead. Name a model."
        )
    if model.chat_template_date is None:
        day = begun_facts(options.output or "").get("day") or datetime.date.today().isoformat()
        model = dataclasses.replace(model, chat_template_date=day)
    source = resolve_model(model, cache_dir)
    tokenizer = configured_tokenizer(dataclasses.replace(model, new_tokens=[]), source)
    engine = SampleEngine.transformers
    if samples:
        engine = choose_engine(sampling(options), torch.cuda.is_available(), KEY)
    digest = model_digest(source, model.revision, cache_dir)
    dtype = sampling_dtype(engine, device_here())
    return NamedData(source, model, options, cache_dir, tokenizer, digest, engine, dtype)
