"""README.md of an exported folder: what the model is, from the files of its run. Pure but for those files.

Paths are cut to their last part and secrets are taken out at the end, of the whole text: what is quoted in it may come
from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.evaluate.compare import SetComparison
from trainer.evaluate.gate import GateResult
from trainer.evaluate.record import Divergence, ForgettingRecord
from trainer.export.base_card import BaseCard
from trainer.metrics.redact import redact
from trainer.report.markdown import bullets, pipe_table
from trainer.report.number import count, decimals_for, fixed, percent, signed
from trainer.report.ranking import ranking_limits, ranking_table, rankings
from trainer.report.record import RunRecord
from trainer.report.verdict import between, is_unclear, listed

SETTINGS = (
    *(
        "kind",
        "seed",
        "objective.kind",
        "data.seq_len",
        "train.global_batch_tokens",
        "train.micro_batch_size",
    ),
    *("train.max_steps", "train.max_epochs", "train.max_tokens", "optim.lr", "optim.betas", "optim.eps"),
    *(
        "optim.weight_decay",
        "optim.clip_norm",
        "schedule.name",
        "schedule.warmup_frac",
        "schedule.warmup_steps",
    ),
    *("schedule.final_frac", "zero.stage", "zero.dtype"),
)
OF_ADAPTERS = ("method", "quantise", "r", "alpha", "dropout", "target", "rslora", "dora", "init", "train")
OF_REPLAY = ("ratio", "additive", "schedule", "controller", "kl.beta")
_PLACE = re.compile(r"(?<![^\s'\"=(\[`|,{])(?:file://)?(?:~|\.{0,2})/[^\s'\"`|,;)\]}]+")
_MISSING = "not recorded"


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """A source of the run, from its token store and the checkpoint's state."""

    role: str
    dataset: str | None
    """Name on the hub; None for files."""
    digest: str | None
    rows: int | None
    """None where the token store is not here any more."""
    tokens: int
    """Drawn until the checkpoint."""
    dropped: str
    """What was dropped or changed, in words; empty for nothing."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported and how it was checked."""

    name: str
    is_adapter: bool
    what: str
    """One sentence: of which checkpoint, merged, between, or combined."""
    proof: str
    """One sentence: what was compared before it was called verified."""
    checkpoint: str | None
    base: BaseCard
    sources: Mapping[str, SourceFacts]
    gate: Sequence[GateResult] | None
    """None where there is no gate, or no measurement to judge."""
    tags: Sequence[str] = ()
    is_scorer: bool = False
    """A reward model."""


def build_card(record: RunRecord, exported: Exported) -> str:
    """Return the model card: a head that the hub reads, and a text for people."""
    found = record.forgetting
    if found is not None and found.run.tuned != exported.checkpoint:
        found = None
    parts = [
        f"# {exported.name}",
        _summary(record, exported),
        "## Limits",
        bullets(_limits(record, exported, found)),
        "## Base and licence",
        _base(exported.base),
        "## Data",
        _data(exported),
        "## Replay",
        _replay(record, found),
        "## Method",
        _settings(record),
        "## How it ranks pairs" if exported.is_scorer else "## What changed against the base",
        _changes(record, exported, found),
        "## Gate",
        _gate(exported),
        "## What was dropped",
        _dropped(record, exported),
        "## How it was made",
        _origin(record, exported),
    ]
    text = _safe("\n\n".join(part for part in parts if part))
    return f"---\n{_head(exported)}---\n\n{text}\n"


def _head(exported: Exported) -> str:
    base = exported.base
    head: dict[str, Any] = {
        "license": base.license,
        "license_name": base.license_name,
        "license_link": base.license_link,
        "library_name": "peft" if exported.is_adapter else "transformers",
        "pipeline_tag": "text-classification" if exported.is_scorer else "text-generation",
        "language": list(base.languages),
        "datasets": list(dict.fromkeys(s.dataset for s in exported.sources.values() if s.dataset)),
        "tags": ["palimpsest", *dict.fromkeys(exported.tags)],
    }
    if base.hub_name is not None:
        relation = "adapter" if exported.is_adapter else "finetune"
        head = {"base_model": base.hub_name, "base_model_relation": relation} | head
    return yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False)


def _summary(record: RunRecord, exported: Exported) -> str:
    kind = "An adapter for" if exported.is_adapter else "A model tuned from"
    if exported.is_scorer:
        kind = f"A reward model, {'an adapter for' if exported.is_adapter else 'tuned from'}"
    made = f"{kind} {exported.base.name}, by the run `{record.name}` with Palimpsest. {exported.what}"
    return (
        f"{made} {exported.proof} This card was written from the files of the run; nobody has read it over."
    )


