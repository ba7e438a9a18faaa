"""What an export leaves beside the weights: its model card, the list of what was verified, and a push of that."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from trainer.checkpoint.layout import MANIFEST, STATE
from trainer.checkpoint.state import read_state
from trainer.command.write_export import writes_adapter
from trainer.config.many import many
from trainer.config.model import ModelHead, ModelKind
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.data.store.prepared import digest_of, stores_folder
from trainer.data.store.store import META
from trainer.data.store.summary import describe_notes
from trainer.errors import ConfigError, ModelError
from trainer.evaluate.gate import GateResult, check_gate, check_tasks
from trainer.export.base_card import BaseCard, hub_name_of, read_base_card
from trainer.export.earlier import CARD, VERIFIED, WRITTEN, files_in
from trainer.export.merge import CONFIG
from trainer.export.push import Repository, file_digest, push
from trainer.model.embedded import EMBEDDED
from trainer.report.model_card import Exported, SourceFacts, build_card
from trainer.report.record import RunRecord, read_run
from trainer.report.series import Metrics
from trainer.runtime.say import say
from trainer.runtime.seal import read_sealed, sealed_text

OF_THE_HUB = ("hub", "hub_revision", "hub_private", "gguf", "llama_cpp", "despite_gate", "output_dir")
"""Options that say nothing of what is in the folder."""


def base_of(config: RunConfig, source: str) -> BaseCard:
    """Return what is known of the base of a run; where the export is to be pushed, also what the hub says."""
    base = read_base_card(source, _hub_name(config, source), is_online=config.export.hub is not None)
    if base.said_by is not None or config.model.kind is not ModelKind.embedded:
        return base
    from trainer.model.embedded import LICENSE, PACKAGE

    said_by = f"package {PACKAGE.partition('=')[0]}"
    return dataclasses.replace(base, license=LICENSE, license_name=None, license_link=None, said_by=said_by)


def _hub_name(config: RunConfig, source: str) -> str | None:
    if config.export.hub_base is not None:
        return config.export.hub_base
    return EMBEDDED if config.model.kind is ModelKind.embedded else hub_name_of(source)


def write_card(
    config: RunConfig, checkpoint: Path, base: BaseCard, folder: Path, what: str, proof: str
) -> None:
    """Write README.md of an export of a run's checkpoint."""
    record = read_run(Path(config.run_dir))
    method = config.tune.method
    exported = Exported(
        name=folder.name if folder.name != "export" else record.name,
        is_adapter=(folder / CONFIG).is_file(),
        what=what,
        proof=proof,
        checkpoint=checkpoint.name,
        base=base,
        sources=dict(_sources(config, checkpoint, record)),
        gate=_gate(config, checkpoint, record),
        tags=[
            name.replace("_", "-")
            for name in (config.kind.value, method.value)
            if name not in ("none", "full")
        ],
        is_scorer=config.model.head is ModelHead.score,
    )
    write_atomic(folder / CARD, build_card(record, exported))


def write_combined_card(base: BaseCard, folder: Path, what: str, proof: str, method: str) -> None:
    """Write README.md of several adapters that were combined: each has a run, and a card, of its own."""
    none = RunRecord(folder, None, Metrics(folder / "metrics.jsonl"), (), {}, None, {})
    exported = Exported(
        folder.name, (folder / CONFIG).is_file(), what, proof, None, base, {}, None, ["lora", method]
    )
    write_atomic(folder / CARD, build_card(none, exported))


def _sources(config: RunConfig, checkpoint: Path, record: RunRecord) -> Iterator[tuple[str, SourceFacts]]:
    state = read_state(checkpoint / STATE)
    digests = record.provenance.get("data") or {}
    for name, source in config.data.sources.items():
        digest = digests.get(name)
        meta = None
        if digest is not None:
            with contextlib.suppress(OSError, ValueError):  # the card says that it is not here
                meta = read_sealed(stores_folder(config.data) / digest / META)
        yield (
            name,
            SourceFacts(
                role=source.role.value,
                dataset=source.dataset if source.dataset and not Path(source.dataset).exists() else None,
                digest=digest,
                rows=None if meta is None else int(meta["counts"]["rows"]),
                tokens=state.tokens_by_source.get(name, 0),
                dropped="" if meta is None else describe_notes(meta).removesuffix("-"),
            ),
        )


