"""The small honest experiment: what a model forgets when it is continued on new text, with and without replay.

    python benchmarks/forgetting/run.py --strong strong.jsonl --weak weak.jsonl --general general.jsonl \
        --probe wikipedia=W.jsonl --probe maths=M.jsonl --work DIR --out results.json

Every arm is a real run of `python -m trainer` with the same total tokens: replay 0, 1, 5 and 25 % of general text, and
25 % of what the base says itself, and LoRA, on a strong and on a weak shift, for several seeds. Probes are never
replayed.
corpora.py makes the files: a JSON object with `text` a line. Runs share one GPU; --jobs says how many at once. Started
again with the same --work, it keeps the runs that ended.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from run import environment  # noqa: E402

from trainer.start.local import free_port  # noqa: E402

ARMS: dict[str, tuple[str | None, float, list[str]]] = {
    "none": (None, 0.0, []),
    "none, half the rate": (None, 0.0, ["optim.lr=1e-4"]),
    "general 1 %": ("general", 0.01, []),
    "general 5 %": ("general", 0.05, []),
    "general 25 %": ("general", 0.25, []),
    "self-generated 25 %": ("generated", 0.25, []),
    "LoRA r=64, none": (None, 0.0, ["tune=lora", "tune.r=64", "optim.lr=1e-3"]),
    "LoRA r=64, half the rate": (None, 0.0, ["tune=lora", "tune.r=64", "optim.lr=5e-4"]),
    "LoRA r=64, self-generated 25 %": ("generated", 0.25, ["tune=lora", "tune.r=64", "optim.lr=1e-3"]),
}
"""Arm -> replay source, its ratio, and overrides. LoRA has five times the learning rate of full fine-tuning."""
LIKE = {
    "full": ("none", "none, half the rate"),
    "LoRA r=64": ("LoRA r=64, none", "LoRA r=64, half the rate"),
}
"""Two rates of each method without replay: between them a straight line says what is forgotten at one target loss."""


@dataclass(frozen=True)
class Run:
    """One training run of the experiment."""

    shift: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Return a folder name."""
        return (
            f"{self.shift}-{self.arm}-{self.seed}".replace(" %", "")
            .replace(" ", "-")
            .replace(",", "")
            .replace("=", "")
        )


STAGGER_S = 6
SWEPT = Run("strong", "none", 0)
"""The run whose weights are interpolated with the base's; only it saves a checkpoint."""


def main() -> None:
    """Run every arm and write the JSON."""
    arguments = parse()
    work: Path = arguments.work or Path(tempfile.mkdtemp(prefix="palimpsest-forgetting-"))
    work.mkdir(parents=True, exist_ok=True)
    started = time.time()
    common = common_overrides(arguments, work)
    if any(ARMS[arm][0] == "generated" for arm in arguments.arms) and not generated_file(work).is_file():
        generate(arguments, common)
    runs = [
        Run(shift, arm, seed)
        for seed in range(arguments.seeds)
        for shift in ("strong", "weak")
        for arm in arguments.arms
    ]
    every_source = {
        word for run in runs for word in overrides(run, arguments, common, work) if "data.sources" in word
    }
    command("prepare", [*common, *sorted(every_source - {*common})], work / "prepare.log")
    kept = sum(measured_file(run, work).is_file() for run in runs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(
            pool.map(lambda n, run: train(n, run, arguments, common, work), range(len(runs)), runs)
        )
    swept = interpolate(SWEPT, work) if SWEPT in runs else None
    record = {
        "environment": environment(arguments) | {"statistic": "mean and standard deviation over seeds"},
        "tokens_per_run": arguments.tokens,
        "learning_rate": arguments.lr,
        "wall_s": round(time.time() - started, 1),
        "num_runs_of_earlier_calls": kept,
        "summary": summarise(results),
        "equal_target_loss": at_equal_loss(results),
        "interpolation": swept,
        "runs": results,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record["summary"]))
    print(table(record["equal_target_loss"], "method"))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strong", type=Path, required=True)
    parser.add_argument("--weak", type=Path, required=True)
    parser.add_argument("--general", type=Path, required=True)
    parser.add_argument("--probe", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--tokens", type=int, default=1_200_000, help="of a run, all arms alike")
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--generated-tokens", type=int, default=320_000)
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "forgetting.json")
    parser.add_argument(
        "--work", type=Path, help="run directories and stores; default a new temporary folder"
    )
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    arguments = parser.parse_args()
    arguments.gpus, arguments.shape = 1, Path(arguments.model)
    return arguments


