"""forgetting.json: what the forgetting measurement found, as it is written and read, checked key by key."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from trainer.errors import TrainerError
from trainer.evaluate.compare import SetComparison
from trainer.evaluate.tasks.score import TaskComparison

VERSION = 1
ROLES = ("target", "replay", "probe")
FILE_NAME = "forgetting.json"
BASE_FILE = "base_evaluation.npz"

T = TypeVar("T")
_MISSING = object()


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What was compared with what."""

    name: str
    base: str
    base_digest: str
    tuned: str
    steps: int
    tokens_seen: int
    device: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """Mean KL divergence per token between base and tuned model on some prompts, in nats."""

    prompts: str
    nats: float
    low: float | None
    high: float | None
    num_tokens: int
    num_documents: int


@dataclass(frozen=True, slots=True)
class Recovery:
    """What a few steps of training on a forgotten set brought back, in nats per token."""

    set: str
    steps: int
    base_nats: float
    tuned_nats: float
    recovered_nats: float


@dataclass(frozen=True, slots=True)
class ReplaySource:
    """What one source gave to the run."""

    name: str
    role: str
    targets: int
    tokens: int
    epochs: float
    max_epochs: float | None


@dataclass(frozen=True, slots=True)
class Replay:
    """The replay that was asked for and the replay that was reached."""

    ratio_asked: float
    ratio_reached: float
    schedule: str
    controller: str
    sources: tuple[ReplaySource, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A probe that was not measured, and why, with what to do."""

    name: str
    why: str


@dataclass(frozen=True, slots=True)
class ForgettingRecord:
    """The whole file."""

    run: RunFacts
    sets: tuple[SetComparison, ...]
    kl: tuple[Divergence, ...]
    recovery: Recovery | None
    replay: Replay | None
    tasks: tuple[TaskComparison, ...]
    """Empty where no benchmark task was run."""
    probes: tuple[SetComparison, ...] = ()
    """Kinds of text that nobody had to name."""
    left_out: tuple[LeftOut, ...] = ()
    """Of them, those that were not measured."""

    def to_text(self) -> str:
        """Return the contents of the file."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, indent=2) + "\n"


def read_forgetting(path: Path) -> ForgettingRecord | None:
    """Read and check the file; None where there is none.

    Raises:
        TrainerError: The file is not JSON, of another version, or a key is missing or wrong.
    """
    if not path.exists():
        return None
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TrainerError(
            f"{path} must be whole JSON, but is not: {error}. Delete the file and measure again."
        ) from error
    return _Reader(path).read(plain)


class _Reader:
    """Turns plain JSON into the dataclasses above; every error names the file and the key."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, plain: Any) -> ForgettingRecord:
        if not isinstance(plain, dict):
            raise self._error("the file", "one JSON object", plain)
        if plain.get("version") != VERSION:
            raise self._error("version", str(VERSION), plain.get("version", _MISSING))
        sets, probes = self._sets(plain, "sets"), self._sets({"probes": plain.get("probes", [])}, "probes")
        kl = self._items(Divergence, plain, "kl")
        for number, row in enumerate(kl):
            self._check_pair(f"kl[{number}].", row.low, row.high)
        recovery = plain.get("recovery")
        return ForgettingRecord(
            run=self._item(RunFacts, plain.get("run", _MISSING), "run"),
            sets=sets,
            kl=kl,
            recovery=None if recovery is None else self._item(Recovery, recovery, "recovery"),
            replay=self._replay(plain.get("replay")),
            tasks=self._items(TaskComparison, {"tasks": plain.get("tasks", [])}, "tasks"),
            probes=probes,
            left_out=self._items(LeftOut, {"left_out": plain.get("left_out", [])}, "left_out"),
        )

    def _sets(self, plain: dict[str, Any], key: str) -> tuple[SetComparison, ...]:
        sets = self._items(SetComparison, plain, key)
        for number, one in enumerate(sets):
            if one.role not in ROLES:
                raise self._error(f"{key}[{number}].role", "target, replay or probe", one.role)
            self._check_pair(f"{key}[{number}].change", one.change_low, one.change_high)
        return sets

    def _replay(self, plain: Any) -> Replay | None:
        if plain is None:
            return None
        if not isinstance(plain, dict):
            raise self._error("replay", "a JSON object or null", plain)
        sources = self._items(ReplaySource, plain, "sources", "replay.")
        return self._item(Replay, {**plain, "sources": sources}, "replay")

    def _items(self, kind: type[T], plain: dict[str, Any], key: str, prefix: str = "") -> tuple[T, ...]:
        items = plain.get(key, _MISSING)
        if not isinstance(items, list):
            raise self._error(prefix + key, "a list", items)
        return tuple(self._item(kind, item, f"{prefix}{key}[{n}]") for n, item in enumerate(items))

    def _item(self, kind: type[T], plain: Any, where: str) -> T:
        if not isinstance(plain, dict):
            raise self._error(where, "a JSON object", plain)
        values = {}
        for field in dataclasses.fields(kind):  # type: ignore[arg-type]
            key = f"{where}.{field.name}"
            if field.name not in plain and field.default is not dataclasses.MISSING:
                continue  # written before there was such a key
            if field.name not in plain:
                raise self._error(key, "given", _MISSING)
            values[field.name] = self._value(str(field.type), plain[field.name], key)
        return kind(**values)

    def _value(self, kind: str, value: Any, key: str) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        match kind:
            case "str":
                is_right, rule = isinstance(value, str), "text"
            case "int":
                is_right, rule = (
                    is_number and isinstance(value, int) and value >= 0,
                    "a whole number from 0 up",
                )
            case "float":
                is_right, rule = is_number and math.isfinite(value), "a finite number"
            case "float | None":
                is_right = value is None or (is_number and math.isfinite(value))
                rule = "a finite number or null"
            case "bool | None":
                is_right, rule = value is None or isinstance(value, bool), "true, false or null"
            case _:
                is_right, rule = True, "right"
        if not is_right:
            raise self._error(key, rule, value)
        return value

    def _check_pair(self, prefix: str, low: float | None, high: float | None) -> None:
        joint = "" if prefix.endswith(".") else "_"
        if (low is None) != (high is None):
            rule = f"null exactly where {prefix}{joint}high is"
            raise self._error(f"{prefix}{joint}low", rule, low)

    def _error(self, key: str, rule: str, value: Any) -> TrainerError:
        shown = "missing" if value is _MISSING else "null" if value is None else repr(value)[:40]
        return TrainerError(
            f"`{key}` of {self._path} must be {rule}, but is {shown} instead. Delete the file and measure again."
        )
