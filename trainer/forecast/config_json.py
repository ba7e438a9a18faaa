"""Find and read a config.json: a folder, a file, the Hugging Face cache, the shapes that ship, the hub."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from trainer.config.nearby import looks_local, near_place
from trainer.config.options import group_options
from trainer.errors import ModelError
from trainer.forecast.on_hub import in_cache, why_not_on_hub

SHIPPED = Path(__file__).with_name("shipped.json")
"""Sizes of the models that conf/model names, as their config.json on the hub has them."""


def read_config_json(path: str, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """Return the contents of a model's config.json and where they are from.

    A name is looked for in the Hugging Face cache, then among the shapes that ship (without a revision only),
    then on the hub unless HF_HUB_OFFLINE is set.

    Raises:
        ModelError: There is none, or it is no JSON object.
    """
    local = Path(path).expanduser()
    if local.exists() or looks_local(path):
        file = local / "config.json" if local.is_dir() else local
        if not file.is_file():
            has = "has no config.json" if local.is_dir() else "is not there"
            raise ModelError(
                f"`model.path` must be a model name or a folder with a config.json, but {path} {has}.{meant(path)} "
                "Check the path."
            )
        return _parse(file), str(file)
    cached = in_cache(path, "config.json", revision)
    if cached is not None:
        return _parse(cached), f"the config.json of {path}"
    shipped = shipped_shapes()
    if path in shipped and revision is None:
        return shipped[path], f"the shape of {path} that ships with Palimpsest"
    why = why_not_on_hub(path, "config.json", revision)
    if why is not None:
        raise ModelError(f"`model.path` {not_had(path, f'it is not in the cache and {why}')}")
    return _parse(_downloaded(path, revision)), f"the config.json of {path}"


def not_had(name: str, why: str) -> str:
    """Return what is said, behind its key, of a name that is no folder here and not to be had from the hub."""
    return (
        f"must be a model's folder that is there, or its name on the hub, but '{name}' is neither: there is no such "
        f"folder, and {why}.{meant(name)} Check the name, or bring the model here and give its folder."
    )


def meant(name: str) -> str:
    """Return a question about what a name that is not there may have meant; nothing where nothing is like it."""
    near = near_place(name)
    if near is None and not looks_local(name) and name not in shipped_shapes():
        options = [one for one in group_options()["model"] if one != "none"]
        if name in options:
            return f" Did you mean model={name}?"
        likely = difflib.get_close_matches(name, [*shipped_shapes(), *options], n=1, cutoff=0.7)
        near = next((f"model={one}" if one in options else one for one in likely), None)
    return f" Did you mean {near}?" if near is not None else ""


def shipped_shapes() -> dict[str, dict[str, Any]]:
    """Return the shapes that ship, by Hugging Face name."""
    shapes: dict[str, dict[str, Any]] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return shapes


def _parse(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"), object_hook=_number)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{file} must be the JSON of a model's configuration, but cannot be read: {reason}. Get the file again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ModelError(
            f"{file} must be the configuration of a model and name its `model_type`, but does not. "
            "Give the config.json of the model."
        )
    return config


def _number(found: dict[str, Any]) -> Any:
    """Return the number that transformers writes as {"__float__": "Infinity"}, or what was found."""
    return float(found["__float__"]) if found.keys() == {"__float__"} else found


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (HfHubHTTPError, OSError, ValueError) as error:  # it was there a moment ago
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"`model.path` {not_had(name, first.rstrip('.'))}") from error
