"""Real runs of preferences: SmolLM2-135M-Instruct on HH-RLHF, by DPO and as a reward model, and what was forgotten.

    python benchmarks/preference_runs.py --hh FILE.jsonl.gz --general general.jsonl --probe maths=M.jsonl --out OUT.json

Arms: DPO with LoRA and with all weights, without and with 5 % replay of general text; a reward model with LoRA and with
all weights; and how the base itself ranks the held-out pairs, by the log-probability of the whole answer. A fifth of
the prompts is held out. forgetting/corpora.py makes the text files. Started again with the same --out it goes on with
the arms that are not there. Runs on a CPU too: --set train.max_steps=3 data.sources.pairs.max_documents=60.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from run import environment

from trainer.config.store import compose_config
from trainer.evaluate.gate import check_gate
from trainer.evaluate.record import read_forgetting
from trainer.metrics.jsonl import read

HERE = Path(__file__).resolve().parent
SOURCE = "pairs"
EVALUATED = ("eval_accuracy", "eval_margin", "eval_pair_loss")


@dataclass(frozen=True, slots=True)
class Arm:
    """One run."""

    words: tuple[str, ...]
    has_replay: bool = False
    has_probes: bool = True
    """What it forgot is measured, which a model that writes nothing has no answer to."""


LORA = ("tune=lora", "tune.r=16", "zero=auto", "optim.lr=2e-4")
FULL = ("zero=auto", "optim.lr=1e-5")
DPO, REWARD = ("recipe=dpo",), ("recipe=full_finetune", "objective=reward", "schedule=linear")
ARMS = {
    "base": Arm((*DPO, "objective=cpo", *FULL, "train.max_steps=1"), has_probes=False),
    "DPO, LoRA": Arm((*DPO, *LORA)),
    "DPO, LoRA, 5 % replay": Arm((*DPO, *LORA), has_replay=True),
    "DPO, full": Arm((*DPO, *FULL)),
    "DPO, full, 5 % replay": Arm((*DPO, *FULL), has_replay=True),
    "reward, LoRA": Arm((*REWARD, *LORA), has_probes=False),
    "reward, full": Arm((*REWARD, *FULL), has_probes=False),
}
"""Rates are some twenty times those of the recipes, which are for models fifty times as large."""


def main() -> None:
    """Run the arms that are missing and write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hh", type=Path, required=True)
    parser.add_argument("--general", type=Path, required=True, help="text that is replayed")
    parser.add_argument("--probe", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=32_768)
    parser.add_argument("--micro-batch", type=int, default=8, help="packs of 2,048 tokens")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "preference_runs.json")
    parser.add_argument(
        "--work", type=Path, help="run directories and stores; default a new temporary folder"
    )
    parser.add_argument("--set", nargs="*", default=[], help="overrides of every run")
    parser.add_argument("--limit-s", type=float, default=480.0, help="begin no arm after so long")
    arguments = parser.parse_args()
    arguments.gpus, arguments.shape = 1, Path("smollm2_135m")
    work: Path = arguments.work or Path(tempfile.mkdtemp(prefix="palimpsest-preferences-"))
    work.mkdir(parents=True, exist_ok=True)
    out: Path = arguments.out
    results = json.loads(out.read_text(encoding="utf-8"))["results"] if out.exists() else []
    results = [row for row in results if "failed" not in row]
    facts = environment(arguments) | {
        "statistic": "one run an arm; accuracy of held-out pairs, 95 % by Wilson"
    }
    facts.pop("warmup_steps")
    started = time.monotonic()
    for name in arguments.arms:
        if name in {row["arm"] for row in results}:
            continue
        if time.monotonic() - started > arguments.limit_s:
            print(f"{name}: no time left for it", flush=True)
            continue
        results.append({"arm": name} | measure(name, arguments, work))
        print(json.dumps({k: v for k, v in results[-1].items() if k != "overrides"}), flush=True)
        record = {"environment": facts, "results": sorted(results, key=lambda r: list(ARMS).index(r["arm"]))}
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for rows in tables(results):
        print("\n".join(rows), end="\n\n")


