"""DPO beside TRL in one command: pairs a second of LoRA on the 8B shape, on short pairs of HH-RLHF and on long ones.

    python benchmarks/pairs.py --hh FILE.jsonl.gz --text FILE.txt --out OUT.json
        [--variant NAME WORD ...] ... [--only hh long] [--trainers ours trl] [--peers-path FOLDER]

Random weights, a tokenizer of the words of the rows, the same pairs for both, LoRA r = 16 on all linear layers but the
head, the reference computed before training. Ours packs them; a --variant is a run of it with more overrides, as
`--variant apart data.share_prompts=false`; without one there is a single run, `default`. TRL has its fastest of a few
settings, and its default (peer_dpo.py). Measured are steps after warm-up; preparation, start and the reference are not
in them. A step of ours has the pairs that fill its packs, on average over all packs. The peak of our memory stands
beside what `palimpsest plan` says of it. Started again with the same --out it goes on with what is not there or failed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pair_rows
from peers import started
from run import environment

HERE = Path(__file__).resolve().parent
SEED = 0


@dataclass(frozen=True, slots=True)
class Data:
    """One kind of pairs and how it is trained on."""

    num_pairs: int
    seq_len: int
    num_packs: int
    """Of ours, a step and a micro-batch."""
    steps: int
    warmup: int
    micros: tuple[int, ...]
    """Pairs a micro-batch that TRL tries."""
    pairs_per_step: int
    """Of TRL."""


DATA = {
    "hh": Data(416, 4096, 2, 20, 5, (4, 8, 16), 32),
    "long": Data(52, 16384, 1, 17, 4, (1, 2, 4), 4),
}
"""TRL's fastest sees each pair once; a pass of ours is 8 to 17 steps, and it begins again until there are `steps`."""


def main() -> None:
    """Run what is missing and write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--hh", type=Path, help="rows of chosen and rejected conversations, .jsonl or .jsonl.gz"
    )
    parser.add_argument("--text", type=Path, help="a text of some 100 kB or more, for long pairs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--trainers", nargs="+", default=["ours", "trl"], choices=["ours", "trl"])
    parser.add_argument("--variant", nargs="+", action="append", metavar=("NAME", "WORD"))
    parser.add_argument("--set", nargs="*", default=[], help="overrides of every run of ours")
    parser.add_argument("--trl", nargs=argparse.REMAINDER, default=[], help="words for peer_dpo.py; last")
    parser.add_argument("--peers-path", default="", help="folder with TRL and what it needs")
    parser.add_argument("--shape", type=Path, default=HERE / "shapes" / "llama3_8b")
    parser.add_argument("--steps", type=int, help="steps of ours")
    parser.add_argument("--work", type=Path, help="folder for rows, tokens and runs; kept")
    parser.add_argument("--limit-s", type=int, default=300, help="wall clock limit of one process")
    arguments = parser.parse_args()
    arguments.gpus = 1
    work = arguments.work or Path(tempfile.mkdtemp(prefix="palimpsest-pairs-"))
    work.mkdir(parents=True, exist_ok=True)
    out: Path = arguments.out
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"data": {}, "results": []}
    record["results"] = [row for row in record["results"] if "failed" not in row or row["trainer"] == "trl"]
    record["environment"] = environment(arguments) | {
        "statistic": "steps after warm-up: mean pairs of a step over their mean time; *_median: their median time. "
        "Packs differ in pairs, so ours takes the mean over a whole pass; *_seen: the pairs of these very steps"
    }
    record["environment"].pop("warmup_steps")
    variants = arguments.variant or [["default"]]
    for name in arguments.only:
        folder = make_data(name, arguments, work)
        record["data"][name] = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        for variant, *words in variants if "ours" in arguments.trainers else ():
            case = f"ours_{name}_{variant}"
            if case not in {row["case"] for row in record["results"]}:
                row = {"case": case, "trainer": "ours", "data": name, "variant": variant}
                record["results"].append(row | measure_ours(name, words, folder, arguments))
                write(record, out)
        if "trl" in arguments.trainers:
            rows = measure_trl(name, folder, arguments)
            others = [r for r in record["results"] if (r["trainer"], r["data"]) != ("trl", name)]
            record["results"] = [*others, *rows]
            write(record, out)
    print(table(record["results"]))


def write(record: dict[str, Any], out: Path) -> None:
    """Write what is there and print the newest."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record["results"][-1].items() if k != "overrides"}), flush=True)


