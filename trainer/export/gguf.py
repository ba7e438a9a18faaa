"""A GGUF file of an exported folder, by llama.cpp's converter, where a person has it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from trainer.config.train import ExportConfig, GgufType
from trainer.errors import ConfigError, ModelError
from trainer.runtime.say import say

WHOLE, ADAPTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"


def find_converter(export: ExportConfig, is_adapter: bool) -> Path | None:
    """Return the converter's script, None where no GGUF is asked for; called before anything is written.

    Raises:
        ConfigError: There is none.
    """
    if export.gguf is GgufType.none:
        return None
    name = ADAPTER if is_adapter else WHOLE
    given = export.llama_cpp or os.environ.get("LLAMA_CPP")
    if given is None:
        raise ConfigError(
            f"`export.gguf` must have llama.cpp's {name}, but export.llama_cpp is not set. Run: git clone --depth 1 "
            "https://github.com/ggml-org/llama.cpp && pip install gguf sentencepiece, then set "
            "export.llama_cpp=llama.cpp."
        )
    script = Path(given).expanduser() / name
    if not script.is_file():
        raise ConfigError(
            f"`export.llama_cpp` must be a checkout of llama.cpp, but {given} has no {name} instead. Give the folder "
            "that holds it."
        )
    if importlib.util.find_spec("gguf") is None and not (script.parent / "gguf-py").is_dir():
        raise ConfigError(
            "`export.gguf` must have the package gguf, which is not installed. Run: pip install gguf"
        )
    return script


def write_gguf(script: Path | None, folder: Path, kind: GgufType, base: str | None, console: Console) -> None:
    """Convert a folder and say so; the file is there whole or not at all.

    Args:
        script: None does nothing.
        base: Folder of the base model's config.json, for an adapter.

    Raises:
        ModelError: The converter refuses; its last line says why.
    """
    if script is None:
        return
    target = folder / f"{'model' if base is None else 'adapter'}-{kind.value}.gguf"
    staged = target.with_suffix(".tmp")
    command = [sys.executable, str(script), str(folder), "--outfile", str(staged), "--outtype", kind.value]
    if base is not None:
        command += ["--base", base]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or not staged.is_file():
        staged.unlink(missing_ok=True)
        last = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ModelError(
            f"{script.name} must write {target.name}, but says: {last} The safetensors in {folder} are whole. Update "
            "llama.cpp, or convert by hand."
        )
    staged.replace(target)
    say(console, f"{target} ({target.stat().st_size / 1e9:.2f} GB), by {script.name}")
