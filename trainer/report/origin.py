"""Origin: versions, digests and settings, and the command that makes the run again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any

from trainer.report.element import Child, Html, element, table
from trainer.report.record import RunRecord
from trainer.report.section import command_for, missing, paragraph, section

LEFT_OUT = ("host", "inputs", "words")
"""Keys of provenance.json that say nothing about the result, or more than a person reads."""

SETTINGS = (
    "kind",
    "seed",
    "tune.method",
    "tune.quantise",
    "data.seq_len",
    "train.global_batch_tokens",
    "train.micro_batch_size",
    "optim.lr",
    "schedule.name",
    "zero.stage",
    "zero.dtype",
)


def origin(record: RunRecord) -> Html:
    """Return where the run came from and how to make it again."""
    rows = [*_measured(record), *_provenance(record), *_digests(record), *_settings(record)]
    cells: list[list[Child]] = [[key, element("code", value)] for key, value in rows]
    no_provenance = None
    if not record.provenance:
        no_provenance = missing("There is no provenance.json; training writes it when it starts.")
    return section(
        "origin",
        "Where it came from",
        no_provenance,
        table(["What", "Value"], cells, "Versions, digests and settings", 2) if cells else None,
        _commands(record),
    )


def _commands(record: RunRecord) -> Html:
    parts: list[Child] = []
    if record.config:
        again = ["palimpsest", "train", "--config", str(record.run_dir / "config.yaml"), "run_dir=NEW_FOLDER"]
        parts += [paragraph("Train it again:"), element("pre", element("code", shlex.join(again)))]
    else:
        parts.append(missing("There is no config.yaml, so the command that trained this run is not known."))
    parts += [
        paragraph("Make this page again:"),
        element("pre", element("code", command_for(record, "report"))),
    ]
    return element("div", *parts)


def _measured(record: RunRecord) -> Iterator[tuple[str, str]]:
    if record.forgetting is not None:
        run = record.forgetting.run
        yield "base model", run.base
        yield "base model digest", run.base_digest
        yield "tuned checkpoint", run.tuned
        yield "measured on", f"{run.device}, {run.dtype}"


def _provenance(record: RunRecord) -> Iterator[tuple[str, str]]:
    for key, value in _flat(record.provenance):
        if key.split(" ")[0] not in LEFT_OUT:
            absent = "not a checkout" if key == "git" else "not installed"
            yield key, absent if value is None else str(value)


def _digests(record: RunRecord) -> Iterator[tuple[str, str]]:
    if record.config_digest is not None:
        yield "config.yaml, SHA-256", record.config_digest
    consumed = [event["data_digest"] for event in record.events if event.get("data_digest")]
    if consumed:
        yield "tokens consumed, chained digest", str(consumed[-1])


def _settings(record: RunRecord) -> Iterator[tuple[str, str]]:
    for key in SETTINGS:
        value = record.setting(key)
        if value is not None:
            yield key, str(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value
