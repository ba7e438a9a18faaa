"""One run of the experiment: its words, its commands one after the other, and what was measured."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import ALPHAS, AVERAGED, Arm, filled
from starter import Plain, Warm, rank_words

from trainer.config.optim import ScheduleConfig
from trainer.optim.schedule import lr_factor

SHIFTS = {"strong": "continued_pretrain", "weak": "continued_pretrain", "chat": "full_finetune"}
"""Shift -> recipe. strong and weak are text, chat is conversations of which the answers are learnt."""
WARMUP_FRAC = 0.03
KL_NAME = "KL on chats"
SAVES = 12
"""Times that a run saves whose checkpoints are averaged; the last three cover its last quarter."""


@dataclass(frozen=True)
class Settings:
    """What all runs have in common."""

    model: str
    tokens: int
    batch_tokens: int
    seq_len: int
    lr: float
    packs: int
    """Held-out packs of a set, at most."""
    files: dict[str, Path]
    """By shift, and `general`, `texts` and `chats`."""
    probes: dict[str, Path]
    work: Path
    more: tuple[str, ...] = ()

    @property
    def num_steps(self) -> int:
        """Return the optimizer steps of a run."""
        return max(self.tokens // self.batch_tokens, 1)

    @property
    def mean_factor(self) -> float:
        """Return the mean learning rate of a run over its peak."""
        schedule = ScheduleConfig(warmup_frac=WARMUP_FRAC)
        return (
            sum(lr_factor(step, self.num_steps, schedule) for step in range(self.num_steps)) / self.num_steps
        )


@dataclass(frozen=True)
class Run:
    """An arm on a shift with a seed."""

    shift: str
    arm: Arm
    seed: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Return what tells it from others."""
        return self.shift, self.arm.name, self.seed

    @property
    def folder(self) -> str:
        """Return a name for its folder."""
        plain = "".join(c if c.isalnum() or c in ".+" else "-" for c in self.arm.name)
        return f"{self.shift}-{plain}-{self.seed}"


class FailedRun(Exception):
    """A command of a run ended with an error."""

    def __init__(self, code: int, log: Path) -> None:
        """Take its code and where its words are."""
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
        first = next((index for index, line in enumerate(lines) if line.startswith("Error:")), len(lines) - 1)
        said = " ".join(" ".join(lines[max(first, 0) :]).split())
        super().__init__(said[:400] or f"it ended with {code} and said nothing")
        self.code = code


def format_words(key: str, is_chat: bool) -> list[str]:
    """Return the words of a source's format: texts are cut into sequences, conversations that are longer left out."""
    return [f"{key}.format=chat", f"{key}.long_documents=drop"] if is_chat else [f"{key}.format=text"]


def common_words(settings: Settings, shift: str) -> list[str]:
    """Return what all runs of a shift share."""
    own = f"data.sources.{shift}"
    words = [
        f"model={settings.model}",
        f"recipe={SHIFTS[shift]}",
        "zero=zero1",
        "cluster.ranks_per_node=1",
        f"{own}.path={settings.files[shift].resolve()}",
        *format_words(own, shift == "chat"),
        f"data.seq_len={settings.seq_len}",
        "data.validation_frac=0.05",
        f"data.max_validation_packs={settings.packs}",
        f"data.cache_dir={os.environ.get('PALIMPSEST_CACHE', str(settings.work / 'cache'))}",
        "train.max_epochs=null",
        f"train.max_tokens={settings.tokens}",
        f"train.global_batch_tokens={settings.batch_tokens}",
        f"train.micro_batch_size={settings.batch_tokens // settings.seq_len}",
        f"evaluate.micro_batch_size={settings.batch_tokens // settings.seq_len}",
        "evaluate.every_steps=0",
        "model.checkpoint_layers=0",
        "optim.weight_decay=0",
        f"schedule.warmup_frac={WARMUP_FRAC}",
        "log.progress=false",
        "log.every_steps=20",
    ]
    for name, file in settings.probes.items():
        if name == "maths" and shift == "chat":
            continue  # those problems are what is learnt
        words += [f"data.sources.{name}.path={file.resolve()}", f"data.sources.{name}.role=probe"]
    return [*words, *settings.more]


