"""Ours beside Unsloth and TRL, in one command: LoRA and QLoRA of the 8B shape on one GPU, all weights on two.

    python benchmarks/peers.py --corpus FILE.txt --out results/peers.json [--peers-path DIR] [--only lora|qlora|full]

Random weights, real text in byte tokens, the same documents for all, each packed by its own packer to 4,096 tokens.
Adapters: two packs a micro-batch, nothing recomputed, LoRA r = 16 on all linear layers but the head. All weights:
ZeRO-3, four packs, ours with half of the layers recomputed and TRL with all, which is its best. Each figure is the
median over the steps after warm-up of one run. With an --out that exists it goes on with what is not there or failed.
`--figure OUT.svg` draws what --out holds and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from run import environment, figures, saved_weights, tokenizer_dir

HERE = Path(__file__).resolve().parent
SEQ_LEN = 4096


@dataclass(frozen=True, slots=True)
class Method:
    """What is trained, and on what."""

    num_gpus: int
    num_packs: int
    """A micro-batch."""
    words: tuple[str, ...]
    """Of ours."""
    peers: tuple[str, ...]
    """Who does it too."""
    flags: tuple[str, ...] = ()
    """Of theirs."""
    micros: tuple[int, ...] = (1, 8)

    @property
    def tokens(self) -> int:
        """Return the tokens of a micro-batch of one GPU."""
        return SEQ_LEN * self.num_packs


METHODS = {
    "lora": Method(1, 2, ("tune=lora", "tune.r=16", "zero=auto"), ("unsloth", "trl")),
    "qlora": Method(1, 2, ("tune=qlora", "tune.r=16", "zero=auto"), ("unsloth", "trl"), ("--nf4",)),
    "full": Method(2, 4, ("zero=zero3", "model.checkpoint_layers=16"), ("trl",), ("--full",), (1,)),
}
STEPS = {1: 18, 8: 12}
"""Steps of a case by micro-batches a step; at least ten remain after warm-up."""
WARMUP = {1: 5, 8: 2}
CASES = tuple((name, micros) for name, method in METHODS.items() for micros in method.micros)
COLOURS = {"ours": "#1b6ca8", "unsloth": "#c77d2e", "trl": "#8a8a8a"}


def main() -> None:
    """Run what is missing and write JSON, or draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a text file of some 100 kB or more")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers-path", default="", help="folder with Unsloth, TRL and what they need")
    parser.add_argument("--only", nargs="*", default=["lora", "qlora"], choices=list(METHODS))
    parser.add_argument("--trainers", nargs="*", default=list(COLOURS), choices=list(COLOURS))
    parser.add_argument("--micros", nargs="*", type=int, default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--set", nargs="*", default=[], help="overrides of ours, such as model.attention=...")
    parser.add_argument("--peer-attention", default="flash_attention_2", help="of TRL")
    parser.add_argument("--shape", type=Path, default=HERE / "shapes" / "llama3_8b")
    parser.add_argument("--work", type=Path, help="folder for weights and tokens; kept")
    parser.add_argument("--limit-s", type=int, default=300, help="wall clock limit of one process")
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"results": []}
    record["results"] = [row for row in record["results"] if "failed" not in row]  # those are tried again
    if arguments.figure:
        if not record["results"]:
            parser.error(f"--out must hold results to draw, but {arguments.out} has none")
        arguments.figure.write_text(figure(record["results"]), encoding="utf-8")
        return
    if arguments.corpus is None:
        parser.error("--corpus is needed to run")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="palimpsest-peers-"))
    work.mkdir(parents=True, exist_ok=True)
    arguments.gpus = max(METHODS[method].num_gpus for method in arguments.only)
    record["environment"] = environment(arguments) | {"warmup_steps": WARMUP}
    for method in arguments.only:
        for trainer in arguments.trainers:
            done = {(row["trainer"], row["method"], row["num_micros"]) for row in record["results"]}
            wanted = [n for n in arguments.micros if n in METHODS[method].micros]
            missing = [n for n in wanted if (trainer, method, n) not in done]
            rows = measure_ours(method, missing, arguments, work) if trainer == "ours" else []
            if trainer in METHODS[method].peers and missing:
                rows = measure_peer(trainer, method, missing, arguments, work)
            record["results"] += rows
            arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(table(record["results"]))


