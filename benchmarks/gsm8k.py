"""LoRA and QLoRA on real input: SmolLM2-135M-Instruct on GSM8K, from training to an answer of the merged model.

    python benchmarks/gsm8k.py --gsm8k gsm8k_train.jsonl --general general.jsonl --probe medicine=M.jsonl --out OUT.json

For each recipe: train with 5 % replay of general text, pass the gate (benchmarks stop when it refuses), export the
adapter and the merged model, and ask base, adapter and merged model the same question, greedily. forgetting/corpora.py
makes the text files. Runs on a CPU too: --steps 10 --batch-tokens 4096 --micro-batch 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from run import environment  # noqa: E402

from trainer.metrics.jsonl import read  # noqa: E402

RECIPES = ("lora", "qlora")
QUESTION = "Lena has 12 pencils. She gives 3 to each of her 2 brothers. How many pencils does she have left?"
NEW_TOKENS = 80


def main() -> None:
    """Run the recipes and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--general", type=Path, required=True)
    parser.add_argument("--probe", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--micro-batch", type=int, default=8, help="packs of 1,024 tokens")
    parser.add_argument("--jobs", type=int, default=1, help="recipes at once")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gsm8k_adapters.json")
    parser.add_argument("--work", type=Path, help="run directories; default a new temporary folder")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    arguments = parser.parse_args()
    arguments.gpus, arguments.shape = 1, Path("smollm2_135m")
    work: Path = arguments.work or Path(tempfile.mkdtemp(prefix="palimpsest-gsm8k-"))
    work.mkdir(parents=True, exist_ok=True)
    command(["prepare", *overrides(arguments.recipes[0], arguments, work)], work / "prepare.log", None)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = list(pool.map(lambda place: measure(*place, arguments, work), enumerate(arguments.recipes)))
    facts = {"statistic": "one run a recipe", "question": QUESTION}
    record = {"environment": environment(arguments) | facts, "results": results}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(table(results))


def measure(number: int, recipe: str, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train, judge, export and ask; return what was found. Several recipes at once each take a GPU of their own."""
    num_gpus = torch.cuda.device_count()
    gpu = number % num_gpus if num_gpus else None
    run_dir = work / recipe
    words = overrides(recipe, arguments, work)
    log = work / f"{recipe}.log"
    started = time.time()
    command(["train", *words, f"run_dir={run_dir}"], log, gpu)
    train_s = time.time() - started
    run = f"run_dir={run_dir}"
    command(["evaluate", run, "gate=default"], log, gpu)
    command(["export", run], log, gpu)
    command(["export", run, "export.merge=true", f"export.output_dir={work / f'{recipe}-merged'}"], log, gpu)
    found = json.loads((run_dir / "forgetting.json").read_text(encoding="utf-8"))
    rows = [row for row in read(run_dir / "metrics.jsonl") if "tokens_per_s" in row]
    return {
        "recipe": recipe,
        "overrides": [word for word in words if "/" not in word],
        "train_s": round(train_s, 1),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "sets": [
            {key: one[key] for key in ("name", "role", "base_nats", "tuned_nats", "change_nats")}
            for one in found["sets"]
        ],
        "gate": "passed",
        "answers": ask(run_dir, work / f"{recipe}-merged", "cpu" if gpu is None else f"cuda:{gpu}"),
    }


def overrides(recipe: str, arguments: argparse.Namespace, work: Path) -> list[str]:
    """Return the words of a run."""
    key = "data.sources.gsm8k"
    words = [
        f"recipe={recipe}",
        "model=smollm2_135m",
        "data=gsm8k",
        *(f"{key}.dataset=null", f"{key}.subset=null", f"{key}.path={arguments.gsm8k.resolve()}"),
        "replay=general",
        *("data.sources.general.dataset=null", "data.sources.general.subset=null"),
        f"data.sources.general.path={arguments.general.resolve()}",
        "replay.ratio=0.05",
        "data.seq_len=1024",
        "data.validation_frac=0.05",
        f"data.cache_dir={work / 'cache'}",
        "cluster.ranks_per_node=1",
        "train.max_epochs=null",
        f"train.max_steps={arguments.steps}",
        f"train.global_batch_tokens={arguments.batch_tokens}",
        f"train.micro_batch_size={arguments.micro_batch}",
        f"evaluate.micro_batch_size={arguments.micro_batch}",
        "evaluate.every_steps=0",
        "log.progress=false",
        # Ten times full fine-tuning's rate for so small a model.
        "optim.lr=1e-3",
    ]
    for word in arguments.probe:
        name, _, file = word.partition("=")
        words += [f"data.sources.{name}.path={Path(file).resolve()}", f"data.sources.{name}.role=probe"]
    return [*words, *arguments.set]


def command(words: list[str], log: Path, gpu: int | None) -> None:
    """Run a command of the trainer, and stop with the end of its log if it fails."""
    environment = dict(os.environ) if gpu is None else os.environ | {"CUDA_VISIBLE_DEVICES": str(gpu)}
    with log.open("a", encoding="utf-8") as stream:
        code = subprocess.run(
            [sys.executable, "-m", "trainer", *words], stdout=stream, stderr=stream, env=environment
        ).returncode
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{words[0]} ended with {code}:\n{tail}")


def ask(run_dir: Path, merged: Path, device: str) -> dict[str, str]:
    """Return what base, base with the exported adapter in plain peft, and merged model answer, greedily, in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base_dir = json.loads((run_dir / "export" / "adapter_config.json").read_text())["base_model_name_or_path"]
    tokenizer = AutoTokenizer.from_pretrained(merged)

    def answer(model: Any) -> str:
        chat = [{"role": "user", "content": QUESTION}]
        inputs = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(device)
        with torch.no_grad():
            out = model.to(device).eval().generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return str(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    def load(folder: Path | str) -> Any:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    return {
        "base": answer(load(base_dir)),
        "adapter": answer(PeftModel.from_pretrained(load(base_dir), run_dir / "export")),
        "merged": answer(load(merged)),
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the losses as a Markdown table, and the answers below it."""
    names = [one["name"] for one in results[0]["sets"]]
    lines = [f"| recipe | {' | '.join(names)} | gate |", "|---|" + "---:|" * len(names) + "---|"]
    for row in results:
        cells = [f"{one['base_nats']:.4f} -> {one['tuned_nats']:.4f}" for one in row["sets"]]
        lines.append(f"| {row['recipe']} | {' | '.join(cells)} | {row['gate']} |")
    for row in results:
        lines += [
            f"{row['recipe']} {name}: {' '.join(text.split())}" for name, text in row["answers"].items()
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