def make_data(name: str, arguments: argparse.Namespace, work: Path) -> Path:
    """Write the rows, a tokenizer of them and what they are; return the folder."""
    folder = work / name
    if (folder / "about.json").exists():
        return folder
    num = DATA[name].num_pairs
    source: Path | None = arguments.hh if name == "hh" else arguments.text
    if source is None:
        raise SystemExit(f"--{'hh' if name == 'hh' else 'text'} is needed for the pairs {name}")
    if name == "hh":
        whole = pair_rows.hh_pairs(source)
        pairs = pair_rows.some(whole, num, SEED)
    else:
        whole = pairs = pair_rows.long_pairs(source.read_text(encoding="utf-8"), num, SEED)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = json.loads((arguments.shape / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer = pair_rows.word_tokenizer(pairs.rows, vocab_size)
    tokenizer.save_pretrained(folder / "tokenizer")
    pair_rows.write_rows(pairs.rows, folder / "rows.jsonl")
    lengths = pair_rows.mean_lengths(pairs.rows, tokenizer)
    about = {
        "num_pairs": len(pairs.rows),
        "dropped": pairs.dropped,
        "mean_tokens": {key: round(value, 1) for key, value in lengths.items()},
        "pair_tokens": round(pair_rows.pair_tokens(lengths), 1),
        "pair_tokens_shared": round(pair_rows.pair_tokens(lengths, is_shared=True), 1),
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def measure_ours(name: str, more: list[str], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train in a fresh process; return figures, or why there are none."""
    data = DATA[name]
    run_dir = folder / f"run-{int(time.time())}"
    steps = arguments.steps or data.steps
    words = [
        *("recipe=preference_lora", "tune.r=16", "model=benchmark", f"model.path={arguments.shape}"),
        *(f"model.tokenizer={folder / 'tokenizer'}", "data=preference", "data.sources.pairs.as_chat=false"),
        *(f"data.sources.pairs.path={folder / 'rows.jsonl'}", f"data.seq_len={data.seq_len}"),
        *("data.validation_frac=0", f"data.cache_dir={folder / 'cache'}", "cluster.ranks_per_node=1"),
        *(f"train.micro_batch_size={data.num_packs}", f"train.max_steps={steps}", "train.max_epochs=null"),
        *(f"train.global_batch_tokens={data.seq_len * data.num_packs}", "evaluate.every_steps=0"),
        *("evaluate.during.kl=false", "checkpoint.enabled=false", "log.progress=false", "log.every_steps=1"),
        *(*arguments.set, *more),
    ]
    shown = [word for word in words if "/" not in word]  # no paths of the machine
    result: dict[str, Any] = {"overrides": shown}
    began = time.monotonic()
    failed = started(
        [sys.executable, "-m", "trainer", "train", *words, f"run_dir={run_dir}"],
        run_dir.with_suffix(".log"),
        arguments.limit_s,
    )
    result["wall_s"] = round(time.monotonic() - began, 1)
    if failed:
        return result | {"failed": failed}
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    result |= figures(run_dir, data.warmup, about["pair_tokens"])
    forecast = forecast_gib(words)
    if forecast is not None:
        result["plan_gib"] = forecast
        if result["memory_gib"]:
            result["plan_error"] = round(forecast / result["memory_gib"] - 1, 4)
    provenance = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
    return result | {key: provenance[key] for key in ("attention", "kernels")}


def figures(run_dir: Path, warmup: int, tokens_of_pair: float) -> dict[str, Any]:
    """Return what the steps after warm-up did."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    pairs, packing = pairs_of_steps(run_dir, len(rows))
    steady = [
        (row, num) for row, num in zip(rows, pairs, strict=True) if row["step"] > min(warmup, len(rows) - 1)
    ]
    step_s = statistics.mean(row["step_time_s"] for row, _ in steady)
    rate = packing["mean_pairs_per_step"] / step_s
    return {
        "pairs_per_s": round(rate, 2),
        "pairs_per_s_median": round(
            packing["mean_pairs_per_step"] / statistics.median(row["step_time_s"] for row, _ in steady), 2
        ),
        "pairs_per_s_seen": round(sum(num for _, num in steady) / (len(steady) * step_s), 2),
        "tokens_per_s": round(rate * tokens_of_pair),
        "packed_tokens_per_s": round(statistics.median(row["tokens_per_s"] for row, _ in steady)),
        "num_steps": len(steady),
        "step_time_s": round(statistics.median(row["step_time_s"] for row, _ in steady), 4),
        "padding_frac": round(statistics.mean(row.get("padding_frac", 0.0) for row, _ in steady), 4),
        "data_wait_frac": round(statistics.mean(row["data_wait_frac"] for row, _ in steady), 4),
        "memory_gib": max((row["memory_gib"] for row in rows if row.get("memory_gib")), default=None),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        **packing,
    }


def pairs_of_steps(run_dir: Path, num_steps: int) -> tuple[list[int], dict[str, Any]]:
    """Return the pairs of each step, which the run's plan says, and what packing kept."""
    from trainer.command.prepare import ensure_inputs
    from trainer.config.store import load_config
    from trainer.data.store.prepared import find_all, open_each
    from trainer.mix.mixing import Mixing

    config = load_config(run_dir / "config.yaml", [])
    stores = open_each(config.data, find_all(config.data, ensure_inputs(config)))
    packs = config.train.global_batch_tokens // config.data.seq_len
    mixing = Mixing(config.data, config.replay, config.train, config.seed, stores, packs)
    units = [store.train.pack_units for store in stores.values()]
    planned = [mixing.plan.packs_of_step(step) for step in range(num_steps)]
    num_pairs, num_packs = sum(int(n.sum()) for n in units), sum(map(len, units))
    kept = {
        "num_packed_pairs": num_pairs,
        "num_packs": num_packs,
        "mean_pairs_per_step": num_pairs / num_packs * packs,
    }
    return [sum(int(units[ref.source][ref.pack]) for ref in refs) for refs in planned], kept


def forecast_gib(words: list[str]) -> float | None:
    """Return the peak that `palimpsest plan` prints for the run's own stage."""
    command = [sys.executable, "-m", "trainer", "plan", *words, "run_dir=none"]
    printed = subprocess.run(command, capture_output=True, text=True).stdout
    return peak_of(printed)


def peak_of(printed: str) -> float | None:
    """Read the peak of the column that is marked as the run's; None where there is none."""
    stages: list[str] = []
    for line in printed.splitlines():
        if "(yours)" in line:
            stages = re.split(r"\s{2,}", line.strip())
        if line.startswith("peak ") and stages:
            mine = next(i for i, stage in enumerate(stages) if "(yours)" in stage)
            return float(line.split()[1:][mine])
    return None


def measure_trl(name: str, folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run TRL in one process, one setting after the other; return its rows."""
    data, out = DATA[name], folder / "trl.json"
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    before = (
        json.loads(arguments.out.read_text(encoding="utf-8"))["results"] if arguments.out.exists() else []
    )
    mine = [row for row in before if (row["trainer"], row["data"]) == ("trl", name)]
    if {"best", "default"} <= {row["kind"] for row in mine}:
        return mine
    if mine and not out.exists():  # on another machine
        known = {
            "rows": [row for row in mine if row["kind"] != "none"],
            "versions": mine[-1].get("versions", {}),
        }
        out.write_text(json.dumps(known), encoding="utf-8")
    command = [
        *(sys.executable, str(HERE / "peer_dpo.py"), "--shape", str(arguments.shape), "--out", str(out)),
        *("--rows", str(folder / "rows.jsonl"), "--tokenizer", str(folder / "tokenizer")),
        *("--micros", *map(str, data.micros), "--pairs-per-step", str(data.pairs_per_step)),
        *("--limit-s", str(0.7 * arguments.limit_s), *arguments.trl),
    ]
    failed = started(command, out.with_suffix(".log"), arguments.limit_s, arguments.peers_path)
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": [], "versions": {}}
    rows = []
    for row in found["rows"]:
        row.pop("step_times_s", None)
        shown = {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}
        case = f"trl_{name}_{row['kind']}_{row['micro']}{'_liger' * row['liger']}"
        shown = {"case": case, "trainer": "trl", "data": name} | shown
        if "pairs_per_s" in row:
            shown["tokens_per_s"] = round(row["pairs_per_s"] * about["pair_tokens"])
        rows.append(shown | {"versions": found["versions"]})
    if failed and not rows:
        rows = [{"case": f"trl_{name}", "trainer": "trl", "data": name, "kind": "none", "failed": failed}]
    return rows or mine


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, each with what it is of TRL's best."""
    lines = [
        "| pairs | case | pairs/s | of TRL's best | tok/s | peak GiB | planned |",
        "|---|---|" + "---:|" * 5,
    ]
    best = {
        row["data"]: row["pairs_per_s"]
        for row in results
        if row.get("kind") == "best" and "failed" not in row
    }
    for row in sorted(results, key=lambda r: (r["data"], r["trainer"])):
        head = f"| {row['data']} | {row['case']} |"
        if "failed" in row:
            lines.append(f"{head} {row['failed'].splitlines()[0][:60]} | | | | |")
            continue
        ratio = f"{row['pairs_per_s'] / best[row['data']]:.2f}" if row["data"] in best else ""
        peak = f"{row['memory_gib']:.1f}" if row["memory_gib"] else ""
        plan = f"{row['plan_gib']:.1f}" if row.get("plan_gib") else ""
        lines.append(
            f"{head} {row['pairs_per_s']:.1f} | {ratio} | {row['tokens_per_s']:,.0f} | {peak} | {plan} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
