"""Parameters of a decoder, counted from its config.json. Pure: no torch, no weights.

Shapes: a weight is [out, in]; counts are elements, not bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.errors import ModelError

MIXTURE_NOTE = (
    "Memory of mixtures of experts is an estimate. Of Qwen3-30B-A3B on an H200 all weights of 6 layers took 3 % more, "
    "LoRA of all layers an eighth less, with a kernel for experts that keeps less and is not taken any more."
)
LANGUAGE_NOTE = (
    "Of {kind} only the language part is counted: it alone trains. What sees or hears is read with it, let go before "
    "training, and in the export again."
)


@dataclass(frozen=True, slots=True)
class Linear:
    """Linear layers of one kind over the whole model: what adapters can stand beside."""

    name: str
    num_in: int
    num_out: int
    count: int

    @property
    def num_weights(self) -> int:
        """Return the weights of all of them; biases are left out."""
        return self.num_in * self.num_out * self.count


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Counts and widths of a decoder; the head counts 0 when it is tied to the embeddings."""

    model_type: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    q_dim: int
    """Attention heads x head dimension."""
    kv_dim: int
    num_heads: int
    embeddings: int
    attention: int
    mlp: int
    norms: int
    head: int
    linears: tuple[Linear, ...]
    """Without embeddings, head and experts; these last are 3-D parameters, not linear layers, in transformers 5."""
    ffn_width: float
    """Intermediate elements a token has in one layer's MLP, experts it is sent to together, mean over layers."""
    routed_copies: float = 0.0
    """Copies of a token's hidden state made for its experts, mean over layers."""
    experts: int = 0
    """Those of `mlp` that are experts; all of them are held in memory."""
    idle: int = 0
    """Those of `experts` that a token does not go to."""
    has_qk_norm: bool = False
    has_post_norms: bool = False
    has_flash: bool = True
    """It has the flash attention that the extra `gpu` installs."""
    has_sdpa: bool = True
    scales_logits: bool = False
    """Logits are multiplied behind the output layer."""
    caps_logits: bool = False
    """Logits are bent under a soft cap behind the output layer."""
    has_silu_gates: bool = False
    """Its MLPs of linear layers are down(silu(gate x) * up x), without biases."""
    num_scores: int | None = None
    """Numbers that a reward model's output layer gives; None for a language model, which gives one for each token."""
    notes: tuple[str, ...] = field(default=())
    """What the counts leave open, for the reader."""

    @property
    def num_outputs(self) -> int:
        """Return the rows of the output layer."""
        return self.vocab_size if self.num_scores is None else self.num_scores

    def scoring(self) -> DecoderShape:
        """Return the counts of the reward model that this language model becomes."""
        return replace(self, num_scores=1, head=self.hidden_size, scales_logits=False, caps_logits=False)

    @property
    def num_params(self) -> int:
        """Return all parameters, a tied head once."""
        return self.embeddings + self.attention + self.mlp + self.norms + self.head

    @property
    def num_active(self) -> int:
        """Return the parameters that a token goes to."""
        return self.num_params - self.idle

    @property
    def is_tied(self) -> bool:
        """Tell whether the head shares the embedding matrix."""
        return self.head == 0


@dataclass(frozen=True, slots=True)
class _Family:
    """What an architecture of transformers fixes or assumes where config.json is silent."""

    tied: bool = False
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = False
    """Biases on q, k and v whatever config.json says."""
    bias_keys: bool = False
    """`attention_bias` adds biases to q, k, v and o."""
    has_qk_norm: bool = False
    is_qk_norm_whole: bool = False
    """The norms of q and k are over all heads together and not over each."""
    has_post_norms: bool = False
    caps_scores: bool = False
    """Scores of attention are bent, which SDPA leaves out, and logits too."""
    is_fused: bool = False
    """q, k and v are one linear layer, and gate and up another."""
    experts_key: str = ""


