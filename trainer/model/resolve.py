"""Find the folder or name of the base model for every `model.kind`."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from trainer.config.model import ModelConfig, ModelKind
from trainer.errors import ModelError
from trainer.model.on_disk import is_missing, no_model
from trainer.runtime.owned import check_cache

_LOG = logging.getLogger(__name__)


def resolve_model(model: ModelConfig, cache_dir: Path) -> str:
    """Return what transformers loads: a local folder or a Hugging Face name.

    `tiny` and `embedded` are made on the first call, so call it before ranks start.

    Raises:
        DataError: Everybody can write to the cache folder.
        ModelError: There is no such model.
    """
    check_cache(cache_dir, _say_once)
    match model.kind:
        case ModelKind.tiny:
            from trainer.model.tiny import tiny_model_dir

            return str(tiny_model_dir(cache_dir, model.tiny, model.seed))
        case ModelKind.embedded:
            from trainer.model.embedded import embedded_model_dir

            return str(embedded_model_dir(cache_dir))
        case _:
            path = Path(model.path).expanduser()
            if is_missing(model.path):
                raise ModelError(f"`model.path` {no_model(model.path)}")
            return str(path) if path.exists() else model.path


@functools.cache
def _say_once(line: str) -> None:
    _LOG.warning("%s", line)
