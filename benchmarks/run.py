"""Measure the trainer itself: start real runs of `python -m trainer` and read their metrics.jsonl.

    python benchmarks/run.py --corpus FILE.txt --gpus 2 --out results.json [--plain] [CASE ...]

Random weights of a real shape, real text in byte tokens, real packs. A figure is the median over the steps
after warm-up of one run; each case is a fresh process. Writes hardware, versions and the
command of every case beside its figures. --plain runs the plain DeepSpeed loop of plain_loop.py on the same
batches after each case.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from nf4_folder import write_folder

HERE = Path(__file__).resolve().parent
WARMUP_STEPS = 4
PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "peft",
    "bitsandbytes",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
    "liger-kernel",
    "flash-linear-attention",
    "causal-conv1d",
    "tilelang",
    "triton",
)
LORA = ("tune=lora", "tune.r=16", "data.seq_len=4096")

CASES: dict[str, list[str]] = {
    # One 8,192-token document a pack: full attention cost.
    "zero2_8192": ["zero=zero2", "data.seq_len=8192", "model.checkpoint_layers=0", "documents=file"],
    "zero2_8192_no_liger": [
        "zero=zero2",
        "data.seq_len=8192",
        "model.checkpoint_layers=0",
        "model.kernels=none",
        "documents=file",
    ],
    "zero3_8192": ["zero=zero3", "data.seq_len=8192", "model.checkpoint_layers=0", "documents=file"],
    # Packed paragraphs, 4,096 tokens a pack, micro-batches of 4: all, half and no layers recomputed.
    "zero3_4096x4_full": [
        "zero=zero3",
        "data.seq_len=4096",
        "train.micro_batch_size=4",
        "model.checkpoint_layers=-1",
    ],
    "zero3_4096x4_half": [
        "zero=zero3",
        "data.seq_len=4096",
        "train.micro_batch_size=4",
        "model.checkpoint_layers=16",
    ],
    "zero3_4096x2_none": [
        "zero=zero3",
        "data.seq_len=4096",
        "train.micro_batch_size=2",
        "model.checkpoint_layers=0",
    ],
    "zero2_4096x2_none": [
        "zero=zero2",
        "data.seq_len=4096",
        "train.micro_batch_size=2",
        "model.checkpoint_layers=0",
    ],
    "zero2_4096x2_full": [
        "zero=zero2",
        "data.seq_len=4096",
        "train.micro_batch_size=2",
        "model.checkpoint_layers=-1",
    ],
    # LoRA r = 16 on every linear layer but the head, nothing recomputed.
    "lora_zero0_4096x2_none": [*LORA, "zero=zero0", "train.micro_batch_size=2", "model.checkpoint_layers=0"],
    "lora_zero1_4096x2_none": [*LORA, "zero=zero1", "train.micro_batch_size=2", "model.checkpoint_layers=0"],
    "lora_zero1_4096x4_none": [*LORA, "zero=zero1", "train.micro_batch_size=4", "model.checkpoint_layers=0"],
    "lora_zero1_4096x2_full": [*LORA, "zero=zero1", "train.micro_batch_size=2", "model.checkpoint_layers=-1"],
    # Stage and recomputed layers from the memory forecast, as they are by default. On one GPU
    # --set train.global_batch_tokens=65536 accumulates over 8 micro-batches.
    "lora_auto_4096x2": [*LORA, "zero=auto", "train.micro_batch_size=2"],
    "lora_auto_4096x4": [*LORA, "zero=auto", "train.micro_batch_size=4"],
    # The same on a base in NF4, which is read from files: random weights are written to disk first.
    "qlora_zero1_4096x2_none": [
        *("tune=qlora", "tune.r=16", "data.seq_len=4096", "zero=zero1"),
        *("train.micro_batch_size=2", "model.checkpoint_layers=0", "weights=saved"),
    ],
    "qlora_zero1_4096x2_full": [
        *("tune=qlora", "tune.r=16", "data.seq_len=4096", "zero=zero1"),
        *("train.micro_batch_size=2", "model.checkpoint_layers=-1", "weights=saved"),
    ],
    # A base that is in NF4 on disk: a 70B fits a disk and one GPU.
    "qlora_nf4_folder_4096x1": [
        *("tune=qlora", "tune.r=16", "data.seq_len=4096", "zero=zero1", "weights=nf4"),
        "train.micro_batch_size=1",
    ],
    # One GPU: 16 bytes a parameter do not leave room for activations, so every layer is recomputed.
    "one_gpu_zero3_4096x1_full": ["zero=zero3", "data.seq_len=4096", "model.checkpoint_layers=-1"],
    "one_gpu_zero2_4096x1_full": ["zero=zero2", "data.seq_len=4096", "model.checkpoint_layers=-1"],
    "one_gpu_zero3_offload_4096x4_full": [
        "zero=zero3_offload",
        "data.seq_len=4096",
        "train.micro_batch_size=4",
        "model.checkpoint_layers=-1",
    ],
    "one_gpu_zero2_offload_4096x4_full": [
        "zero=zero2_offload",
        "data.seq_len=4096",
        "train.micro_batch_size=4",
        "model.checkpoint_layers=-1",
    ],
}


def main() -> None:
    """Run the cases and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=f"any of: {', '.join(CASES)}")
    parser.add_argument("--corpus", type=Path, required=True, help="a text file of some 100 kB or more")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--shape", type=Path, default=HERE / "shapes" / "llama3_8b")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "latest.json")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every case")
    parser.add_argument("--plain", action="store_true", help="also the plain DeepSpeed loop, after each case")
    parser.add_argument("--limit-s", type=int, default=240, help="wall clock limit of one case")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="palimpsest-bench-"))
    results = []
    for case, plain in [
        (c, p) for c in arguments.cases for p in ((False, True) if arguments.plain else (False,))
    ]:
        results.append(measure(case, plain, arguments, work))
        record = {"environment": environment(arguments), "results": results}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(table(results))


