"""Task YAML files of a person's own: their relative data files, and the files that lm-eval passes over in silence."""

from __future__ import annotations

from glob import glob
from pathlib import Path
from typing import Any

import yaml

from trainer.config.yaml_text import TooMuch, text_of
from trainer.errors import ConfigError


def refuse_too_much(folder: Path) -> None:
    """Raise where a task file comes to more than any does, as lm-eval would make all of it.

    Raises:
        ConfigError: Names the file.
    """
    for path in sorted(folder.rglob("*.yaml")):
        try:
            text_of(path)
        except TooMuch as error:
            raise ConfigError(
                f"`evaluate.tasks.include_path` must hold task files, but {path} {error} instead. Mend that file."
            ) from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue  # lm-eval passes over it; find_broken tells why where a name is missed


def anchored(entry: Any, folder: Path) -> None:
    """Make relative data files of a task in a folder count from its YAML file instead of the working directory.

    A file that is not there, but is in the working directory, is taken from there, as lm-eval does.

    Args:
        entry: Entry of lm-eval's index; changed in place.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    path = entry.yaml_path
    if path is None or folder not in Path(path).absolute().parents:
        return
    kwargs = (entry.cfg or {}).get("dataset_kwargs")
    if not isinstance(kwargs, dict) or "data_files" not in kwargs:
        return
    here = Path(path).absolute().parent
    resolved = _resolved(kwargs["data_files"], here)
    if resolved == kwargs["data_files"]:
        return
    # Without a path lm-eval takes the configuration as it is here, with its !function tags resolved.
    config = load_yaml(path, resolve_func=True)
    config["dataset_kwargs"] = {**kwargs, "data_files": resolved}
    entry.cfg, entry.yaml_path = config, None


def _resolved(files: Any, here: Path) -> Any:
    if isinstance(files, dict):
        return {split: _resolved(value, here) for split, value in files.items()}
    if isinstance(files, list):
        return [_resolved(value, here) for value in files]
    if not isinstance(files, str) or "://" in files or Path(files).is_absolute():
        return files
    beside = str(here / files)
    return files if glob(files, recursive=True) and not glob(beside, recursive=True) else beside


def find_broken(folder: Path) -> str | None:
    """Return a sentence about the first YAML file of a folder that cannot be read as a task; None without one."""
    from lm_eval.tasks._yaml_loader import load_yaml

    for path in sorted(folder.glob("**/*.yaml")):
        try:
            config = load_yaml(path, resolve_func=False)
        except Exception as error:  # whatever YAML raises
            return f"{path} cannot be read: {' '.join(str(error).split())}."
        if not {"task", "group", "class"} & set(config):
            return f"{path} has no `task:` key."
    return None
