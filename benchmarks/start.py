"""From the command to the end of the first step: LoRA of the 8B shape from a folder of files, ours beside TRL.

    python benchmarks/start.py --corpus FILE.txt --out results/start.json [--peers-path DIR] [--times 2]

Tokens are there beforehand on both sides: ours has its store, TRL gets token ids. Both read the same weights, in turns,
so all but the first find them in the page cache, and both do one step of two packs of 4,096 tokens. Ours proves the
loaded model before the step; TRL begins at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peers import METHODS, SEQ_LEN, documents, peer_model, started
from run import environment, tokenizer_dir

HERE = Path(__file__).resolve().parent
TRAINERS = ("ours", "trl")


def main() -> None:
    """Run both in turns and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a text file of some 100 kB or more")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers-path", default="", help="folder with TRL and what it needs")
    parser.add_argument("--trainers", nargs="*", default=list(TRAINERS), choices=TRAINERS)
    parser.add_argument("--times", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="overrides of ours")
    parser.add_argument("--peer-attention", default="flash_attention_2")
    parser.add_argument("--shape", type=Path, default=HERE / "shapes" / "llama3_8b")
    parser.add_argument("--work", type=Path, help="folder for weights and tokens; kept")
    parser.add_argument("--limit-s", type=int, default=200, help="wall clock limit of one process")
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="palimpsest-start-"))
    work.mkdir(parents=True, exist_ok=True)
    arguments.gpus = 1
    found = environment(arguments)
    found.pop("warmup_steps", None)
    record: dict[str, Any] = {
        "environment": found | {"statistic": "seconds to the end of step 1"},
        "results": [],
    }
    peer_model(arguments.shape, work), documents(arguments.corpus, work)
    words = words_of(arguments, work)
    failed = started([sys.executable, "-m", "trainer", "prepare", *words], work / "ours.log", 300)
    if failed:
        raise SystemExit(f"prepare: {failed}")
    for number in range(arguments.times):
        for trainer in arguments.trainers:
            seconds = ours(words, number, arguments, work) if trainer == "ours" else trl(arguments, work)
            row = {"trainer": trainer, "number": number, "seconds": seconds}
            record["results"].append(row)
            print(json.dumps(row), flush=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(record["results"]))


def words_of(arguments: argparse.Namespace, work: Path) -> list[str]:
    """Return the words of ours."""
    return [
        *METHODS["lora"].words,
        *(f"data.seq_len={SEQ_LEN}", "train.micro_batch_size=2", f"train.global_batch_tokens={2 * SEQ_LEN}"),
        *(f"model.path={peer_model(arguments.shape, work)}", f"model.tokenizer={tokenizer_dir(work)}"),
        *("data=text", f"data.sources.corpus.path={arguments.corpus.resolve()}"),
        *("data.sources.corpus.txt_documents=paragraph", "data.validation_frac=0"),
        *(f"data.cache_dir={work / 'cache'}", "cluster.ranks_per_node=1", "train.max_steps=2"),
        *("evaluate.every_steps=0", "checkpoint.enabled=false", "log.progress=false", "log.every_steps=1"),
        *arguments.set,
    ]


def ours(words: list[str], number: int, arguments: argparse.Namespace, work: Path) -> float | None:
    """Return the seconds of the command to its first step; None where it failed, with its words on the console."""
    run_dir = work / f"start-{number}-{int(time.time())}"
    began = time.time()
    command = [sys.executable, "-m", "trainer", "train", *words, f"run_dir={run_dir}"]
    if started(command, work / "ours.log", arguments.limit_s):
        return None
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    (first,) = (row["time"] for row in rows if row["step"] == 1 and "loss" in row)
    return round(float(first) - began, 2)


def trl(arguments: argparse.Namespace, work: Path) -> float | None:
    """As `ours`."""
    out = work / "trl-start.json"
    out.unlink(missing_ok=True)
    began = time.time()
    command = [
        *(sys.executable, str(HERE / "peer_sft.py"), "trl", "--out", str(out)),
        *("--model", str(peer_model(arguments.shape, work))),
        *("--documents", str(documents(arguments.corpus, work))),
        *("--micros", "1", "--steps", "2", "--attention", arguments.peer_attention),
    ]
    if started(command, work / "trl.log", arguments.limit_s, arguments.peers_path):
        return None
    (row,) = json.loads(out.read_text(encoding="utf-8"))["rows"]
    return round(float(row["first_step_at"]) - began, 2)


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| trainer | runs | median, s | all, s |", "|---|---:|---:|---|"]
    for trainer in TRAINERS:
        took = [row["seconds"] for row in results if row["trainer"] == trainer and row["seconds"] is not None]
        if took:
            shown = ", ".join(f"{seconds:.1f}" for seconds in took)
            lines.append(f"| {trainer} | {len(took)} | {statistics.median(took):.1f} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
