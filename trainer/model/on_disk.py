"""What a configuration names of a model, looked for here and on the hub without loading anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.config.model import ModelConfig, ModelKind
from trainer.config.nearby import looks_local
from trainer.config.rule import Problem, problem, said
from trainer.errors import ModelError
from trainer.forecast.config_json import meant, not_had, read_config_json
from trainer.forecast.on_hub import in_cache, why_not_on_hub
from trainer.model.base_folder import CONFIG, SETTINGS, Lack, Needs, folder_lacks, tokenizer_lacks
from trainer.model.template_syntax import why_no_jinja


def is_missing(name: str) -> bool:
    """Tell whether a name looks like a path, and nothing is there; a name of the hub is none."""
    return looks_local(name) and not Path(name).expanduser().exists()


def model_problems(model: ModelConfig, needs: Needs) -> Iterator[Problem]:
    """Yield a problem for the model, the tokenizer and the chat template that are named and cannot be used.

    Args:
        needs: What the command reads of the model.
    """
    if model.kind in (ModelKind.pretrained, ModelKind.random) and model.path:
        yield from _base_problems(model, needs)
    if model.tokenizer and needs.tokenizer and (why := why_no_tokenizer(model.tokenizer, model.revision)):
        yield problem("model.tokenizer", no_tokenizer(model.tokenizer, why))
    if model.chat_template is not None:
        try:
            text = Path(model.chat_template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            yield problem("model.chat_template", no_template(model.chat_template, error))
        else:
            if why := why_no_jinja(text, model.chat_template):
                yield problem("model.chat_template", why)


def _base_problems(model: ModelConfig, needs: Needs) -> Iterator[Problem]:
    """Yield a problem where what is named as the base cannot be had, or lacks something that is read."""
    is_random = model.kind is ModelKind.random
    needs = Needs(needs.tokenizer and not model.tokenizer, needs.weights and not is_random)
    place = Path(model.path).expanduser()
    is_file = is_random and place.is_file()
    if is_missing(model.path):
        yield problem("model.path", no_model(model.path))
        return
    if place.exists():
        lacks = [*(_of_file(needs) if is_file else folder_lacks(place, needs))]
        if lacks:
            yield problem("model.path", _no_base(model.path, needs, lacks))
            return
    try:
        read_config_json(model.path, model.revision)
    except ModelError as error:
        yield said("model.path", str(error))
        return
    if not place.exists() and (why := _why_not_whole(model, needs)):
        yield problem("model.path", not_had(model.path, why))


def _of_file(needs: Needs) -> Iterator[Lack]:
    """Yield what a config.json alone lacks, of which random weights are made."""
    if needs.tokenizer:
        yield Lack("is a file, which has no tokenizer", "Give its folder, or set model.tokenizer=FOLDER.")


def _why_not_whole(model: ModelConfig, needs: Needs) -> str | None:
    """Return why what is read of a named model cannot be had: the cache has not all of it, and the hub gives none."""
    if not (needs.tokenizer or needs.weights):
        return None
    config = in_cache(model.path, CONFIG, model.revision)
    if config is not None and not [*folder_lacks(config.parent, needs)]:
        return None
    why = why_not_on_hub(model.path, CONFIG, model.revision)
    if why is None or config is None:
        return why and f"it is not in the cache and {why}"
    lacks = " and ".join(one.state for one in folder_lacks(config.parent, needs))
    return f"what is in the cache {lacks}, and {why}"


def _no_base(path: str, needs: Needs, lacks: list[Lack]) -> str:
    """Return what is said, behind its key, of a place that is there and is no model that can be used."""
    parts = [
        "a config.json",
        *(["weights"] if needs.weights else []),
        *(["a tokenizer"] if needs.tokenizer else []),
    ]
    whole = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    states = " and ".join(one.state for one in lacks)
    return (
        f"must be a model's folder, with {whole}, but {path} {states}. {' '.join(one.fix for one in lacks)}"
    )


def why_no_tokenizer(name: str, revision: str | None = None) -> str | None:
    """Return why a named tokenizer cannot be had; None where nothing speaks against it."""
    place = Path(name).expanduser()
    if place.is_dir():
        lacks = [*tokenizer_lacks(place)]
        return f"the folder {lacks[0].state}" if lacks else None
    if place.exists():
        return "that is a file"
    if looks_local(name):
        return f"{NOTHING_THERE}.{meant(name)}"
    if any(in_cache(name, file, revision) for file in ("tokenizer.json", SETTINGS)):
        return None
    why = why_not_on_hub(name, SETTINGS, revision, may_lack_it=True)
    return why and f"there is no such folder, it is not in the cache and {why}.{meant(name)}"


NOTHING_THERE = "no such file or folder"


def _ended(reason: str) -> str:
    """Return a reason with the sign that ends a sentence."""
    return reason if reason.endswith("?") else f"{reason.rstrip('.')}."


def no_model(path: str) -> str:
    """Return what is said, behind its key, of a folder of a model that is not there."""
    return (
        f"must be a model name or an existing folder, but is '{path}' instead.{meant(path)} Check the path."
    )


def no_tokenizer(path: str, reason: str) -> str:
    """Return what is said, behind its key, of a tokenizer that cannot be loaded."""
    return (
        "(or `model.path`, where no tokenizer is given) must name a folder or a Hugging Face model with a tokenizer, "
        f"but is '{path}' instead: {_ended(reason)} Check the name, or download the model first."
    )


def no_template(path: str, error: Exception) -> str:
    """Return what is said, behind its key, of a chat template that cannot be read."""
    return f"must name a readable Jinja file, but is '{path}' instead: {error}."


def no_maker(name: str, reason: str) -> str:
    """Return what is said, behind its key, of a source's tokenizer that cannot be loaded."""
    return (
        "must name a folder or a Hugging Face model with the tokenizer that made the ids, but is "
        f"'{name}' instead: {_ended(reason)} Check the name, or download it first."
    )