# Defaults of transformers 5.23 `configuration_*.py`; the tests build each family on the meta device.
_FAMILIES: dict[str, _Family] = {
    "llama": _Family(bias_keys=True),
    "mistral": _Family(num_kv_heads=8),
    "qwen2": _Family(num_kv_heads=32, qkv_bias=True),
    "qwen3": _Family(num_kv_heads=32, head_dim=128, bias_keys=True, has_qk_norm=True),
    "gemma": _Family(tied=True, num_kv_heads=16, head_dim=256, bias_keys=True),
    "gemma2": _Family(
        tied=True, num_kv_heads=4, head_dim=256, bias_keys=True, has_post_norms=True, caps_scores=True
    ),
    "gemma3_text": _Family(
        tied=True, num_kv_heads=4, head_dim=256, bias_keys=True, has_qk_norm=True, has_post_norms=True
    ),
    "olmo2": _Family(bias_keys=True, has_qk_norm=True, is_qk_norm_whole=True),
    "olmo3": _Family(bias_keys=True, has_qk_norm=True, is_qk_norm_whole=True),
    "phi3": _Family(is_fused=True),
    "smollm3": _Family(tied=True, num_kv_heads=4, bias_keys=True),
    "mixtral": _Family(num_kv_heads=8, experts_key="num_local_experts"),
    "qwen2_moe": _Family(num_kv_heads=16, experts_key="num_experts"),
    "qwen3_moe": _Family(num_kv_heads=4, bias_keys=True, has_qk_norm=True, experts_key="num_experts"),
}
_OTHER_NAME = {"num_experts": "num_local_experts"}


def knows(config: Mapping[str, Any]) -> bool:
    """Tell whether `decoder_shape` counts this architecture.

    Of a model that also sees or hears, its language part, where it says all sizes itself.
    """
    text = language_part(config)
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size")
    return text.get("model_type") in _FAMILIES and (text is config or all(key in text for key in needed))


def has_silu(config: Mapping[str, Any]) -> bool:
    """Tell whether a config.json names SiLU for its MLPs, or is of a family that does where it is silent.

    Those of Gemma have another, whatever the key says.
    """
    kind = str(config.get("model_type"))
    return not kind.startswith("gemma") and config.get("hidden_act", "silu") in ("silu", "swish")


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what of a config.json is about the language model: all of it, or its `text_config`."""
    text = config.get("text_config")
    if config.get("model_type") in _FAMILIES or not isinstance(text, Mapping):
        return config
    tied = config.get("tie_word_embeddings")
    return dict(text) if tied is None else {**text, "tie_word_embeddings": tied}


def decoder_shape(config: Mapping[str, Any], origin: str) -> DecoderShape:
    """Count the parameters of a known architecture.

    Args:
        config: The contents of a config.json whose `model_type` is known.
        origin: Where it was read, for messages.
    Raises:
        ModelError: A size is missing or is no positive integer.
    """
    whole, config = config, language_part(config)
    family = _FAMILIES[config["model_type"]]
    sizes = _Sizes(config, origin)
    hidden, num_layers = sizes.need("hidden_size"), sizes.need("num_hidden_layers")
    vocab, num_heads = sizes.need("vocab_size"), sizes.need("num_attention_heads")
    # An explicit null means the heads themselves; an absent key means what the architecture assumes.
    num_kv = sizes.optional("num_key_value_heads") if "num_key_value_heads" in config else family.num_kv_heads
    head_dim = sizes.optional("head_dim") or family.head_dim or hidden // num_heads
    q_dim, kv_dim = num_heads * head_dim, (num_kv or num_heads) * head_dim
    fused = {"qkv_proj": q_dim + 2 * kv_dim}
    heads = fused if family.is_fused else {"q_proj": q_dim, "k_proj": kv_dim, "v_proj": kv_dim}
    linears = [Linear(name, hidden, width, num_layers) for name, width in heads.items()]
    linears.append(Linear("o_proj", q_dim, hidden, num_layers))
    attention = sum(linear.num_weights for linear in linears) + num_layers * _attention_biases(
        config, family, q_dim, kv_dim, hidden
    )
    mlp = _mlp(config, sizes, family, hidden, num_layers)
    norms = num_layers * hidden * (4 if family.has_post_norms else 2) + hidden
    if family.has_qk_norm:
        norms += num_layers * (q_dim + kv_dim if family.is_qk_norm_whole else 2 * head_dim)
    tied = config.get("tie_word_embeddings")
    tied = family.tied if tied is None else tied
    return DecoderShape(
        model_type=config["model_type"],
        hidden_size=hidden,
        num_layers=num_layers,
        vocab_size=vocab,
        q_dim=q_dim,
        kv_dim=kv_dim,
        num_heads=num_heads,
        embeddings=vocab * hidden,
        attention=attention,
        mlp=mlp.num_params,
        norms=norms,
        head=0 if tied else vocab * hidden,
        linears=(*linears, *mlp.linears),
        ffn_width=mlp.ffn_width,
        routed_copies=mlp.routed_copies,
        experts=mlp.experts,
        idle=mlp.idle,
        has_qk_norm=family.has_qk_norm,
        has_post_norms=family.has_post_norms,
        has_sdpa=not config.get("attn_logit_softcapping", family.caps_scores),
        has_silu_gates=has_silu(config) and not (config.get("mlp_bias") or family.is_fused),
        caps_logits=bool(family.has_post_norms and config.get("final_logit_softcapping", family.caps_scores)),
        notes=mlp.notes if whole is config else (LANGUAGE_NOTE.format(kind=whole["model_type"]), *mlp.notes),
    )


@dataclass(frozen=True, slots=True)
class _Mlp:
    num_params: int
    linears: tuple[Linear, ...]
    ffn_width: float
    routed_copies: float = 0.0
    experts: int = 0
    idle: int = 0
    notes: tuple[str, ...] = ()


class _Sizes:
    """Reads sizes of a config.json and says what is wrong with one."""

    def __init__(self, config: Mapping[str, Any], origin: str) -> None:
        self._config, self._origin = config, origin

    def need(self, key: str) -> int:
        value = self._config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            shown = repr(value) if key in self._config else "missing"
            raise ModelError(
                f"`{key}` of {self._origin} must be a positive integer, but is {shown} instead. "
                "Give the config.json of the model."
            )
        return value

    def optional(self, key: str) -> int | None:
        return None if self._config.get(key) is None else self.need(key)


def _attention_biases(
    config: Mapping[str, Any], family: _Family, q_dim: int, kv_dim: int, hidden: int
) -> int:
    """Return the biases of one layer's attention."""
    has_qkv = config.get("qkv_bias", True) if config["model_type"] == "qwen2_moe" else family.qkv_bias
    if has_qkv:
        return q_dim + 2 * kv_dim
    if family.bias_keys and config.get("attention_bias"):
        return q_dim + 2 * kv_dim + hidden
    return 0