def measure(case: str, plain: bool, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Run one case in fresh processes and return its figures, or why there are none."""
    label = f"{case} (plain loop)" if plain else case
    run_dir = work / ("plain_" + case if plain else case)
    overrides = [*case_overrides(case, arguments, work), f"run_dir={run_dir}"]
    program = [str(HERE / "plain_loop.py")] if plain else ["-m", "trainer", "train"]
    started = time.time()
    log_path = run_dir.with_suffix(".log")
    with log_path.open("w", encoding="utf-8") as log:
        commands = [
            [sys.executable, "-m", "trainer", "prepare", *overrides],
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--standalone", "--nproc_per_node", str(arguments.gpus), *program, *overrides),
            ],
        ]
        code = 0
        for command in commands:
            try:
                left_s = arguments.limit_s - (time.time() - started)
                code = subprocess.run(command, stdout=log, stderr=log, timeout=left_s).returncode
            except subprocess.TimeoutExpired:
                code = 124
            if code:
                break
    shown = [word for word in overrides if "/" not in word]  # no paths of the machine
    result: dict[str, Any] = {"case": label, "overrides": shown, "wall_s": round(time.time() - started, 1)}
    if code:
        tail = log_path.read_text(encoding="utf-8", errors="replace")[-3000:]
        memory = "out of memory" in tail.lower()
        print(f"{label}: failed with {code}\n{tail}", flush=True)
        return result | {"failed": "out of memory" if memory else f"exit code {code}"}
    result |= figures(run_dir / "metrics.jsonl")
    saved = sum(file.stat().st_size for file in run_dir.glob("checkpoints/**/*") if file.is_file())
    if saved:  # --set checkpoint.enabled=true
        result["checkpoint_bytes"] = saved
    if plain:
        result |= {"attention": "flash_attention_2", "kernels": "liger"}
    else:
        provenance = json.loads((run_dir / "provenance.json").read_text(encoding="utf-8"))
        result |= {key: provenance[key] for key in ("attention", "kernels")}
    print(json.dumps({k: v for k, v in result.items() if k != "overrides"}), flush=True)
    return result


def case_overrides(case: str, arguments: argparse.Namespace, work: Path) -> list[str]:
    """Return the overrides of a case: its own and those that all cases share."""
    own = [word for word in CASES[case] if not word.startswith(("documents=", "weights="))]
    documents = "file" if "documents=file" in CASES[case] else "paragraph"
    source = [f"model.path={arguments.shape}"]
    if "weights=saved" in CASES[case]:
        source = ["model.kind=pretrained", f"model.path={saved_weights(arguments.shape, work)}"]
    if "weights=nf4" in CASES[case]:
        folder = work / "nf4"
        if not folder.exists():
            write_folder(arguments.shape, folder)
        source = ["model.kind=pretrained", f"model.path={folder}"]
    values = dict(word.split("=", 1) for word in own)
    tokens = int(values["data.seq_len"]) * int(values.get("train.micro_batch_size", "1")) * arguments.gpus
    return [
        *own,
        "model=benchmark",
        *source,
        f"model.tokenizer={tokenizer_dir(work)}",
        "data=text",
        f"data.sources.corpus.path={arguments.corpus.resolve()}",
        f"data.sources.corpus.txt_documents={documents}",
        "data.validation_frac=0",
        f"data.cache_dir={work / 'cache'}",
        f"train.global_batch_tokens={tokens}",
        f"train.max_steps={arguments.steps}",
        "evaluate.every_steps=0",
        "checkpoint.enabled=false",
        "log.progress=false",
        *arguments.set,
    ]


def saved_weights(shape: Path, work: Path) -> Path:
    """Write random weights of the shape as a model folder; return it."""
    folder = work / "weights"
    if not folder.exists():
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shape), dtype=torch.bfloat16)
        model.save_pretrained(folder, max_shard_size="2GB")
        del model
        torch.cuda.empty_cache()
    return folder


def tokenizer_dir(work: Path) -> Path:
    """Make the byte-level tokenizer that turns the corpus into ids."""
    folder = work / "tokenizer"
    if not folder.exists():
        from trainer.model.tiny import build_tokenizer

        build_tokenizer().save_pretrained(folder)
    return folder


def figures(metrics: Path, warmup_steps: int = WARMUP_STEPS) -> dict[str, Any]:
    """Return medians over the steps after warm-up."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "loss" in row and row["step"] > warmup_steps]

    def median(key: str, digits: int) -> float | None:
        values = [row[key] for row in rows if key in row]
        return round(statistics.median(values), digits) if values else None

    return {
        "num_steps": len(rows),
        "tokens_per_s_per_gpu": median("tokens_per_s_per_gpu", 0),
        "step_time_s": median("step_time_s", 4),
        "mfu": median("mfu", 4),
        "mfu_non_causal": median("mfu_non_causal", 4),
        "memory_gib": max(row["memory_gib"] for row in rows),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "last_grad_norm": rows[-1]["grad_norm"],
    }


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return hardware and versions."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "gpus_used": arguments.gpus,
        "gpus": names,
        "python": sys.version.split()[0],
        "versions": versions,
        "cuda": torch.version.cuda,
        "shape": arguments.shape.name,
        "warmup_steps": WARMUP_STEPS,
        "statistic": "median over the steps after warm-up, one run a case",
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| case | tok/s/GPU | causal MFU | peak GiB | last loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in results:
        if "failed" in row:
            lines.append(f"| {row['case']} | {row['failed']} | | | |")
            continue
        mfu = f"{100 * row['mfu']:.1f} %" if row["mfu"] else ""
        lines.append(
            f"| {row['case']} | {row['tokens_per_s_per_gpu']:,.0f} | {mfu} | {row['memory_gib']:.1f} "
            f"| {row['last_loss']:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
