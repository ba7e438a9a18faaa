"""Choose the attention implementation from what is installed and the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from trainer.config.model import Attention
from trainer.errors import ModelError

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


def choose_attention(
    asked: Attention, capability: tuple[int, int] | None, dtype: str = "bf16", needs_mask: bool = False
) -> AttentionChoice:
    """Return the implementation to load the model with.

    Args:
        capability: CUDA compute capability, None without a GPU.
        dtype: bf16 or fp32, which flash attention has no kernels for.
        needs_mask: Documents share virtual tokens, which a mask can say and cu_seq_lens cannot.
    Raises:
        ModelError: An asked-for implementation is not installed or the GPU cannot run it.
    """
    if asked is Attention.sdpa:
        return AttentionChoice("sdpa", "asked for")
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
        return AttentionChoice("sdpa", "no GPU")
    if needs_mask:
        return AttentionChoice("sdpa", "flash attention cannot share virtual tokens between documents")
    if dtype == "fp32":
        return AttentionChoice("sdpa", "flash attention cannot compute in float32")
    # FlashAttention 3 first: fastest released on Hopper; 4 is in beta there.
    for candidate in (
        Attention.flash_attention_3,
        Attention.flash_attention_4,
        Attention.flash_attention_2,
    ):
        if _problem(candidate, capability) is None:
            return AttentionChoice(candidate.value, "installed")
    return AttentionChoice("sdpa", "no flash attention is installed: it will be slow on long packs")


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
