"""Who knows what the reference says of answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.data.pack.refs import PackRef
from trainer.data.types import Float64s

ReadReference = Callable[[Sequence[PackRef]], Float64s]
"""Returns the reference's sums of log-probabilities of the pieces of packs, in their order."""
