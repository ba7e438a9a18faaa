"""The adapter that a run begins with: read from a folder or a run, held against the base, kept in the run directory.

The copy is what later starts read: whoever trains the other run further, or removes it, changes nothing of this one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.named import find_checkpoint
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_path
from trainer.config.start import COPY, FACTORS, KEY, start_place, start_refused, start_said
from trainer.config.store import load_config
from trainer.data.store.prepared import digest_of
from trainer.dist.mesh import Mesh
from trainer.engine.consolidate import stream_parameters
from trainer.errors import CheckpointError, ModelError
from trainer.export.merge import read_adapter, write_adapter
from trainer.model.base_files import open_base
from trainer.model.digest import base_digest
from trainer.model.tune.pissa import as_plain_lora
from trainer.model.tune.started import StartAdapter, start_of
from trainer.run.start_tokenizer import check_start_tokenizer
from trainer.runtime.publish import publish_folder

_LOG = logging.getLogger(__name__)


def open_start(config: RunConfig, source: str, goes_on: bool, mesh: Mesh) -> StartAdapter | None:
    """Return what a run's adapter begins with, from the run's own copy, which is made first; None for a fresh one.

    Collective: every rank.

    Args:
        goes_on: What the run directory holds is gone on from or measured.
    Raises:
        ModelError: It is no adapter of this base.
    """
    if config.tune.start is None:
        return None
    mesh.from_first(lambda: _keep(config, source, goes_on))
    return _read(config, Path(config.run_dir) / COPY, source)[0]


def check_start(config: RunConfig, source: str) -> None:
    """Raise before ranks start when what a run would begin with is no adapter of its base.

    Raises:
        ModelError: Says what it is instead, or that it has other token ids.
    """
    place = start_place(config, config.checkpoint.resume)
    if place is not None:
        _read(config, place, source)
        check_start_tokenizer(config.model, place, source)


def named_with_start(base: str, start: StartAdapter | None) -> str:
    """Return what names the model that training begins with: the base's digest, or that of both."""
    return base if start is None else digest_of([base, start.digest])


def _keep(config: RunConfig, source: str, goes_on: bool) -> None:
    """Write the copy, unless the run goes on with the one that is there; rank 0."""
    place, copy = start_place(config, goes_on), Path(config.run_dir) / COPY
    assert place is not None
    if place == copy:
        _LOG.info("The adapter that the run began with is read from %s.", copy)
        return
    start, described = _read(config, place, source)
    described.base_model_name_or_path = source
    tensors = start.tensors
    is_narrow = all(tensor.dtype == torch.bfloat16 for tensor in tensors.values())
    dtype = torch.bfloat16 if is_narrow else torch.float32

    def fill(folder: Path) -> None:
        write_adapter(tensors.items(), described, folder, dtype)

    publish_folder(copy, fill)
    _LOG.info(
        "The run goes on with the adapter of %s (%s); a copy is kept in %s.",
        place,
        start_said(config.tune),
        copy,
    )


def _read(config: RunConfig, place: Path, source: str) -> tuple[StartAdapter, Any]:
    """Return the adapter of a folder or a run, and peft's description of it.

    Raises:
        ModelError: It is none, or one of another base.
        CheckpointError: The run has no checkpoint that verifies.
    """
    described = read_adapter(place)
    tensors: Any
    if config_path(place).exists():
        tensors, described = _of_run(config, place, source, described)
    else:
        if place.name != COPY:
            _refuse_other_name(config, place, described, source)
        tensors = _of_file(place / FACTORS).items()
    base = open_base(source, config.model)
    return start_of(str(place), tensors, config.tune, base.text_name), described


def _of_run(config: RunConfig, run_dir: Path, source: str, described: Any) -> Any:
    """Return tensors and description of a run's last checkpoint, beside the whole base."""
    checkpoint = find_checkpoint(run_dir, "last", KEY)
    trained = load_config(config_path(run_dir))
    saved = read_manifest(checkpoint).facts.get("base")
    now = base_digest(config.model, trained.tune.quantise, source, config.data.cache_dir)
    if saved is not None and saved != now:
        rule = f"an adapter of this model, but was trained on another ({str(saved)[:12]}, and {source} is {now[:12]})"
        raise CheckpointError(
            start_refused(run_dir, rule, "Give the base that it was trained on as model.path.")
        )
    return as_plain_lora(stream_parameters(checkpoint), described, run_dir)


def _of_file(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(str(path))
    except (OSError, SafetensorError, ValueError) as error:
        rule = f"an adapter with {FACTORS}, but it cannot be read ({' '.join(str(error).split())[:120]})"
        raise ModelError(start_refused(path.parent, rule, "Get that file again.")) from error


def _refuse_other_name(config: RunConfig, place: Path, described: Any, source: str) -> None:
    """Raise where a folder names another base than the run's; names of folders and of the hub by their last word."""
    named = getattr(described, "base_model_name_or_path", None)
    own = {_last(source), _last(config.model.path)}
    if named and _last(str(named)) not in own:
        rule = f"an adapter of {source}, but names {named} as its base"
        fix = "Set model.path to that; if both are the same model, write the name of yours in its adapter_config.json."
        raise ModelError(start_refused(place, rule, fix))


def _last(name: str) -> str:
    return Path(name).name.lower()