def common_overrides(arguments: argparse.Namespace, work: Path) -> list[str]:
    """Return what all runs share."""
    probes = []
    for word in arguments.probe:
        name, _, file = word.partition("=")
        key = f"data.sources.{name}"
        probes += [f"{key}.path={Path(file).resolve()}", f"{key}.role=probe"]
    return [
        f"model={arguments.model}",
        "recipe=continued_pretrain",
        "zero=zero1",
        "cluster.ranks_per_node=1",
        f"data.seq_len={arguments.seq_len}",
        "data.validation_frac=0.05",
        f"data.cache_dir={os.environ.get('PALIMPSEST_CACHE', str(work / 'cache'))}",
        "train.max_epochs=null",
        f"train.max_tokens={arguments.tokens}",
        f"train.global_batch_tokens={arguments.batch_tokens}",
        f"train.micro_batch_size={arguments.batch_tokens // arguments.seq_len}",
        f"evaluate.micro_batch_size={arguments.batch_tokens // arguments.seq_len}",
        "model.checkpoint_layers=0",
        "evaluate.every_steps=0",
        "checkpoint.every_steps=0",
        "checkpoint.keep_best=false",
        f"optim.lr={arguments.lr}",
        f"replay.generate.num_tokens={arguments.generated_tokens}",
        f"replay.generate.max_new_tokens={arguments.seq_len // 2}",
        "replay.generate.batch_size=1024",
        f"replay.generate.output_dir={work / 'generated'}",
        "replay.generate.prompts=text",
        "log.progress=false",
        "log.every_steps=20",
        *probes,
        *arguments.set,
    ]


def overrides(run: Run, arguments: argparse.Namespace, common: list[str], work: Path) -> list[str]:
    """Return the words of one run."""
    file = {"strong": arguments.strong, "weak": arguments.weak}[run.shift]
    words = [
        *common,
        f"data.sources.{run.shift}.path={file.resolve()}",
        f"seed={run.seed}",
        f"name={run.name}",
        f"run_dir={work / run.name}",
        f"checkpoint.enabled={run == SWEPT}",
    ]
    source, ratio, more = ARMS[run.arm]
    words += more
    if source is None:
        return words
    key = f"data.sources.{source}"
    path = arguments.general.resolve() if source == "general" else generated_file(work)
    return [
        *words,
        f"{key}.path={path}",
        f"{key}.role=replay",
        f"{key}.max_epochs=4",
        f"replay.ratio={ratio}",
    ]


def generated_file(work: Path) -> Path:
    """Return where the base model's samples are."""
    return work / "generated" / "generated.jsonl"


def generate(arguments: argparse.Namespace, common: list[str]) -> None:
    """Sample the base model once."""
    words = [word for word in common if not word.startswith("data.sources.")]
    source = [f"data.sources.strong.path={arguments.strong.resolve()}"]
    subprocess.run([sys.executable, "-m", "trainer", "replay", "generate", *words, *source], check=True)


def command(name: str, words: list[str], log: Path, as_rank: bool = False) -> None:
    """Run a command of the trainer, or one rank of it, and stop with the end of its log if it fails."""
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free_port())}
    with log.open("a", encoding="utf-8") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", name, *words],
            stdout=stream,
            stderr=stream,
            env={"OMP_NUM_THREADS": "2"} | os.environ | (rank if as_rank else {}),
        )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")


def measured_file(run: Run, work: Path) -> Path:
    """Return the file that a run ends with."""
    return work / run.name / "forgetting.json"