def measure_ours(
    method: str, micros: list[int], arguments: argparse.Namespace, work: Path
) -> list[dict[str, Any]]:
    """Run the trainer itself, a fresh process a case, and read its metrics."""
    asked, rows = METHODS[method], []
    for num_micros in micros:
        run_dir = work / f"ours-{method}-{num_micros}-{int(time.time())}"
        words = [
            *(*asked.words, f"data.seq_len={SEQ_LEN}", f"train.micro_batch_size={asked.num_packs}"),
            *("model=benchmark", f"model.path={arguments.shape}", f"model.tokenizer={tokenizer_dir(work)}"),
            *("data=text", f"data.sources.corpus.path={arguments.corpus.resolve()}"),
            *("data.sources.corpus.txt_documents=paragraph", "data.validation_frac=0"),
            *(f"data.cache_dir={work / 'cache'}", f"cluster.ranks_per_node={asked.num_gpus}"),
            *(f"train.global_batch_tokens={asked.tokens * asked.num_gpus * num_micros}",),
            *(f"train.max_steps={STEPS[num_micros]}", "evaluate.every_steps=0", "checkpoint.enabled=false"),
            *("log.progress=false", f"run_dir={run_dir}", *arguments.set),
        ]
        command = [sys.executable, "-m", "trainer"]
        failed = started([*command, "prepare", *words], run_dir.with_suffix(".log"), arguments.limit_s)
        failed = failed or started(
            [*command, "train", *words], run_dir.with_suffix(".log"), arguments.limit_s
        )
        shown = [word for word in words if "/" not in word]  # no paths of the machine
        row: dict[str, Any] = {"case": f"ours_{method}_x{num_micros}", "overrides": shown}
        row |= {"trainer": "ours", "method": method, "num_micros": num_micros}
        if failed:
            rows.append(row | {"failed": failed})
            continue
        found = figures(run_dir / "metrics.jsonl", WARMUP[num_micros])
        provenance = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
        row |= {"tokens_per_s": found["tokens_per_s_per_gpu"], **found}
        rows.append(row | {key: provenance[key] for key in ("attention", "kernels")})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def measure_peer(
    trainer: str, method: str, micros: list[int], arguments: argparse.Namespace, work: Path
) -> list[dict[str, Any]]:
    """Run a peer in one process, one number of micro-batches after the other."""
    out = work / f"{trainer}-{method}.json"
    command = [
        *launcher(METHODS[method].num_gpus),
        *(str(HERE / "peer_sft.py"), trainer, "--out", str(out)),
        *("--model", str(peer_model(arguments.shape, work))),
        *("--documents", str(documents(arguments.corpus, work))),
        *("--micros", *map(str, micros), "--steps", *(str(STEPS[n]) for n in micros)),
        *("--attention", arguments.peer_attention),
        *METHODS[method].flags,
    ]
    failed = started(command, out.with_suffix(".log"), arguments.limit_s, arguments.peers_path)
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": [], "versions": {}}
    rows = []
    for row in found["rows"]:
        row.pop("first_step_at", None)
        times = row.pop("step_times_s")[WARMUP[row["num_micros"]] - 1 :]
        step_s = statistics.median(times)
        rows.append(
            {
                "case": f"{trainer}_{method}_x{row['num_micros']}",
                "trainer": trainer,
                "method": method,
                "tokens_per_s": round(METHODS[method].tokens * row["num_micros"] / step_s),
                "num_steps": len(times),
                "step_time_s": round(step_s, 4),
                **row,
                "versions": found["versions"],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    lost = [n for n in micros if n not in {row["num_micros"] for row in rows}]
    return rows + [
        {"trainer": trainer, "method": method, "num_micros": n, "failed": failed or "no result"} for n in lost
    ]


def launcher(num_gpus: int) -> list[str]:
    """Return what starts a script on so many GPUs."""
    if num_gpus == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_gpus)]