def measure(name: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train one arm and return what was found, or the end of its log."""
    words = overrides(ARMS[name], arguments, work)
    run_dir = work / f"{name.replace(' ', '-').replace(',', '').replace('%', 'percent')}-{int(time.time())}"
    log = run_dir.with_suffix(".log")
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        command = [sys.executable, "-m", "trainer", "train", *words, f"run_dir={run_dir}"]
        code = subprocess.run(command, stdout=stream, stderr=stream).returncode
    shown = [word for word in words if "/" not in word]  # no paths of the machine
    row: dict[str, Any] = {"overrides": shown, "wall_s": round(time.monotonic() - began, 1)}
    if code:
        print(log.read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)
        return row | {"failed": f"exit code {code}"}
    return (
        row | ranking(run_dir, is_base=name == "base") | (forgotten(run_dir) if ARMS[name].has_probes else {})
    )


def overrides(arm: Arm, arguments: argparse.Namespace, work: Path) -> list[str]:
    """Return the words of a run."""
    key = f"data.sources.{SOURCE}"
    words = [
        *(*arm.words[:1], "model=smollm2_135m", "data=preference", f"{key}.path={arguments.hh.resolve()}"),
        *("data.seq_len=2048", "data.validation_frac=0.2", "data.max_validation_packs=2000"),
        *(
            f"data.cache_dir={work / 'cache'}",
            "cluster.ranks_per_node=1",
            f"train.max_epochs={arguments.epochs}",
        ),
        *(
            f"train.global_batch_tokens={arguments.batch_tokens}",
            f"train.micro_batch_size={arguments.micro_batch}",
        ),
        *(f"evaluate.micro_batch_size={arguments.micro_batch}", "evaluate.every_steps=1000"),
        *("evaluate.during.kl=false", "checkpoint.enabled=false", "log.progress=false"),
        *arm.words[1:],
    ]
    if "train.max_steps=1" in arm.words:
        words.append("train.max_epochs=null")
    if arm.has_replay:
        words += [
            f"data.sources.general.path={arguments.general.resolve()}",
            "data.sources.general.role=replay",
        ]
        words.append("replay.ratio=0.05")
    if arm.has_probes:
        for word in arguments.probe:
            name, _, file = word.partition("=")
            words += [f"data.sources.{name}.path={Path(file).resolve()}", f"data.sources.{name}.role=probe"]
        words.append("gate=preference")
    return [*words, *arguments.set]


def ranking(run_dir: Path, is_base: bool) -> dict[str, Any]:
    """Return how held-out pairs are ranked: by the base before the first step, else after the last."""
    rows = read(run_dir / "metrics.jsonl")
    judged = [row for row in rows if f"eval_accuracy/{SOURCE}" in row]
    row = judged[0 if is_base else -1]
    found = {
        key.replace(f"/{SOURCE}", ""): value
        for key, value in row.items()
        if key.startswith(EVALUATED) and f"/{SOURCE}" in key
    }
    steps = [row for row in rows if "loss" in row]
    told = re.findall(r"of ([\d,]+) ranked right", run_dir.with_suffix(".log").read_text(encoding="utf-8"))
    return {
        "step": row["step"],
        **found,
        "num_held_out": int(told[-1].replace(",", "")) if told else None,
        "first_loss": steps[0]["loss"],
        "last_loss": steps[-1]["loss"],
        "train_accuracy": steps[-1].get("preference_accuracy"),
    }


def forgotten(run_dir: Path) -> dict[str, Any]:
    """Return what each held-out set lost, and the KL on conversations."""
    found = read_forgetting(run_dir / "forgetting.json")
    if found is None:
        return {}
    return {
        "sets": [
            {
                "name": one.name,
                "role": one.role,
                "base_nats": one.base_nats,
                "tuned_nats": one.tuned_nats,
                "change_nats": one.change_nats,
                "change_low": one.change_low,
                "change_high": one.change_high,
            }
            for one in found.sets
        ],
        "kl": [{"prompts": one.prompts, "nats": one.nats} for one in found.kl],
    }


def gate(row: dict[str, Any]) -> str:
    """Return what the gate of preferences says of what an arm forgot."""
    sets: list[Any] = [SimpleNamespace(**one) for one in row["sets"]]
    rules = compose_config(["gate=preference"]).gate.sets
    broken = [one.subject for one in check_gate(rules, sets) if not one.passed]
    return f"refused: {', '.join(broken)}" if broken else "passed"


def accuracy(row: dict[str, Any]) -> str:
    """Return the accuracy of an arm with its interval, as the page shows it."""
    mean, low, high = (row[f"eval_accuracy{end}"] for end in ("", "_low", "_high"))
    return f"{100 * mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def change(row: dict[str, Any], name: str) -> str:
    """Return how much a set's loss changed, with its interval."""
    one = next(one for one in row["sets"] if one["name"] == name)
    interval = (
        f" ({one['change_low']:+.3f} to {one['change_high']:+.3f})" if one["change_low"] is not None else ""
    )
    return f"{one['change_nats']:+.3f}{interval}"


def tables(results: list[dict[str, Any]]) -> list[list[str]]:
    """Return the rows of two Markdown tables: how pairs are ranked, and what was forgotten."""
    done = [row for row in results if "failed" not in row]
    ranked = [
        "| run | held-out pairs ranked right | margin | chosen longer | chosen shorter |",
        "|---|---|---:|---:|---:|",
    ]
    for row in done:
        sides = [row.get(f"eval_accuracy_{side}") for side in ("longer", "shorter")]
        cells = ["" if side is None else f"{100 * side:.1f} %" for side in sides]
        ranked.append(f"| {row['arm']} | {accuracy(row)} | {row['eval_margin']:+.3f} | {' | '.join(cells)} |")
    compared = [row for row in done if "sets" in row]
    if not compared:
        return [ranked]
    names = [one["name"] for one in compared[0]["sets"] if one["role"] != "replay"]
    lost = [f"| arm | {' | '.join(names)} | gate |", "|---|" + "---|" * (len(names) + 1)]
    lost += [
        f"| {row['arm']} | {' | '.join(change(row, name) for name in names)} | {gate(row)} |"
        for row in compared
    ]
    return [ranked, lost]


if __name__ == "__main__":
    main()
