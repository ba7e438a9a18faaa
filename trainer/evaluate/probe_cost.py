"""What reading probes takes of a run's computation. Pure."""

from __future__ import annotations

from importlib import resources

FILE = "probe_texts.txt"
MOST_SHARE = 0.02
"""Of a run's computation, up to which `evaluate.probes=auto` takes them."""
FORWARD = 1 / 3
"""Of the computation of a token that is trained on, what one that is only read takes."""
NUM_READ = 4
"""How often probes are read: for losses and for likely tokens, of the base and of the tuned model. Each evaluation
during training reads them once more; what is read at the last one is not read again."""
BYTES_PER_TOKEN = 2.3
"""Of the texts of the package, which are of many scripts; tokenizers of one language make more tokens."""


def share_of_run(read_tokens: float, trained_tokens: float, num_during: int = 0) -> float:
    """Return what reading so many tokens of probes takes of the computation of a training of so many.

    Args:
        num_during: Evaluations during training at which they are read, but for that after the last step.
    """
    return (NUM_READ + num_during) * FORWARD * read_tokens / max(trained_tokens, 1)


def share_shown(share: float) -> str:
    """Return a share as a percentage of two digits, or whole."""
    return f"{100 * share:,.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def packaged_tokens() -> int:
    """Return about how many tokens the texts of the package have."""
    text = (resources.files("trainer.evaluate") / FILE).read_text(encoding="utf-8")
    return round(len(text.encode("utf-8")) / BYTES_PER_TOKEN)