def replay_words(settings: Settings, arm: Arm) -> list[str]:
    """Return the words of an arm's replay source."""
    if arm.replay is None:
        return []
    key = f"data.sources.{arm.replay}"
    return [
        f"{key}.path={settings.files[arm.replay].resolve()}",
        *format_words(key, arm.replay == "chats"),
        f"{key}.role=replay",
        f"{key}.max_epochs=8",
        f"replay.ratio={arm.ratio}",
    ]


def words_of(run: Run, settings: Settings) -> list[str]:
    """Return the words of a run."""
    peak = settings.lr * run.arm.real_rate
    saves = [
        f"checkpoint.every_steps={max(settings.num_steps // SAVES, 1)}",
        f"checkpoint.keep_last={AVERAGED}",
    ]
    return [
        *common_words(settings, run.shift),
        *replay_words(settings, run.arm),
        f"seed={run.seed}",
        f"name={run.folder}",
        f"run_dir={settings.work / run.folder}",
        f"optim.lr={peak:g}",
        *filled(run.arm.words, settings.num_steps, peak, settings.mean_factor),
        *([*saves, "checkpoint.keep_best=false"] if run.arm.sweeps else ["checkpoint.enabled=false"]),
    ]


def overrides_of(run: Run, settings: Settings) -> list[str]:
    """Return what an arm is asked for beyond what all are."""
    common = {*common_words(settings, run.shift)}
    own = ("seed=", "name=", "run_dir=", "data.sources.", "checkpoint.")
    return [word for word in words_of(run, settings) if word not in common and not word.startswith(own)]


def carry_out(run: Run, settings: Settings, starter: Plain | Warm) -> dict[str, Any]:
    """Train, measure, sweep, and return the line of a run; what it leaves in the work folder is removed.

    Raises:
        FailedRun: A command of it failed.
    """
    started = time.time()
    folder, log = settings.work / run.folder, settings.work / f"{run.folder}.log"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed: it begins anew, at the same numbers
    log.unlink(missing_ok=True)
    command(starter, ["train", *words_of(run, settings)], log, rank_words())
    measured = json.loads((folder / "forgetting.json").read_text(encoding="utf-8"))
    found = {
        "shift": run.shift,
        "arm": run.arm.name,
        "method": run.arm.method,
        "rate": run.arm.rate,
        "seed": run.seed,
        "overrides": overrides_of(run, settings),
        "changes": changes_of(measured),
        "replay": measured["replay"],
    }
    trained_s = time.time() - started
    points = []
    if run.arm.sweeps:
        base = {one["name"]: one["base_nats"] for one in measured["sets"]}
        for name, words in (("alpha", []), (f"mean of {AVERAGED}", [f"export.average={AVERAGED}"])):
            command(starter, ["export", f"run_dir={folder}", f"interpolate={ALPHAS}", *words], log, {})
            swept = json.loads((folder / "interpolation.json").read_text(encoding="utf-8"))
            points += [point_of(point, name, base, run.shift) for point in swept["points"]]
    shutil.rmtree(folder)
    return found | {
        "points": points,
        "trained_s": round(trained_s, 1),
        "seconds": round(time.time() - started, 1),
    }


def command(starter: Plain | Warm, argv: list[str], log: Path, env: dict[str, str]) -> None:
    """Run a command of the trainer.

    Raises:
        FailedRun: It ended with an error.
    """
    code = starter.run(argv, log, env)
    if code:
        raise FailedRun(code, log)


def changes_of(measured: dict[str, Any]) -> dict[str, float]:
    """Return the change of every held-out set in nats, what is learnt as `target`, and the KL on conversations."""
    changes = {
        "target" if one["role"] == "target" else one["name"]: one["change_nats"] for one in measured["sets"]
    }
    names = [one["name"] for one in measured["sets"]]
    chats = [one["nats"] for one in measured["kl"] if one["prompts"] not in names]
    return changes | ({KL_NAME: chats[0]} if chats else {})


def point_of(point: dict[str, Any], name: str, base: dict[str, float], shift: str) -> dict[str, Any]:
    """Return a point of a sweep as the changes of an arm: losses less the base's."""
    changes = {
        "target" if one == shift else one: nats - base[one]
        for one, nats in point["losses"].items()
        if one in base
    }
    chats = [nats for one, nats in point["kl"].items() if one not in base]
    changes |= {KL_NAME: chats[0]} if chats else {}
    return {"sweep": name, "alpha": point["alpha"], "changes": changes}