def started(command: list[str], log: Path, limit_s: int, path: str = "") -> str | None:
    """Run a command with its output in a log; return what went wrong, after printing the log's end."""
    before = os.environ.get("PYTHONPATH", "")
    env = os.environ | ({"PYTHONPATH": f"{path}:{before}"} if path else {})
    with log.open("a", encoding="utf-8") as file:
        try:
            code = subprocess.run(command, stdout=file, stderr=file, env=env, timeout=limit_s).returncode
        except subprocess.TimeoutExpired:
            code = 124
    if not code:
        return None
    print(f"failed with {code}: {log.name}\n{log.read_text(errors='replace')[-2500:]}", flush=True)
    return f"exit code {code}"


def peer_model(shape: Path, work: Path) -> Path:
    """Write the weights with a tokenizer that has the special tokens that peers ask for."""
    folder = saved_weights(shape, work)
    if not (folder / "tokenizer.json").exists():
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(
            tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
        ).save_pretrained(folder)
    return folder


def documents(corpus: Path, work: Path) -> Path:
    """Write the tokens of the corpus's paragraphs, as ours reads them."""
    path = work / "documents.json"
    if not path.exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir(work))
        # Lines of blanks alone part paragraphs too, as ours reads them.
        texts = [t.strip() for t in re.split(r"\n\s*\n", corpus.read_text(encoding="utf-8")) if t.strip()]
        ids = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
        path.write_text(json.dumps(ids), encoding="utf-8")
    return path


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table, with what each is of Unsloth's, or of TRL's where that is not there."""
    lines = ["| method | micro-batches | trainer | tok/s a GPU | of the peer's | peak GiB | last loss |"]
    lines.append("|---|---:|---|---:|---:|---:|---:|")
    speeds = {(r["method"], r["num_micros"], r["trainer"]): r.get("tokens_per_s") for r in results}
    for row in sorted(
        results, key=lambda r: (r["method"], r["num_micros"], list(COLOURS).index(r["trainer"]))
    ):
        head = f"| {row['method']} | {row['num_micros']} | {row['trainer']} |"
        if "failed" in row:
            lines.append(f"{head} {row['failed']} | | | |")
            continue
        base = speeds.get((row["method"], row["num_micros"], METHODS[row["method"]].peers[0]))
        share = f"{row['tokens_per_s'] / base:.3f}" if base else ""
        lines.append(
            f"{head} {row['tokens_per_s']:,.0f} | {share} | {row['memory_gib']:.1f} | {row['last_loss']:.3f} |"
        )
    return "\n".join(lines)


def figure(results: list[dict[str, Any]]) -> str:
    """Return bars of tokens per second as SVG."""
    done = [row for row in results if "tokens_per_s" in row]
    most = max(row["tokens_per_s"] for row in done)
    parts, y = [], 10
    for method, micros in CASES:
        rows = [row for row in done if (row["method"], row["num_micros"]) == (method, micros)]
        if not rows:
            continue
        title = f"{method}, {micros} micro-batch{'es' * (micros > 1)} a step"
        parts.append(f'<text x="10" y="{y + 14}" font-weight="bold">{escape(title)}</text>')
        y += 22
        for row in sorted(rows, key=lambda r: list(COLOURS).index(r["trainer"])):
            width = 440 * row["tokens_per_s"] / most
            parts.append(f'<text x="10" y="{y + 14}">{escape(row["trainer"])}</text>')
            parts.append(
                f'<rect x="90" y="{y}" width="{width:.1f}" height="18" fill="{COLOURS[row["trainer"]]}"/>'
            )
            parts.append(f'<text x="{96 + width:.1f}" y="{y + 14}">{row["tokens_per_s"]:,.0f} tok/s</text>')
            y += 22
        y += 10
    body = "\n".join(parts)
    style = 'font-family="sans-serif" font-size="13"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="660" height="{y}" {style}>\n{body}\n</svg>\n'


if __name__ == "__main__":
    main()
