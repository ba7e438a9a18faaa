"""Which keys of a configuration do not change what is trained: a run may go on with others. Pure."""

from __future__ import annotations

MAY_DIFFER = (
    *("log.", "cluster.", "export.", "checkpoint.", "evaluate.", "gate.", "plan.", "sweep.", "run_dir"),
    "synthetic.",
    *("data.cache_dir", "data.num_workers", "model.verify_weights", "train.isolation_probe"),
    *("replay.generate.", "name", "train.micro_batch_size", "model.checkpoint_"),
    # How work is spread over ranks, and where memory is: the tokens are the same, numbers within rounding.
    *("train.sequence_parallel", "objective.distill.shard_teacher"),
    *(
        "zero.stage",
        "zero.overlap_comm",
        "zero.reduce_bucket_size",
        "zero.prefetch_bucket_size",
        "zero.max_live_parameters",
    ),
    *("zero.max_reuse_distance", "zero.persistence_threshold", "zero.sub_group_size", "zero.offload_"),
)
"""Key prefixes that do not change what is trained; a resumed run may change them."""

MADE_ANEW = ("log.", "checkpoint.", "evaluate.", "gate.")
"""Those of them that ask something else of a run that is finished: another comparison, report or tracker."""


OF_REVIEW = ("synthetic", "min_acceptance")
"""Keys of a source that say whether it may be trained on, and not what of it is."""


def is_of_review(key: str) -> bool:
    """Tell whether a dotted key is one of a source by which people let it pass."""
    return _of_source(key) in OF_REVIEW


def _of_source(key: str) -> str:
    """Return a key below that of a source; empty for other keys."""
    parts = key.split(".")
    return ".".join(parts[3:]) if parts[:2] == ["data", "sources"] else ""
