"""`palimpsest verify`: what a run consumed, and whether what it left is as it was written. Needs no GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from trainer.checkpoint.layout import STATE, checkpoints_dir, find_checkpoints, find_damaged
from trainer.checkpoint.state import TrainState, read_state
from trainer.checkpoint.verify import inspect
from trainer.command.card import changed_file
from trainer.command.exported import ExportNote, export_notes
from trainer.command.how_far import how_far
from trainer.config.many import many
from trainer.config.schema import RunConfig
from trainer.config.snapshot import config_digest
from trainer.errors import CheckpointError, DataError, Exit, TrainerError
from trainer.export.earlier import VERIFIED
from trainer.metrics.effective import Effective, effective
from trainer.metrics.jsonl import changed_line, read, read_events
from trainer.run.lost import lost_step
from trainer.runtime.lease import is_held
from trainer.runtime.log import attempt_dirs
from trainer.runtime.say import say

OTHER_DATA = (
    "Bring back the data that the run read: with other data, train and evaluate refuse the run. What was trained "
    "is in its checkpoints as it was, and can be exported."
)
OTHER_TOKENS = "Give the configuration that it was trained with: its own config.yaml, without other words."
AGAIN = "Export again: `palimpsest export` writes the folder anew."
ELSEWHERE = "Export again: remove that folder, which is known as no export without it, or give another."


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what was looked at."""

    what: str
    result: str
    is_sound: bool = True
    fix: str = (
        "Bring back what is named from its source, or go on from what is sound: `palimpsest train` with the same words "
        "does."
    )
    """What to do where it is not sound; empty where the result says it."""
    is_there: bool = True
    """False: it was written once and is not here to be looked at, as its owner may well want it."""


def verify_run(config: RunConfig) -> int:
    """Look at a run directory, print what was found, and return the exit code.

    Raises:
        CheckpointError: Something is not as it was written, or the run consumed other tokens than it should have.
    """
    run_dir, console = Path(config.run_dir), Console()
    if not console.is_terminal:
        console = Console(width=160)
    if not (run_dir / "ledger.jsonl").exists():
        if is_held(run_dir):
            say(console, f"{run_dir} is running and before its first step: there is nothing to verify yet.")
            return Exit.done
        num_attempts = len(attempt_dirs(run_dir))
        fix = (
            f"See `palimpsest status {run_dir}`: {many(num_attempts, 'attempt')} ended before the first step."
        )
        raise CheckpointError(
            f"`run_dir` must hold a run that was trained, but {run_dir} has no ledger.jsonl instead. "
            f"{fix if num_attempts else 'Set run_dir.'}"
        )
    checkpoints, newest = _checkpoints(config, console)
    found = [_ledger(run_dir), *checkpoints]
    if newest is not None:
        found.append(_tokens(config, newest, console))
        found += _rounds(config, newest)
    found += _exports(config)
    found.append(_time(effective(run_dir), len(attempt_dirs(run_dir))))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for one in found:
        table.add_row(one.what, one.result)
    console.print(table)
    wrong = [one for one in found if not one.is_sound]
    if wrong:
        listed = "; ".join(f"{one.what}: {one.result.rstrip('.')}" for one in wrong)
        fixes = " ".join(dict.fromkeys(one.fix for one in wrong if one.fix))
        raise CheckpointError(f"{run_dir} must be as it was written, but is not: {listed}. {fixes}".rstrip())
    whole = "All" if all(one.is_there for one in found) else "All that is here"
    say(console, f"{whole} is as it was written. {how_far(config, newest)}")
    return Exit.done


def _bar(console: Console) -> dict[str, Any]:
    """Return how progress is shown: where somebody looks, until it is done."""
    return {"console": console, "transient": True, "disable": not console.is_terminal}


def _ledger(run_dir: Path) -> Finding:
    path = run_dir / "ledger.jsonl"
    number = changed_line(path)
    if number is not None:
        return Finding(
            "ledger", f"line {number} is not as it was written, or follows one that is missing", False
        )
    return Finding("ledger", f"{many(len(read(path)), 'event')}, chained")


def _checkpoints(config: RunConfig, console: Console) -> tuple[list[Finding], TrainState | None]:
    """Verify every file of every checkpoint; return what was found, and the state of the newest that is sound."""
    run_dir, found, newest = Path(config.run_dir), list[Finding](), None
    for folder in track(find_checkpoints(run_dir), description="checkpoints", **_bar(console)):
        manifest, damage = inspect(folder)
        if damage is not None or manifest is None:
            found.append(Finding(folder.name, str(damage), False))
            continue
        num_bytes = sum(size for size, _ in manifest.files.values())
        text = f"{many(len(manifest.files), 'file')}, {num_bytes / 1e9:.3g} GB, by {many(manifest.world_size, 'rank')}"
        found.append(Finding(folder.name, f"{text} at ZeRO-{manifest.zero_stage}: as written"))
        if newest is not None:
            continue
        try:
            newest = read_state(folder / STATE, manifest.step)
        except CheckpointError as error:
            found[-1] = Finding(folder.name, str(error), False, "")
            continue
        if _asked(config) not in (None, manifest.config_digest):
            saved_it = f"is not the one that {folder.name} was saved with"
            found.append(Finding("configuration", saved_it, False, OTHER_TOKENS))
    found += [Finding(folder.name, "was set aside as damaged") for folder in find_damaged(run_dir)]
    if newest is None:
        lost = lost_step(run_dir)
        known = "" if lost is None else f", though the ledger knows that step {lost} was saved"
        none = f"none that can be used in {checkpoints_dir(run_dir)}{known}"
        found.append(Finding("checkpoints", none, is_there=lost is None))
    return found, newest