def _limits(record: RunRecord, exported: Exported, found: ForgettingRecord | None) -> Iterator[str]:
    ranked = rankings(record, exported.checkpoint)
    yield from ranking_limits(ranked)
    if exported.is_scorer:
        if not ranked:
            yield "How it ranks pairs that it had not seen was not measured."
        yield "Its scores compare answers to one prompt: those of different prompts have no common scale."
    elif found is None:
        yield "It was not compared with its base, so nothing is known here of what it learnt or lost."
    else:
        idle = [
            one.name
            for one in found.sets
            if one.role == "target" and (one.change_nats >= 0 or is_unclear(one))
        ]
        if idle:
            yield f"On held-out text of {listed(idle)}, which it was to learn, it is no better than its base."
        worse = [one for one in found.sets if one.change_nats > 0 and not is_unclear(one)]
        if worse:
            names = listed(f"{one.name} ({signed(one.change_nats, 3)} nats)" for one in worse)
            yield f"It is worse than its base on held-out text of {names}."
        if not found.tasks:
            yield "No benchmark task was run: held-out loss says nothing of skill, of facts or of instructions."
    yield "Safety, bias and truthfulness were not measured. What the base does wrong this may do as well, or more."
    length = record.setting("data.seq_len")
    if length is not None:
        yield f"It was trained on at most {count(length)} tokens at once; longer text was not looked at."
    yield "What it has seen of the data below it may repeat word for word."
    if record.setting("tune.quantise") not in (None, "none"):
        yield "It was trained on a base in 4 bits (NF4); on the base in full precision it answers a little otherwise."


def _base(base: BaseCard) -> str:
    link = f"[{base.hub_name}](https://huggingface.co/{base.hub_name})" if base.hub_name else base.name
    if base.said_by is not None:
        name = base.license_name or base.license
        return f"The base is {link}. Its licence is `{name}`, as its {base.said_by} says; it holds for this model too."
    where = "there" if base.hub_name else "where the base was taken from"
    return f"The base is {link}. Its folder here does not say which licence it has: look {where} before you use this."


def _data(exported: Exported) -> str:
    if not exported.sources:
        return "The files of this export do not say what it was trained on."
    total = sum(source.tokens for source in exported.sources.values())
    rows = [
        (
            name,
            source.role,
            source.dataset or "files",
            _MISSING if source.rows is None else count(source.rows),
            count(source.tokens),
            percent(source.tokens / total) if total else "-",
            f"`{(source.digest or _MISSING)[:16]}`",
        )
        for name, source in exported.sources.items()
    ]
    header = ("Source", "Role", "From", "Rows", "Tokens trained on", "Share", "Digest of the tokens")
    note = (
        "Tokens are those that the run read of a source, what is not learnt of a row included and padding not. "
        "`target` is learnt, `replay` is older data against forgetting, `probe` is only measured. Rows are those that "
        "were read; held-out ones are among them."
    )
    return f"{pipe_table(header, rows)}\n\n{note}"


def _replay(record: RunRecord, found: ForgettingRecord | None) -> str:
    asked = [(f"replay.{key}", record.setting(f"replay.{key}")) for key in OF_REPLAY]
    if found is None or found.replay is None:
        is_asked = any(value not in (None, False, 0, 0.0, "none", "constant") for _, value in asked)
        return pipe_table(("Setting", "Value"), _shown(asked)) if is_asked else "None."
    replay = found.replay
    reached = (
        f"Share of supervised tokens: {percent(replay.ratio_reached)}; asked: {percent(replay.ratio_asked)}."
    )
    return f"{reached}\n\n{pipe_table(('Setting', 'Value'), _shown(asked))}"


def _settings(record: RunRecord) -> str:
    if not record.config:
        return "There is no config.yaml, so the settings are not known."
    keys = [*(f"tune.{key}" for key in OF_ADAPTERS), *SETTINGS]
    if record.setting("tune.method") == "full":
        keys = ["tune.method", *SETTINGS]
    settings = {key: record.setting(key) for key in keys}
    if settings.get("tune.alpha", 0) is None and record.setting("tune.r") is not None:
        settings["tune.alpha"] = f"{2 * record.setting('tune.r')} (twice tune.r)"
    template = record.setting("model.chat_template")
    # The name alone: nobody else is to read of the folder.
    settings["model.chat_template"] = template and Path(template).name
    return pipe_table(("Setting", "Value"), _shown(settings.items()))


def _shown(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(f"`{key}`", f"`{value}`") for key, value in pairs if value not in (None, [], False)]


def _changes(record: RunRecord, exported: Exported, found: ForgettingRecord | None) -> str:
    ranked = rankings(record, exported.checkpoint)
    said = [ranking_table(ranked)] if ranked else []
    if exported.is_scorer:
        return "\n\n".join(said) or "Not measured: no held-out pair was ranked at this checkpoint."
    return "\n\n".join([*said, _of_text(record, exported, found)])


