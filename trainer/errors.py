"""The errors a person sees, and what a process that ends tells whoever started it.

Each message is one sentence that names the key, file or line, and the fix. `TrainerError` and its leaves mean "the user
can mend this": the command line prints the message without a traceback and exits with 2. Anything else is our bug and
keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `palimpsest` and its ranks; job scripts act on them."""

    done = 0
    died = 1
    """A crash, or another attempt would not help: the logs say why."""
    mendable = 2
    """Something a person can mend; one sentence says what."""
    refused = 3
    """By the gate, or the run does not fit and `plan.strict` is set."""
    non_finite = 4
    """Loss, gradients or weights were not finite."""
    preempted = 75
    """Told to stop, with a checkpoint where a step was taken, the model was sound and checkpoints are on; or a rank
    stood still: the same command goes on (EX_TEMPFAIL)."""
    interrupted = 130
    """Ctrl-C where there is nothing to save, as shells tell it."""


class TrainerError(Exception):
    """Anything a person can mend: printed as one sentence, exit code 2."""


class ConfigError(TrainerError):
    """A wrong key, value or combination of values in the configuration."""


class DataError(TrainerError):
    """A source, document or store that cannot be used as asked."""


class TemplateFailure(DataError):
    """A chat template that fails on a conversation, with its file and line; one that refuses it in words does not."""


class ModelError(TrainerError):
    """Weights, tokenizer or attention kernels that cannot be used as asked."""


class TopologyError(TrainerError):
    """Ranks, addresses or batch sizes that do not fit together."""


class CheckpointError(TrainerError):
    """A run directory or checkpoint that cannot be written, verified or resumed."""


class DamagedError(CheckpointError):
    """A file of a checkpoint that holds what no run writes: the checkpoint before it serves."""


class SelfCheckError(TrainerError):
    """A proof made at run time failed: isolation, weights, or export. The run must not go on."""


class RankLost(ConnectionError):
    """Another rank died: this one ends with its sentence and exit code 1, and the same command goes on."""
