"""Choose the attention implementation from what is installed and the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import Any

from trainer.config.model import Attention
from trainer.errors import ModelError
from trainer.model.lean import causal_class
from trainer.model.widths import head_dims

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
    head_dims: tuple[int, ...] = ()
    """Sizes of its heads; kernels of flash attention are built for some."""


def offered(hf_config: Any) -> Offered:
    """Ask the class that a configuration is loaded as; code that comes with a model is not asked, and has all."""
    found = causal_class(hf_config)
    if found is None:
        return Offered(head_dims=head_dims(hf_config))
    flash: frozenset[str] = Offered().flash if getattr(found, "_supports_flash_attn", False) else frozenset()
    only = getattr(found, "_compatible_flash_implementations", None)
    has_sdpa = found._supports_sdpa and not caps_scores(hf_config)
    flash = flash if only is None else flash & {*only}
    return Offered(found.__name__, has_sdpa, flash, head_dims(hf_config))


def caps_scores(hf_config: Any) -> bool:
    """Tell whether SDPA would compute another model: it leaves a cap on scores out, and who offers it may not know.

    transformers 5.17 offers it to Gemma 2.
    """
    return getattr(hf_config, "attn_logit_softcapping", None) is not None


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
        return _asked_for(asked, capability, dtype, has.head_dims)
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
    refusals = []
    for candidate in (
        Attention.flash_attention_3,
        Attention.flash_attention_4,
        Attention.flash_attention_2,
    ):
        if candidate.value in has.flash and _problem(candidate, capability) is None:
            refusal = _refusal(candidate, has.head_dims)
            if refusal is None:
                return AttentionChoice(candidate.value, "installed")
            refusals.append(f"{candidate.value}: {refusal}")
    why = "; ".join(refusals) or "no flash attention is installed"
    return AttentionChoice(plain, f"{why}: it will be slow on long packs{why_plain}")


def _asked_for(
    asked: Attention, capability: tuple[int, int] | None, dtype: str, head_dims: tuple[int, ...]
) -> AttentionChoice:
    """Return a flash attention that is asked for, or raise with what keeps it from computing here."""
    problem = _problem(asked, capability)
    fix = f"Install it with: {_INSTALL[asked]}; or set model.attention=auto."
    if problem is None:
        problem, fix = _refusal(asked, head_dims), "Set model.attention=auto."
    if problem is None and dtype == "fp32":
        problem, fix = "it cannot compute in float32", "Set model.attention=auto, or zero.dtype=bf16."
    if problem is not None:
        raise ModelError(
            f"`model.attention` must be usable here, but is {asked.value} instead: {problem}. {fix}"
        )
    return AttentionChoice(asked.value, "asked for")


def _refusal(attention: Attention, head_dims: tuple[int, ...]) -> str | None:
    """Compute with heads of these sizes once, forward and backward, and return why that cannot be, or None.

    FlashAttention 2 has no kernel for heads above 256 (Gemma 4's global layers have 512), and builds may have fewer.
    """
    import torch
    from transformers.modeling_flash_attention_utils import lazy_import_flash_attention

    for size in head_dims:
        qkv = [
            torch.zeros(1, 16, 1, size, dtype=torch.bfloat16, device="cuda", requires_grad=True)
            for _ in range(3)
        ]
        try:
            (flash, *_), _ = lazy_import_flash_attention(attention.value)
            found = flash(*qkv, causal=True)
            (found[0] if isinstance(found, tuple) else found).sum().backward()
        except Exception as error:  # of a compiled extension: any kind
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            return f"it does not compute heads of {size} here ({reason})"
    return None


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
