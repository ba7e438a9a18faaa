"""The errors a person sees. Each message is one sentence that names the key, file or line, and the fix.

`TrainerError` and its leaves mean "the user can mend this": the command line prints the message
without a traceback and exits with 2. Anything else is our bug and keeps its traceback.
"""

from __future__ import annotations


class TrainerError(Exception):
    """Anything a person can mend: printed as one sentence, exit code 2."""


class ConfigError(TrainerError):
    """A wrong key, value or combination of values in the configuration."""


class DataError(TrainerError):
    """A source, document or store that cannot be used as asked."""


class ModelError(TrainerError):
    """Weights, tokenizer or attention kernels that cannot be used as asked."""


class TopologyError(TrainerError):
    """Ranks, addresses or batch sizes that do not fit together."""


class CheckpointError(TrainerError):
    """A run directory or checkpoint that cannot be written, verified or resumed."""


class SelfCheckError(TrainerError):
    """A proof made at run time failed: isolation, weights, or export. The run must not go on."""