def train(
    number: int, run: Run, arguments: argparse.Namespace, common: list[str], work: Path
) -> dict[str, Any]:
    """Train one arm and return what it forgot. The first ones start apart, so that not all load at the same time."""
    time.sleep(STAGGER_S * number if number < arguments.jobs else 0)
    started = time.time()
    words = overrides(run, arguments, common, work)
    measured = measured_file(run, work)
    if not measured.is_file():
        command("train", words, work / f"{run.name}.log", as_rank=True)
        print(f"{run.name}: {time.time() - started:.0f} s", flush=True)
    record = json.loads(measured.read_text(encoding="utf-8"))
    kept = {key: record[key] for key in ("sets", "kl", "replay")}
    return {"shift": run.shift, "arm": run.arm, "seed": run.seed, **kept}


def interpolate(run: Run, work: Path) -> dict[str, Any]:
    """Sweep alpha on one run."""
    folder = work / run.name
    command("export", [f"run_dir={folder}", "interpolate=0:1:0.1"], work / "interpolate.log")
    found: dict[str, Any] = json.loads((folder / "interpolation.json").read_text(encoding="utf-8"))
    return {"run": run.name, **found}


def summarise(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and deviation over seeds of the change of every set, and of the KL on conversations."""
    rows = []
    for shift, arm in dict.fromkeys((r["shift"], r["arm"]) for r in results):
        of_arm = [changes_of(r) for r in results if (r["shift"], r["arm"]) == (shift, arm)]
        rows.append({"shift": shift, "arm": arm, "num_seeds": len(of_arm), "changes": over_seeds(of_arm)})
    return rows


def changes_of(result: dict[str, Any]) -> dict[str, float]:
    """Return the change of every held-out set of a run in nats, and the KL on conversations."""
    changes = {
        "target" if one["role"] == "target" else one["name"]: one["change_nats"] for one in result["sets"]
    }
    names = [one["name"] for one in result["sets"]]
    chats = [one["nats"] for one in result["kl"] if one["prompts"] not in names]
    return changes | ({"KL on chats": chats[0]} if chats else {})


def over_seeds(of_seeds: list[dict[str, float]]) -> dict[str, list[float]]:
    """Return mean and standard deviation of every figure."""
    figures = {}
    for name in of_seeds[0]:
        values = [changes[name] for changes in of_seeds]
        figures[name] = [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0]
    return figures


def at_equal_loss(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what each method forgets where both have learnt the same, over seeds.

    For each seed: the middle of the target losses that both methods' two rates enclose, and at it every figure on the
    straight line between a method's two runs. A shift where they enclose no common loss is left out.
    """
    found = []
    for shift in dict.fromkeys(r["shift"] for r in results):
        of_methods: dict[str, list[dict[str, float]]] = {method: [] for method in LIKE}
        for seed in dict.fromkeys(r["seed"] for r in results):
            ends = {
                method: [
                    changes_of(r)
                    for arm in arms
                    for r in results
                    if (r["shift"], r["seed"], r["arm"]) == (shift, seed, arm)
                ]
                for method, arms in LIKE.items()
            }
            if any(len(two) != 2 for two in ends.values()):
                continue
            low = max(min(end["target"] for end in two) for two in ends.values())
            high = min(max(end["target"] for end in two) for two in ends.values())
            if low <= high:
                for method, two in ends.items():
                    of_methods[method].append(between(two[0], two[1], (low + high) / 2))
        found += [
            {"shift": shift, "method": method, "num_seeds": len(points), "changes": over_seeds(points)}
            for method, points in of_methods.items()
            if points
        ]
    return found


def between(first: dict[str, float], second: dict[str, float], target: float) -> dict[str, float]:
    """Return every figure on the line through two runs where the target's change is `target`."""
    span = second["target"] - first["target"]
    share = (target - first["target"]) / span if span else 0.5
    return {name: first[name] + share * (second[name] - first[name]) for name in first}


def table(rows: list[dict[str, Any]], label: str = "arm") -> str:
    """Return rows of figures as a Markdown table; nats, mean and deviation over seeds."""
    names = list(dict.fromkeys(name for row in rows for name in row["changes"]))
    lines = [f"| shift | {label} | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]
    for row in rows:
        cells = (
            f"{row['changes'][name][0]:+.3f} \u00b1 {row['changes'][name][1]:.3f}"
            if name in row["changes"]
            else ""
            for name in names
        )
        lines.append(f"| {row['shift']} | {row[label]} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
