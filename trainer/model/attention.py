"""Choose the attention implementation from what is installed and the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from trainer.config.model import Attention
from trainer.errors import ModelError
from trainer.model.lean import causal_class

_INSTALL = {
    Attention.flash_attention_4: "pip install flash-attn-4",
    Attention.flash_attention_3: (
        "pip install --no-deps flash-attn-3 --index-url https://download.pytorch.org/whl/cu130"
    ),
    Attention.flash_attention_2: "pip install --no-build-isolation 'palimpsest-trainer[gpu]'",
}
_PACKAGE = {
    Attention.flash_attention_4: "flash-attn-4",
    Attention.flash_attention_3: "flash-attn-3",
    Attention.flash_attention_2: "flash-attn",
}
_MIN_CAPABILITY = {
    Attention.flash_attention_4: (9, 0),
    Attention.flash_attention_3: (9, 0),
    Attention.flash_attention_2: (8, 0),
}


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The implementation taken and why."""

    name: str
    reason: str

    @property
    def is_flash(self) -> bool:
        """Tell whether documents are separated by cu_seq_lens instead of a mask."""
        return self.name.startswith("flash")


@dataclass(frozen=True, slots=True)
class Offered:
    """Which implementations the class of a model has; eager ones all have."""

    name: str = "The model"
    has_sdpa: bool = True
    flash: frozenset[str] = frozenset(attention.value for attention in _PACKAGE)


def offered(hf_config: Any) -> Offered:
    """Ask the class that a configuration is loaded as; code that comes with a model is not asked, and has all."""
    found = causal_class(hf_config)
    if found is None:
        return Offered()
    flash: frozenset[str] = Offered().flash if getattr(found, "_supports_flash_attn", False) else frozenset()
    only = getattr(found, "_compatible_flash_implementations", None)
    # SDPA leaves a cap on scores out, and transformers 5.17 offers it to Gemma 2 all the same.
    caps = getattr(hf_config, "attn_logit_softcapping", None) is not None
    has_sdpa = found._supports_sdpa and not caps
    return Offered(found.__name__, has_sdpa, flash if only is None else flash & {*only})


def choose_attention(
    asked: Attention,
    capability: tuple[int, int] | None,
    dtype: str = "bf16",
    needs_mask: bool = False,
    has: Offered | None = None,
) -> AttentionChoice:
    """Return the implementation to load the model with.

    Args:
        capability: CUDA compute capability, None without a GPU.
        dtype: bf16 or fp32, which flash attention has no kernels for.
        needs_mask: Documents share virtual tokens, which a mask can say and cu_seq_lens cannot.
        has: What the model's class has; all of them if None.
    Raises:
        ModelError: An asked-for implementation is not installed, the GPU cannot run it or the model has none.
    """
    has = has or Offered()
    plain = "sdpa" if has.has_sdpa else "eager"
    why_plain = "" if has.has_sdpa else f"; {has.name} has no SDPA"
    if asked is Attention.eager or (asked is Attention.sdpa and has.has_sdpa):
        return AttentionChoice(asked.value, "asked for")
    if asked is Attention.sdpa or (asked is not Attention.auto and asked.value not in has.flash):
        raise ModelError(
            f"`model.attention` must be one that {has.name} has, but is {asked.value} instead. Set "
            "model.attention=auto."
        )
    if asked is not Attention.auto:
        problem = _problem(asked, capability)
        fix = f"Install it with: {_INSTALL[asked]}; or set model.attention=auto."
        if problem is None and dtype == "fp32":
            problem, fix = "it cannot compute in float32", "Set model.attention=auto, or zero.dtype=bf16."
        if problem is not None:
            raise ModelError(
                f"`model.attention` must be usable here, but is {asked.value} instead: {problem}. {fix}"
            )
        return AttentionChoice(asked.value, "asked for")
    if capability is None:
        return AttentionChoice(plain, "no GPU" + why_plain)
    if needs_mask:
        return AttentionChoice(
            plain, "flash attention cannot share virtual tokens between documents" + why_plain
        )
    if dtype == "fp32":
        return AttentionChoice(plain, "flash attention cannot compute in float32" + why_plain)
    if not has.flash:
        return AttentionChoice(plain, f"{has.name} has no flash attention that can be installed" + why_plain)
    # FlashAttention 3 first: fastest released on Hopper; 4 is in beta there.
    for candidate in (
        Attention.flash_attention_3,
        Attention.flash_attention_4,
        Attention.flash_attention_2,
    ):
        if candidate.value in has.flash and _problem(candidate, capability) is None:
            return AttentionChoice(candidate.value, "installed")
    return AttentionChoice(
        plain, f"no flash attention is installed: it will be slow on long packs{why_plain}"
    )


def _problem(attention: Attention, capability: tuple[int, int] | None) -> str | None:
    """Return why an implementation cannot run here, or None."""
    if capability is None:
        return "there is no GPU"
    if capability < _MIN_CAPABILITY[attention]:
        need = ".".join(map(str, _MIN_CAPABILITY[attention]))
        return f"the GPU has compute capability {capability[0]}.{capability[1]} and it needs {need}"
    if not _is_installed(attention):
        return f"the package {_PACKAGE[attention]} is not installed"
    return None


def _is_installed(attention: Attention) -> bool:
    """Look for the distribution: flash-attn 2 ships a folder that looks like version 4's module."""
    try:
        metadata.distribution(_PACKAGE[attention])
    except metadata.PackageNotFoundError:
        return False
    return True


def is_flash_installed() -> bool:
    """Tell whether any flash attention is installed, whatever the GPU."""
    return any(_is_installed(attention) for attention in _PACKAGE)