def _of_text(record: RunRecord, exported: Exported, found: ForgettingRecord | None) -> str:
    if found is None:
        other = record.forgetting
        why = "there is no forgetting.json" if other is None else f"it is about {other.run.tuned}"
        return f"Not measured for {exported.checkpoint or 'what was exported'}: {why}."
    rows = [
        (one.name, one.role, fixed(one.base_nats, 4), fixed(one.tuned_nats, 4), *_change(one))
        for one in found.sets
    ]
    header = ("Held-out set", "Role", "Base", "Tuned", "Change", "95 % interval")
    text = (
        "Mean loss of a supervised token in nats on the same documents; lower is better. An interval that includes 0 "
        "shows no change."
    )
    parts = [text, pipe_table(header, rows) if rows else "No held-out set was measured."]
    if found.kl:
        drifts = [(one.prompts, *_divergence(one)) for one in found.kl]
        parts.append(pipe_table(("KL(base, tuned) on", "Nats", "95 % interval"), drifts))
    if found.tasks:
        columns = ("Benchmark task", "Metric", "Base", "Tuned", "Change")
        tasks = [(t.task, t.metric, _score(t.base), _score(t.tuned), _score(t.change)) for t in found.tasks]
        parts.append(pipe_table(columns, tasks))
    return "\n\n".join(parts)


def _change(one: SetComparison) -> tuple[str, str]:
    num_decimals = decimals_for(one.change_low, one.change_high)
    return signed(one.change_nats, num_decimals), between(one.change_low, one.change_high, num_decimals)


def _divergence(one: Divergence) -> tuple[str, str]:
    num_decimals = decimals_for(one.low, one.high)
    return fixed(one.nats, num_decimals), between(one.low, one.high, num_decimals)


def _score(value: float | None) -> str:
    return "not finite" if value is None else fixed(value, 4)


def _gate(exported: Exported) -> str:
    if exported.gate is None:
        return "No rule said what the model may lose, or nothing was measured to hold against one."
    broken = sum(not result.passed for result in exported.gate)
    verdict = (
        "Passed." if not broken else f"**Not passed**: {broken} of {len(exported.gate)} rules are broken."
    )
    rows = [
        (
            result.subject,
            f"{result.unit} {result.rule} {result.allowed:g}",
            signed(result.change, 4),
            "pass" if result.passed else "FAIL",
        )
        for result in exported.gate
    ]
    return f"{verdict}\n\n{pipe_table(('Set or task', 'Rule', 'Change', 'Verdict'), rows)}"


def _dropped(record: RunRecord, exported: Exported) -> str:
    lines = [f"{name}: {source.dropped}." for name, source in exported.sources.items() if source.dropped]
    unknown = [name for name, source in exported.sources.items() if source.rows is None]
    if unknown:
        lines.append(f"{listed(unknown)}: not known, the token store is not here.")
    skipped = sum(event.get("event") == "skipped" for event in record.events)
    if skipped:
        lines.append(f"Steps that were not finite and were skipped: {skipped}.")
    return bullets(lines) if lines else "Nothing that was counted: no rows and no steps."


def _origin(record: RunRecord, exported: Exported) -> str:
    known = record.provenance
    packages = [f"{name} {version}" for name, version in (known.get("packages") or {}).items() if version]
    starts = [event for event in record.events if event.get("event") == "started"]
    ranks = starts[-1].get("world_size", _MISSING) if starts else _MISSING
    rows = [
        ("Palimpsest", str(known.get("palimpsest") or _MISSING)),
        ("Commit of the trainer", str(known.get("git") or _MISSING)),
        ("Versions", ", ".join([f"Python {known.get('python', '?')}", *packages]) if known else _MISSING),
        ("Hardware", f"{known.get('device') or _MISSING}; ranks: {ranks}"),
        ("Attempts", str(len(starts)) if starts else _MISSING),
        ("Checkpoint", exported.checkpoint or "none: several runs"),
        ("config.yaml, SHA-256", record.config_digest or _MISSING),
        ("Command", f"`palimpsest {known['words']}`" if known.get("words") else _MISSING),
    ]
    return pipe_table(("What", "Value"), rows)


def _safe(text: str) -> str:
    """Cut paths to their last part and take secrets out."""
    home = str(Path.home()).rstrip("/")
    cut = text.replace(f"{home}/", "") if home else text
    cut = _PLACE.sub(lambda found: found[0].rstrip("/").rsplit("/", 1)[-1], cut)
    # Under this name a git commit is none.
    return str(redact({"commit": cut})["commit"])
