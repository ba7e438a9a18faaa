"""Config section for self-generated replay: what `palimpsest replay generate` samples and what it drops."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Prompts(Enum):
    """What a sample begins with."""

    auto = "auto"
    """`chat` where the tokenizer has a chat template, else `text`."""
    text = "text"
    """The token that begins a document."""
    chat = "chat"
    """The header of a user's turn."""
    given = "given"
    """Questions of people: those of `prompt_file`, else of the run's target sources."""


class SampleEngine(Enum):
    """What runs the model while it samples."""

    auto = "auto"
    """vLLM on a GPU where it is installed, else transformers."""
    vllm = "vllm"
    """vLLM."""
    transformers = "transformers"
    """The loaded model itself."""


VLLM_TEMPERATURES = (0.01, 2.0)
"""vLLM raises lower ones to the first, and refuses higher ones."""


@dataclass
class GenerateConfig:
    """Sampling of the base model. The defaults sample its own distribution and change nothing about it."""

    num_tokens: int = 1_000_000
    """Sampled tokens to keep, without prompts and end marks. The last batch may go over. Range: 1 or more."""
    prompts: Prompts = Prompts.auto
    """`text` samples documents from BOS; `chat` samples a user's turn from the chat template's header, then
    the answer; `given` samples the model's own answers to real prompts; `auto` is chat where the tokenizer has a chat
    template."""
    prompt_file: str | None = None
    """given: rows of chats, of prompts with answers or of prompts alone. What is before the first answer is asked, the
    rest thrown away. null: the target sources of the run that hold chats or answers."""
    max_new_tokens: int = 512
    """Longest sample in tokens; for chats, longest turn. Longer texts are cut, longer chats dropped."""
    min_new_tokens: int = 8
    """Drop samples of fewer tokens. Sampling is not forced to go on, that would change what is sampled."""
    temperature: float = 1.0
    """Divides the logits. 1 is the model's own distribution, whatever its generation_config says."""
    top_p: float = 1.0
    """Sample among the most likely tokens of this total probability; 1 is off. Range: (0, 1]."""
    batch_size: int = 0
    """Samples of a batch; 0 chooses by the GPU's memory, 16 without a GPU. Part of what is sampled."""
    engine: SampleEngine = SampleEngine.auto
    """`auto` takes vLLM on a GPU when it is installed, else transformers; `vllm` also runs its CPU build."""
    seed: int = 0
    """Batch k is sampled with a seed made of this and k, whichever rank samples it."""
    max_repeated_ngrams: float = 0.5
    """Drop samples in whose turns a larger share of the token 4-grams was there before. Range: [0, 1]."""
    max_run_tokens: int = 32
    """Drop samples that repeat one token more often in a row. Range: 1 or more."""
    max_compression: float = 5.0
    """Drop samples that zlib makes smaller by a larger factor. Prose is near 2. Range: 1 or more."""
    max_replacement: float = 0.0
    """Drop samples with a larger share of characters that are not valid UTF-8. Range: [0, 1]."""
    output_dir: str | None = None
    """Folder of the finished store; null means data.cache_dir/generated/<digest of what is asked for>."""