def _mlp(config: Mapping[str, Any], sizes: _Sizes, family: _Family, hidden: int, num_layers: int) -> _Mlp:
    """Count gate, up and down projections, or experts and their routers."""
    if not family.experts_key:
        ffn = sizes.need("intermediate_size")
        linears = _fused(hidden, ffn, num_layers) if family.is_fused else _gated("", hidden, ffn, num_layers)
        has_biases = config["model_type"] in ("llama", "smollm3") and config.get("mlp_bias")
        biases = num_layers * (2 * ffn + hidden) if has_biases else 0
        return _Mlp(sum(linear.num_weights for linear in linears) + biases, linears, ffn)
    # transformers 5 reads both names of the number of experts, and writes Qwen3's under Mixtral's.
    key = family.experts_key if family.experts_key in config else _OTHER_NAME.get(family.experts_key, "")
    num_experts = sizes.need(key if key in config else family.experts_key)
    num_chosen = sizes.need("num_experts_per_tok")
    is_mixtral = config["model_type"] == "mixtral"
    ffn = sizes.need("intermediate_size" if is_mixtral else "moe_intermediate_size")
    num_sparse = num_layers
    if not is_mixtral:
        every = sizes.optional("decoder_sparse_step") or 1
        dense_ones = set(config.get("mlp_only_layers") or [])
        num_sparse = sum((i + 1) % every == 0 and i not in dense_ones for i in range(num_layers))
    num_dense = num_layers - num_sparse
    experts = num_sparse * num_experts * 3 * hidden * ffn
    found: tuple[Linear, ...] = ()
    width = num_sparse * num_chosen * ffn
    if num_dense:
        dense_ffn = sizes.need("intermediate_size")
        found += _gated("", hidden, dense_ffn, num_dense)
        width += num_dense * dense_ffn
    if config["model_type"] == "qwen2_moe":
        shared = sizes.need("shared_expert_intermediate_size")
        found += _gated("shared_expert.", hidden, shared, num_sparse)
        found += (Linear("shared_expert_gate", hidden, 1, num_sparse),)
        width += num_sparse * shared
    routers = num_sparse * num_experts * hidden
    return _Mlp(
        experts + routers + sum(linear.num_weights for linear in found),
        found,
        width / num_layers,
        2 * num_chosen * num_sparse / num_layers,
        experts,
        experts // num_experts * max(num_experts - num_chosen, 0),
        (MIXTURE_NOTE,),
    )


def _gated(prefix: str, hidden: int, ffn: int, count: int) -> tuple[Linear, ...]:
    return (
        Linear(f"{prefix}gate_proj", hidden, ffn, count),
        Linear(f"{prefix}up_proj", hidden, ffn, count),
        Linear(f"{prefix}down_proj", ffn, hidden, count),
    )


def _fused(hidden: int, ffn: int, count: int) -> tuple[Linear, ...]:
    return (Linear("gate_up_proj", hidden, 2 * ffn, count), Linear("down_proj", ffn, hidden, count))
