"""The files of what prepares the inputs of a model that also sees or hears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.config.model import ModelConfig
from trainer.errors import ModelError
from trainer.model.load import read_whole_config
from trainer.model.multimodal import whole_class

PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def processor_files(source: str, model: ModelConfig) -> list[Path]:
    """Return those that a folder or a model of the hub has."""
    from transformers.utils.hub import cached_file

    options: Any = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    found = [cached_file(source, name, revision=model.revision, **options) for name in PROCESSOR]
    return [Path(path) for path in found if path]


def require_processor(source: str, model: ModelConfig) -> None:
    """Refuse a base that is exported as a whole without them: the export would see and hear nothing.

    Raises:
        ModelError: It also sees or hears, and has none.
    """
    if whole_class(read_whole_config(source, model)) is None or processor_files(source, model):
        return
    raise ModelError(
        "`export.text_only` must be true for a base that also sees or hears and has no file of a processor, but is "
        f"false instead: {source} has none of {', '.join(PROCESSOR)}, so nothing could prepare images or sound for the "
        "export. Put those of the base's origin into the folder, or set export.text_only=true, which writes its "
        "language model alone."
    )