def _asked(config: RunConfig) -> str | None:
    """Return the digest of what shapes the training, with what ranks choose where it is open.

    None where the model is not here to be asked: what else needs it says so.
    """
    from trainer.run.packing import with_packing

    try:
        return config_digest(with_packing(config, says=False))
    except TrainerError:
        return None


def _tokens(config: RunConfig, state: TrainState, console: Console) -> Finding:
    """Compare the tokens that the run should have consumed with the ledger's digests of those it did."""
    from trainer.data.store.prepared import open_all
    from trainer.mix.mixing import Mixing
    from trainer.mix.recompute import consumed
    from trainer.model.resolve import resolve_model
    from trainer.model.tokenizer import configured_tokenizer
    from trainer.run.identity import data_now

    try:
        source = resolve_model(config.model, Path(config.data.cache_dir))
        tokenizer = configured_tokenizer(config.model, source)
        if changed := data_now(config, tokenizer)[0]:
            names = ", ".join(f"`data.sources.{name}`" for name in changed)
            return Finding("data", f"{names} no longer holds what the run read", False, OTHER_DATA)
        stores = open_all(config.data, tokenizer)
        packs_per_step = config.train.global_batch_tokens // config.data.seq_len
        mixing = Mixing(config.data, config.replay, config.train, config.seed, stores, packs_per_step)
        mixing.restore(TrainState(ratio_changes=state.ratio_changes, choices=state.choices))
        said = _said(read_events(Path(config.run_dir) / "ledger.jsonl"), state)
        splits = [store.train for store in stores.values()]
        looked_at: set[tuple[int, int]] = set()
        wrong: list[int] = []
        steps = consumed(mixing.plan, splits, state.step)
        for step, digest, refs in track(steps, total=state.step, description="tokens", **_bar(console)):
            for ref in refs:
                if ref[:2] not in looked_at:
                    splits[ref.source].pack(ref.pack)  # compares its bytes with the store's digest of them
                    looked_at.add(ref[:2])
            if said.get(step, digest) != digest:
                wrong.append(step)
    except DataError as error:
        return Finding("tokens", str(error), False, "")
    if wrong:
        said_so = f"those of the steps up to {wrong[0]} are not what the configuration draws"
        return Finding("tokens", said_so, False, OTHER_TOKENS)
    tokens = f"{state.tokens_seen:,} tokens in {many(state.step, 'step')}"
    if state.round:
        tokens = f"the documents of {many(state.step, 'step')}, before any was answered anew"
    return Finding(
        "tokens", f"{tokens}: those that the configuration draws ({many(len(said), 'digest')} compared)"
    )


def _rounds(config: RunConfig, state: TrainState) -> list[Finding]:
    """Compare the answers that the run sampled with what the ledger and the newest checkpoint know of them."""
    from trainer.rounds.looked_at import look_at_rounds

    if not state.round:
        return []
    events = read_events(Path(config.run_dir) / "ledger.jsonl")
    text, is_sound = look_at_rounds(Path(config.run_dir), state.round, events, list(config.data.sources))
    return [Finding("rounds", text, is_sound)]


def _said(events: Sequence[dict[str, Any]], state: TrainState) -> dict[int, str]:
    """Return the digests that a ledger and the newest state have of all tokens up to a step."""
    found = {
        int(event["step"]): str(event.get("data_digest"))
        for event in events
        if event["event"] == "saved" and int(event["step"]) <= state.step
    }
    return found | ({state.step: state.data_digest} if state.step else {})


def _exports(config: RunConfig) -> list[Finding]:
    """Compare the files of every export of the run, wherever it is, with what was noted of them."""
    run_dir = Path(config.run_dir)
    notes = list(export_notes(run_dir))
    found = [_noted(one) for one in notes]
    known = {one.folder for one in notes if isinstance(one, ExportNote)}
    own = Path(config.export.output_dir or run_dir / "export").expanduser().absolute()
    if own not in known and own.is_dir():
        found.append(_export(own))
    return found or [Finding("export", "none")]


def _noted(note: ExportNote | str) -> Finding:
    """Look at an export that the run has a note of, or tell of a note that cannot be read."""
    if isinstance(note, str):
        return Finding("export", note, False, AGAIN)
    if not note.folder.is_dir():
        gone = "is gone: it was removed or moved, or its disk is not here"
        return Finding("export", f"{note.folder} {gone}", is_there=False)
    if not (note.folder / VERIFIED).exists():
        return Finding("export", f"{note.folder} has no {VERIFIED} any more", False, ELSEWHERE)
    if note.is_of_another:
        other = "holds another export by now than this run wrote there"
        return Finding("export", f"{note.folder} {other}", is_there=False)
    return _export(note.folder)


def _export(folder: Path) -> Finding:
    """Compare the files of an export with what was noted of them."""
    try:
        changed = changed_file(folder)
    except FileNotFoundError:
        return Finding("export", f"{folder} was not verified whole when it was made", False, AGAIN)
    except ValueError as error:
        return Finding("export", f"{folder}: what was noted of it cannot be read ({error})", False, ELSEWHERE)
    if changed is not None:
        return Finding("export", f"{changed} in {folder} is not as it was written", False, AGAIN)
    return Finding("export", f"{folder}: as written")


def _time(found: Effective, num_attempts: int) -> Finding:
    """Return how the time was spent; an attempt may have ended before it trained."""
    starts = many(max(num_attempts, found.num_starts), "attempt")
    if num_attempts > found.num_starts:
        starts += f", of which {found.num_starts} trained"
    ratio = "" if found.ratio is None else f", {found.ratio:.1%} of the time in steps that stayed (ETTR)"
    lost = f"{many(found.lost_steps, 'step')} thrown away, {many(found.skipped_steps, 'step')} skipped"
    return Finding("time", f"{starts}, {lost}{ratio}")
