"""Small tokenizers made on the spot: bytes and special tokens, a few merges if asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.templates import CHATML, SPECIAL_TOKENS
from trainer.config.model import ModelConfig
from trainer.model.tokenizer import Tokenizer, configured_tokenizer

BOS, EOS = "<s>", "</s>"


def make_tokenizer(
    template: str | None = CHATML,
    adds_bos: bool = False,
    pad: str | None = None,
    unk: str | None = None,
    texts: Iterable[str] | None = None,
    trim_offsets: bool = False,
) -> Tokenizer:
    """Return a byte-level tokenizer; `texts` teach it merges, up to 2,000 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if texts is not None:
        learn = trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator(texts, learn)
    named = [token for token in (BOS, EOS, pad, unk) if token]
    backend.add_special_tokens([*named, *SPECIAL_TOKENS])
    steps: list[processors.PostProcessor] = [processors.ByteLevel(trim_offsets=trim_offsets)]
    if adds_bos:
        bos_id = backend.token_to_id(BOS)
        steps.append(processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)]))
    backend.post_processor = processors.Sequence(steps)
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=pad, unk_token=unk
    )
    hf.chat_template = template
    return Tokenizer(hf)


def save_tokenizer(folder: Path, tokenizer: Tokenizer) -> str:
    """Write a tokenizer for other processes and return its path."""
    tokenizer.save(folder)
    return str(folder)


def load_saved(folder: str, digest: str | None = None) -> Tokenizer:
    """Load what save_tokenizer wrote; top-level, so that workers can unpickle it."""
    tokenizer = configured_tokenizer(ModelConfig(), folder)
    assert digest in (None, tokenizer.digest), "another process sees another digest"
    return tokenizer
