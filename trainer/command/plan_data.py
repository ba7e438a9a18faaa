"""`palimpsest plan data`: the base's loss on a sample of every source against general text, before anything is trained.

One process; on the GPU where there is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.command.data_report import DataPlanReport
from trainer.command.missing_here import refuse_missing
from trainer.command.plain_model import device_here, load_plain
from trainer.command.prepare import ensure_inputs
from trainer.config.data import Format, Role
from trainer.config.model import ModelKind
from trainer.config.schema import RunConfig
from trainer.config.snapshot import dated, write_atomic
from trainer.data.store.prepared import open_all
from trainer.data.store.store import Store
from trainer.data.types import TokenizerLike
from trainer.errors import ConfigError, DataError
from trainer.evaluate.probe_texts import PROSE, encode_texts, folder_texts, packaged_texts
from trainer.evaluate.shift import TextLoss, count_letters, shared_documents, text_loss
from trainer.evaluate.windows import TextWindow, cut_window, sample_windows, score_windows
from trainer.metrics.long_work import LongWork
from trainer.run.packing import with_packing
from trainer.runtime.say import say

COMMAND = "plan data"


def show_data_plan(config: RunConfig) -> None:
    """Print how far each source is from what the base knows, and what replay that asks for.

    Raises:
        TrainerError: The model or a source cannot be used.
    """
    if config.model.kind is ModelKind.random:
        raise ConfigError(
            "`model.kind` must have weights that know something, but is random instead. Name a model."
        )
    _refuse_place(config.plan.data_output)
    refuse_missing(config, COMMAND)
    config = with_packing(dated(config, Path(config.run_dir)))
    tokenizer = ensure_inputs(config)
    stores = open_all(config.data, tokenizer)
    rng, num = np.random.default_rng(config.seed), config.plan.data_windows
    sources = {
        name: sample_windows(_read_split(store, config, name), num, rng, tokenizer.special_ids)
        for name, store in stores.items()
    }
    for name, windows in sources.items():
        if not windows:
            raise DataError(
                f"`data.sources.{name}` must have documents of which something is learnt, but has none instead. Look "
                "at what palimpsest prepare says of its rows."
            )
    probes = _probe_windows(config, tokenizer, rng)
    model, device = load_plain(config.model, Path(config.data.cache_dir)), device_here()
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    with _progress(sum(map(len, [*sources.values(), *probes.values()]))) as on_row:
        found = {
            name: _loss(name, windows, model, device, tokenizer, on_row)
            for name, windows in [*sources.items(), *probes.items()]
        }
    general = found[PROSE]
    report = DataPlanReport(
        sources={name: found[name] for name in sources},
        roles={name: config.data.sources[name].role for name in sources},
        probes={name: found[name] for name in probes},
        general=general,
        shared=shared_documents({name: _hashes(store) for name, store in stores.items()}),
        has_replay=any(spec.role is Role.replay for spec in config.data.sources.values()),
        is_chat=tokenizer.has_chat_template
        and any(
            spec.role is Role.target and spec.format in (Format.chat, Format.completion)
            for spec in config.data.sources.values()
        ),
    )
    report.print(console)
    if config.plan.data_output is not None:
        write_atomic(Path(config.plan.data_output), json.dumps(report.to_plain(), indent=2) + "\n")
        say(console, f"Written to {config.plan.data_output}")


def _refuse_place(output: str | None) -> None:
    """Refuse a place that cannot be written to before the base is asked, which takes minutes.

    Raises:
        ConfigError: Its folder is not there, or it is a folder itself.
    """
    if output is None:
        return
    place = Path(output)
    if place.is_dir() or not place.parent.is_dir():
        state = "is a folder" if place.is_dir() else f"has no folder {place.parent}"
        raise ConfigError(
            f"`plan.data_output` must be a file in a folder that is there, but {output} {state} instead. Make "
            "the folder, or name another file."
        )


def _read_split(store: Store, config: RunConfig, name: str) -> Any:
    return store.validation if config.data.sources[name].role is Role.probe else store.train


def _hashes(store: Store) -> Any:
    return np.union1d(store.train.document_hashes(), store.validation.document_hashes())


def _probe_windows(
    config: RunConfig, tokenizer: TokenizerLike, rng: np.random.Generator
) -> dict[str, list[TextWindow]]:
    """Return a window of every document of the package's texts, and of a person's folder."""
    texts = packaged_texts()
    if config.evaluate.probe_dir is not None:
        texts += folder_texts(config.evaluate.probe_dir)
    found: dict[str, list[TextWindow]] = {}
    for kind in texts:
        encoded = encode_texts(kind, tokenizer)
        if isinstance(encoded, str):
            print(f"{kind.kind} is left out: {encoded}.")
            continue
        cut = (
            cut_window(number, ids, learnt, rng, tokenizer.special_ids)
            for number, (ids, learnt) in enumerate(zip(encoded.tokens, encoded.supervised, strict=True))
        )
        found[kind.kind] = [window for window in cut if window is not None]
    return found


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """Give what counts windows: a bar on a terminal, now and then a line elsewhere."""
    console, done = Console(file=sys.stderr), 0
    if console.is_terminal:
        columns = (TextColumn("asking the base"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=total)
            yield lambda rows: bar.advance(task, rows)
        return
    pace = LongWork(total, lambda line: print(line, file=sys.stderr, flush=True))

    def tell(rows: int) -> None:
        nonlocal done
        done += rows
        pace.at(done, f"Window {done} of {total}")

    yield tell


def _loss(
    name: str,
    windows: list[TextWindow],
    model: Any,
    device: torch.device,
    tokenizer: TokenizerLike,
    on_row: Callable[[int], None],
) -> TextLoss:
    nll_W = score_windows(model, windows, device, on_row)
    tokens_W = np.array([len(window.targets) for window in windows], dtype=np.int64)
    texts = [tokenizer.decode(window.targets.tolist()) for window in windows]
    bytes_W = np.array([max(len(text.encode("utf-8")), 1) for text in texts], dtype=np.int64)
    letters_W = np.array([max(count_letters(text), 1) for text in texts], dtype=np.int64)
    documents_W = np.array([window.document for window in windows], dtype=np.int64)
    return text_loss(name, nll_W, tokens_W, bytes_W, letters_W, documents_W)
