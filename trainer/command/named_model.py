"""A model as `palimpsest init` is given it: an option, a folder or a name, looked at without loading it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.command.counted import config_json
from trainer.command.first_look import say_model
from trainer.command.model_rules import context_of
from trainer.config.model import ModelKind
from trainer.config.options import group_options
from trainer.config.schema import RunConfig
from trainer.errors import ConfigError, ModelError
from trainer.forecast.config_json import read_config_json, shipped_shapes
from trainer.model.base_folder import Needs, folder_lacks
from trainer.model.on_disk import no_template
from trainer.model.template_syntax import why_no_jinja

_NOT_HERE = "The tokenizer is not here: `palimpsest prepare` says whether it has a chat template."


@dataclass(frozen=True, slots=True)
class NamedModel:
    """What is known of a model before anything of it is loaded."""

    choice: str
    """Option of the group `model`; empty for a folder or a name."""
    path: str
    kind: str
    context: int | None
    can_chat: bool
    says: str
    """What was found of it."""
    folder: Path | None = None
    """Where it is a folder of this machine."""
    lines: tuple[str, ...] = ()
    make: Callable[[], str] | None = None
    """Makes its folder where that is quick: of the tiny model, whose tokens are bytes."""
    can_train: bool = True
    """Its weights are there, or nobody can tell from here."""
    where: str = ", which is not here"
    """What is said of a chat template that cannot be asked."""

    def commands(self, name: str, words: str) -> list[str]:
        """Return a line for every command that an experiment goes on with; without weights what is missing instead."""
        lines = [f"  palimpsest {verb:<8}{words}" for verb in ("plan", "prepare", "train")]
        return lines if self.can_train else [*lines[:-1], f"To train: give {name} its weights first."]


def look_at_model(name: str, chat_template: str) -> NamedModel:
    """Return what the model's folder says of it; a name is looked up in the cache, among what ships, on the hub."""
    if chat_template:
        _refuse_template(Path(chat_template).expanduser())
    local = Path(name).expanduser()
    if not local.exists() and name in group_options()["model"]:
        from trainer.config.store import compose_config

        config = compose_config([f"model={name}"])
        chosen = config.model
        is_here = chosen.kind in (ModelKind.tiny, ModelKind.embedded) or chosen.path in shipped_shapes()
        known = config_json(chosen)[0] if is_here else {}
        return _of_group(name, config, known)
    if local.exists():
        _refuse_lacking(local)
    known = _read_config(name)
    kind, size = str(known["model_type"]), context_of(known)
    if not local.exists():
        says = say_model(name, known, size, "its tokenizer not here")
        return NamedModel("", name, kind, size, True, says, lines=(_NOT_HERE,))
    lacks = [*folder_lacks(local, Needs(tokenizer=False))]
    lines = tuple(
        f"{local} {one.state}: enough to plan and prepare, not to train. {one.fix}" for one in lacks
    )
    can_chat = bool(chat_template) or _has_template(local)
    says = say_model(name, known, size, f"with{'' if can_chat else 'out'} a chat template")
    return NamedModel(
        "", str(Path.cwd() / local), kind, size, can_chat, says, local, lines, can_train=not lacks
    )


def _refuse_template(file: Path) -> None:
    """Raise where a file is no chat template."""
    if not file.is_file():
        raise ConfigError(
            f"`chat_template` must name a Jinja file, but there is none at {file}. Check the path."
        )
    try:
        why = why_no_jinja(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        why = no_template(str(file), error)
    if why is not None:
        raise ConfigError(f"`chat_template` {why}")


def _read_config(name: str) -> dict[str, Any]:
    """Return the contents of the config.json; what is wrong with it is told of the word `model`."""
    try:
        return read_config_json(name)[0]
    except ModelError as error:
        raise ModelError(_as_word(str(error).replace("`model.path`", "`model`", 1))) from error


def _refuse_lacking(local: Path) -> None:
    """Raise where a folder is no model with a tokenizer."""
    for lack in folder_lacks(local, Needs(weights=False)):
        raise ModelError(
            f"`model` must be a folder with a config.json and a tokenizer, but {local} {lack.state}. "
            f"{_as_word(lack.fix)}"
        )


def _as_word(fix: str) -> str:
    """Return a fix that names a key of a configuration with the word of `palimpsest init`."""
    return fix.replace(", or set model.tokenizer=FOLDER", "").replace("model.path=", "model=")


def _of_group(name: str, config: RunConfig, known: dict[str, Any]) -> NamedModel:
    """Return what is known of an option of the group `model`; what Palimpsest makes itself has a chat template."""
    from trainer.model.embedded import embedded_place
    from trainer.model.resolve import resolve_model

    chosen, cache_dir, context = config.model, Path(config.data.cache_dir), context_of(known)
    kind = chosen.path or chosen.kind.value
    if chosen.kind not in (ModelKind.tiny, ModelKind.embedded):
        says = say_model(name, known, context, "its tokenizer not here")
        return NamedModel(name, "", kind, context, True, says, lines=(_NOT_HERE,))
    says = say_model(name, known, context, "with a chat template")
    lines = () if chosen.warning is None else (chosen.warning,)
    if chosen.kind is ModelKind.tiny:
        make = partial(resolve_model, chosen, cache_dir)
        return NamedModel(name, "", kind, context, True, says, lines=lines, make=make)
    place = embedded_place(cache_dir)
    made = place if place.is_dir() else None
    return NamedModel(name, "", kind, context, True, says, made, lines, where=", once it has unpacked it")


def _has_template(folder: Path) -> bool:
    if any((folder / one).exists() for one in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        settings: Any = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(settings, dict) and bool(settings.get("chat_template"))
