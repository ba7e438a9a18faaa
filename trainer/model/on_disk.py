"""What a configuration names of a model on this machine's disks, looked for without loading anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.config.model import ModelConfig, ModelKind
from trainer.config.rule import Problem, problem


def is_missing(name: str) -> bool:
    """Tell whether a name looks like a path, and nothing is there; a name of the hub is none."""
    return name.startswith(("/", ".", "~")) and not Path(name).expanduser().exists()


def model_problems(model: ModelConfig) -> Iterator[Problem]:
    """Yield a problem for the folder, the tokenizer and the chat template that are named and not there."""
    if model.kind in (ModelKind.pretrained, ModelKind.random) and is_missing(model.path):
        yield problem("model.path", no_model(model.path))
    if model.tokenizer and is_missing(model.tokenizer):
        yield problem("model.tokenizer", no_tokenizer(model.tokenizer, NOTHING_THERE))
    if model.chat_template is not None:
        try:
            Path(model.chat_template).expanduser().read_bytes()
        except OSError as error:
            yield problem("model.chat_template", no_template(model.chat_template, error))


NOTHING_THERE = "no such file or folder"


def no_model(path: str) -> str:
    """Return what is said, behind its key, of a folder of a model that is not there."""
    return f"must be a model name or an existing folder, but is '{path}' instead. Check the path."


def no_tokenizer(path: str, reason: str) -> str:
    """Return what is said, behind its key, of a tokenizer that cannot be loaded."""
    return (
        "(or `model.path`, where no tokenizer is given) must name a folder or a Hugging Face model with a tokenizer, "
        f"but is '{path}' instead: {reason.rstrip('.')}. Check the name, or download the model first."
    )


def no_template(path: str, error: Exception) -> str:
    """Return what is said, behind its key, of a chat template that cannot be read."""
    return f"must name a readable Jinja file, but is '{path}' instead: {error}."


def no_maker(name: str, reason: str) -> str:
    """Return what is said, behind its key, of a source's tokenizer that cannot be loaded."""
    return (
        "must name a folder or a Hugging Face model with the tokenizer that made the ids, but is "
        f"'{name}' instead: {reason.rstrip('.')}. Check the name, or download it first."
    )