def _gate(config: RunConfig, checkpoint: Path, record: RunRecord) -> list[GateResult] | None:
    found = record.forgetting
    if not config.gate.has_rules or found is None or found.run.tuned != checkpoint.name:
        return None
    try:
        return check_gate(config.gate.sets, found.sets) + check_tasks(config.gate.tasks, found.tasks)
    except ConfigError:
        return (
            None  # a rule about what was not measured; export.despite_gate=true took the model all the same
        )


def made_from(config: RunConfig, checkpoint: Path, base: BaseCard) -> str:
    """Return a digest of what decides an export and its card; a pushed adapter names its base otherwise."""
    options = {
        key: value for key, value in dataclasses.asdict(config.export).items() if key not in OF_THE_HUB
    }
    files = (
        checkpoint / MANIFEST,
        *(Path(config.run_dir) / name for name in ("forgetting.json", "ledger.jsonl")),
    )
    is_named = config.export.hub is not None and writes_adapter(config)
    gate = dataclasses.asdict(config.gate)
    return digest_of([options, gate, [file_digest(file) for file in files], base.hub_name, is_named])


def is_verified(folder: Path, origin: str) -> bool:
    """Tell whether a folder holds an export of this origin, whole and as it was verified."""
    try:
        record = read_sealed(folder / VERIFIED)
    except (OSError, ValueError):
        return False
    files = record["files"]
    return record["origin"] == origin and all(file_digest(folder / name) == files[name] for name in files)


def changed_file(folder: Path) -> str | None:
    """Return the first file of an export that is not as it was verified, or None.

    Raises:
        FileNotFoundError: It was never verified whole.
        ValueError: What was noted of it is not as it was written.
    """
    files = read_sealed(folder / VERIFIED)["files"]
    return next((name for name in files if file_digest(folder / name) != files[name]), None)


def seal_export(folder: Path, origin: str, base: BaseCard, is_pushed: bool, console: Console) -> None:
    """Note the digests of an export that was verified."""
    described = folder / CONFIG
    if is_pushed and described.is_file():
        plain = json.loads(described.read_text(encoding="utf-8"))
        if plain["base_model_name_or_path"] != base.hub_name:
            write_atomic(
                described, json.dumps(plain | {"base_model_name_or_path": base.hub_name}, indent=2) + "\n"
            )
            say(console, f"{CONFIG} names {base.hub_name} as its base, where others find it.")
    files = {name: file_digest(folder / name) for name in files_in(folder)}
    write_atomic(folder / VERIFIED, sealed_text({"origin": origin, "files": files}))
    (folder / WRITTEN).unlink(missing_ok=True)


def push_export(repository: Repository, folder: Path, places: list[str], what: str, console: Console) -> None:
    """Push the files that were verified, and say what was done.

    Args:
        places: Folders of this machine that nobody else is to read of.
    Raises:
        ModelError: A file tells of such a place.
    """
    files = read_sealed(folder / VERIFIED)["files"]
    for name in files:
        if name.endswith((".json", ".md", ".jinja")) and name != "tokenizer.json":
            text = (folder / name).read_text(encoding="utf-8")
            place = next((place for place in places if Path(place).is_absolute() and place in text), None)
            if place is not None:
                raise ModelError(
                    f"{folder / name} must not tell of a folder of this machine when it is pushed, but names {place}. "
                    "Take it out of the base's own files, and export again."
                )
    say(console, f"Pushing {many(len(files), 'verified file')} to {repository.name} ({repository.branch})")
    done = push(repository, folder, files, what)
    say(console, f"{done.url}: {many(done.num_files, 'file')}, each compared with the one in {folder}.")
    if done.removed:
        say(console, f"Removed there, weights of an earlier push: {', '.join(done.removed)}.")
    if done.others:
        say(console, f"Left there, not of this export: {', '.join(done.others)}.")
    left = [name for name in files_in(folder) if name not in files]
    if left:
        say(console, f"Not pushed, because nothing verified it: {', '.join(left)}.")
