"""Model types of transformers' causal language models that are no row of tests/helpers/families.py, and why."""

from __future__ import annotations

OTHER_TYPES: dict[str, tuple[str, ...]] = {
    "encodes and decodes, or is the decoder of such a model": (
        *("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp", "pegasus"),
        *("plbart", "prophetnet", "trocr"),
    ),
    "an encoder that can be told to be a decoder": (
        *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie"),
        *("megatron-bert", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
        *("xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod"),
    ),
    "speaks or hears": ("moshi", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "whisper"),
    "reads pictures, with layers or tokens for them in its language model": (
        *("emu3", "fuyu", "git", "got_ocr2", "mllama"),
    ),
    "the whole of a family whose language model is a row": (
        *("dots3_note", "gemma3n", "gemma4_unified", "qwen4_exp"),
    ),
    "drafts tokens for another model": ("gemma4_assistant", "gemma4_unified_assistant"),
    "older than 2024": (
        *("biogpt", "codegen", "cpmant", "ctrl", "gpt-sw3", "gpt_bigcode", "gpt_neo", "gpt_neox_japanese"),
        *("mpt", "openai-gpt", "persimmon", "rwkv", "xglm"),
    ),
}
