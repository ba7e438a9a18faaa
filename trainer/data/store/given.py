"""Says of token ids that were made elsewhere how they are taken: as they are, without what needs text."""

from __future__ import annotations

from collections import Counter

from trainer.config.data import CleanConfig, SourceConfig
from trainer.data.types import TokenizerLike


def describe_given(source: SourceConfig, counts: Counter[str], tokenizer: TokenizerLike) -> list[str]:
    """Return lines about how documents end, which cleaning is not applied, and what made the ids."""
    num_documents = counts["rows"] - counts["empty"]
    eos = tokenizer.eos_id
    if eos is None:
        ends = "the tokenizer has no EOS"
    else:
        shown = f"{tokenizer.decode([eos])!r}, id {eos}"
        ends = f"{counts['ends_with_eos']:,} of {num_documents:,} documents end with EOS ({shown})"
    lines = [f"token ids are taken as they are: {ends}; none is added"]
    skipped = _asked_for(source.clean)
    if skipped:
        lines.append(f"not applied, because it needs text: {', '.join(f'clean.{name}' for name in skipped)}")
    if source.tokenizer is not None:
        lines.append(f"the ids were made with '{source.tokenizer}'; all of its tokens have the same ids here")
    return lines


def _asked_for(clean: CleanConfig) -> list[str]:
    """Return the options that would touch a text."""
    asked = {
        "normalize_unicode": clean.normalize_unicode,
        "strip": clean.strip,
        "min_chars": clean.min_chars > 1,
        "max_chars": clean.max_chars is not None,
    }
    return [name for name, is_asked in asked.items() if is_asked]
