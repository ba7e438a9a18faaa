"""Config section for what trains: every parameter, an adapter, or some layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

ALL_LINEAR = "all_linear"
EXPERTS = "experts"
MOST_GATED_RANK = 32
"""Rank up to which a gated MLP with LoRA is one function, whose kernels keep their tile's part of the adapters in
registers (model/tune/gated.py); above it, layers are fused one by one."""


class TuneMethod(Enum):
    """Which parameters train."""

    full = "full"
    """Every parameter."""
    lora = "lora"
    """Low-rank factors beside frozen matrices."""
    ia3 = "ia3"
    """Learnt scales of keys, values and inner activations."""
    freeze = "freeze"
    """Some layers."""
    prefix = "prefix"
    """Keys and values of virtual tokens."""
    prompt = "prompt"
    """Embeddings of virtual tokens."""


class Init(Enum):
    """How what is added begins."""

    default = "default"
    """The usual one of the method."""
    gaussian = "gaussian"
    """Normal."""
    pissa = "pissa"
    """The largest singular vectors of each weight; lora only."""
    zero = "zero"
    """Zero; prefix only."""


WEIGHTS = (TuneMethod.full, TuneMethod.freeze)
"""Methods that train weights of the base, and nothing beside them."""
VIRTUAL = (TuneMethod.prefix, TuneMethod.prompt)
"""Methods that put virtual tokens before every document."""


class Quantise(Enum):
    """How the frozen base is kept."""

    none = "none"
    """In the dtype of training."""
    nf4 = "nf4"
    """In 4 bits (NF4), with double quantisation."""


@dataclass
class TuneConfig:
    """What trains."""

    method: TuneMethod = TuneMethod.full
    """`full`: every parameter; `lora`: low-rank factors beside frozen matrices; `ia3`: a learnt scale of keys,
    values and the MLP's inner activations (Liu et al. 2022, arXiv:2205.05638); `freeze`: the layers that `train` and
    `last_layers` name; `prefix`: keys and values of virtual tokens in every layer (Li and Liang 2021,
    arXiv:2101.00190); `prompt`: embeddings of virtual tokens (Lester et al. 2021, arXiv:2104.08691)."""
    start: str | None = None
    """lora: an adapter to go on training, ours or peft's: its folder, or the directory of a run, whose last checkpoint
    counts. `r`, `alpha`, `rslora`, `dora` and `target` are its own, and the base that the run is compared with is the
    model with it. null: factors that begin fresh."""
    quantise: Quantise = Quantise.none
    """lora, ia3: how the frozen linear layers are kept. `nf4`: in 4 bits with double quantisation, half a byte a weight
    (Dettmers et al. 2023, arXiv:2305.14314); needs bitsandbytes. `none`: in the dtype of training."""
    r: int = 16
    """lora: rank."""
    alpha: float | None = None
    """lora: the factors' product counts alpha / r times. null: 2 r (Biderman et al. 2024, arXiv:2405.09673)."""
    dropout: float = 0.0
    """lora: dropout before the factors."""
    target: list[str] = field(default_factory=lambda: [ALL_LINEAR])
    """lora, ia3: names of modules, such as [q_proj, v_proj]; [all_linear]: every linear layer but the head, the shared
    experts of a mixture in, without routers, and without gates smaller than the rank. lora: `experts` beside them, such
    as [all_linear, experts], adds the tensors that hold all experts of a layer; every forward then makes such a tensor
    anew, so recompute layers (model.checkpoint_layers=-1)."""
    feedforward: list[str] = field(default_factory=lambda: ["down_proj"])
    """ia3: those of `target` whose input is scaled instead of their output."""
    target_pattern: str | None = None
    """lora: a regular expression that the whole name of a module must match; takes the place of `target`."""
    rslora: bool = False
    """lora: scale by alpha / sqrt(r), for large ranks (Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """lora: train magnitude and direction apart (Liu et al. 2024, arXiv:2402.09353); slower."""
    init: Init = Init.default
    """lora: `default` and `gaussian` distributions of A, with B 0, so that the run begins at its base; `pissa`: the
    largest singular vectors of each weight, which are taken out of it (Meng et al. 2024, arXiv:2404.02948). prefix:
    `default` is normal, `zero` the mildest. prompt: `default` copies embeddings of tokens drawn from the vocabulary,
    `gaussian` is normal."""
    lora_plus_ratio: float = 1.0
    """lora: learning rate of B over that of A (Hayou et al. 2024, arXiv:2402.12354, has 16). Range: [1, inf)."""
    modules_to_save: list[str] = field(default_factory=list)
    """lora, ia3: names of modules that train whole beside the adapter and are saved with it, such as [lm_head]. On a
    model with tied embeddings lm_head and embed_tokens are one matrix."""
    virtual_tokens: int = 20
    """prefix, prompt: virtual tokens before every document."""
    train: list[str] = field(default_factory=list)
    """freeze: regular expressions; a parameter whose name one of them finds trains."""
    last_layers: int = 0
    """freeze: also the last so many decoder layers train."""

    @property
    def trains_weights(self) -> bool:
        """Tell whether weights of the base train, and nothing beside them."""
        return self.method in WEIGHTS

    @property
    def is_virtual(self) -> bool:
        """Tell whether virtual tokens train."""
        return self.method in VIRTUAL

    @property
    def scale_alpha(self) -> float:
        """Return alpha with its default."""
        return 2.0 * self.r if self.alpha is None else self.alpha
