"""Find and read a config.json: a folder, a file, the Hugging Face cache, the shapes that ship, the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.errors import ModelError

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
    if local.exists() or path.startswith(("/", ".", "~")):
        file = local / "config.json" if local.is_dir() else local
        if not file.is_file():
            raise ModelError(
                f"`model.path` must be a model name or a folder with a config.json, but {path} is not instead. "
                "Check the path."
            )
        return _parse(file), str(file)
    cached = _cached(path, revision)
    if cached is not None:
        return _parse(cached), f"the config.json of {path}"
    shipped = shipped_shapes()
    if path in shipped and revision is None:
        return shipped[path], f"the shape of {path} that ships with Palimpsest"
    return _parse(_downloaded(path, revision)), f"the config.json of {path}"


def shipped_shapes() -> dict[str, dict[str, Any]]:
    """Return the shapes that ship, by Hugging Face name."""
    shapes: dict[str, dict[str, Any]] = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return shapes


def _parse(file: Path) -> dict[str, Any]:
    try:
        config = json.loads(file.read_text(encoding="utf-8"), object_hook=_number)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
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


def _cached(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        raise _no_model(name, f"{str(error).split(':')[0]}") from error
    return Path(found) if isinstance(found, str) else None


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except LocalEntryNotFoundError as error:
        raise _no_model(name, "it is not in the cache and the hub cannot be reached") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise _no_model(name, first.rstrip(".")) from error


def _no_model(name: str, reason: str) -> ModelError:
    return ModelError(
        f"`model.path` must be a model folder or name, but there is no config.json for '{name}': {reason}. Give "
        "a folder with the config.json: model.path=FOLDER."
    )
