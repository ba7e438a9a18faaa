"""TRL's DPOTrainer with LoRA on the pairs that `pairs.py` hands over: a short trial of each setting, then the fastest.

    python benchmarks/peer_dpo.py --shape FOLDER --rows FILE.jsonl --tokenizer FOLDER --out OUT.json --micros 4 8 16

Tried are micro-batches of so many pairs, reference computed before training, nothing recomputed, and Liger at the
fastest of them. `default` is what DPOConfig says: 8 pairs a micro-batch and a step, layers recomputed, the reference by
a second pass in each step, no Liger; only that nothing is truncated and the attention are not its default. Each setting
has a fresh random model. A step is timed from the end of one to the end of the next, after a synchronisation. What is
in --out is not measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pair_rows import read_rows
from peer_versions import versions

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PACKAGES = ("trl", "transformers", "peft", "accelerate", "datasets", "torch", "flash-attn", "liger-kernel")
DEFAULT_MICRO = 8
"""Of transformers' TrainingArguments, and so of DPOConfig."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What TRL is asked to do."""

    micro: int
    """Pairs a micro-batch."""
    precompute: bool = True
    liger: bool = False
    recompute: bool = False

    @property
    def name(self) -> str:
        """Return what the setting is called in the file."""
        parts = [f"{self.micro} pairs", "precomputed" if self.precompute else "reference in each step"]
        return ", ".join([*parts, *["liger"] * self.liger, *["recomputed"] * self.recompute])


def main() -> None:
    """Try the settings, measure the fastest and the default, and write JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=Path, required=True, help="folder with config.json")
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--micros", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--no-liger", action="store_true", help="try no setting with Liger")
    parser.add_argument("--no-default", action="store_true")
    parser.add_argument("--pairs-per-step", type=int, default=32)
    parser.add_argument("--trial-steps", type=int, default=3)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--attention", default="flash_attention_2")
    parser.add_argument("--limit-s", type=float, default=240.0, help="begin no setting after so long")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
    started = time.monotonic()
    record = read_record(arguments.out)

    def measured(setting: Setting, kind: str, num_steps: int, warmup: int) -> dict[str, Any] | None:
        done = [row for row in record["rows"] if (row["kind"], row["setting"]) == (kind, setting.name)]
        if done:
            return done[0] if "failed" not in done[0] else None
        if time.monotonic() - started > arguments.limit_s:
            print(f"{kind} {setting.name}: no time left for it", flush=True)
            return None
        row = asdict(setting) | {"kind": kind, "setting": setting.name}
        row |= tried(setting, num_steps, warmup, arguments)
        record["rows"].append(row)
        arguments.out.write_text(json.dumps(record, indent=1), encoding="utf-8")
        print("RESULT", json.dumps({k: v for k, v in row.items() if k != "step_times_s"}), flush=True)
        return row if "failed" not in row else None

    rates: dict[Setting, float] = {}

    def try_out(setting: Setting) -> None:
        if row := measured(setting, "trial", arguments.trial_steps, 1):
            rates[setting] = row["pairs_per_s"]

    for micro in arguments.micros:
        try_out(Setting(micro))
    if rates and not arguments.no_liger:
        try_out(Setting(max(rates, key=lambda s: rates[s]).micro, liger=True))
    for setting in sorted(
        rates, key=lambda s: -rates[s]
    ):  # the next one where memory runs out on longer rows
        if measured(setting, "best", arguments.steps, arguments.warmup):
            break
    if not arguments.no_default:
        default = Setting(DEFAULT_MICRO, precompute=False, recompute=True)
        measured(default, "default", arguments.steps, arguments.warmup)


def read_record(out: Path) -> dict[str, Any]:
    """Return what is there already, or an empty record."""
    if out.exists():
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return found
    return {"rows": [], "versions": versions(PACKAGES)}


def tried(setting: Setting, num_steps: int, warmup: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what a setting did, or that memory ran out, with the memory given back."""
    failed = None
    try:
        return measure(setting, num_steps, warmup, arguments)
    except torch.cuda.OutOfMemoryError:
        failed = "out of memory"
    except Exception as error:  # a setting that TRL cannot do must not end the others
        failed = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return {"failed": failed}


def measure(setting: Setting, num_steps: int, warmup: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train some steps on the first rows; return what was measured."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    on_gpu = torch.cuda.is_available()
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **options: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    num_micros = max(arguments.pairs_per_step // setting.micro, 1) if setting.precompute else 1
    pairs_per_step = num_micros * setting.micro
    rows = read_rows(arguments.rows)
    rows = rows[: num_steps * pairs_per_step] if setting.precompute else rows  # each is asked about before
    torch.manual_seed(0)
    with torch.device("cuda") if on_gpu else contextlib.nullcontext():
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(arguments.shape),
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            attn_implementation=arguments.attention if on_gpu else "sdpa",
        )
    config = DPOConfig(
        output_dir=str(arguments.out.parent / "trl"),
        max_steps=num_steps,
        per_device_train_batch_size=setting.micro,
        gradient_accumulation_steps=num_micros,
        gradient_checkpointing=setting.recompute,
        precompute_ref_log_probs=setting.precompute,
        use_liger_kernel=setting.liger,
        max_length=None,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        learning_rate=5e-6,
        optim="adamw_torch_fused",
        seed=0,
    )
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    trainer = DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(arguments.tokenizer),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    if on_gpu:
        torch.cuda.synchronize()
    built_s = time.perf_counter() - began
    trainer.train()
    times = [b - a for a, b in itertools.pairwise(ends)][warmup - 1 :]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seen = trainer.train_dataset
    found = {
        "pairs_per_step": pairs_per_step,
        "pairs_per_s": pairs_per_step * len(times) / sum(times),
        "pairs_per_s_median": pairs_per_step / statistics.median(times),
        "num_steps": len(times),
        "step_times_s": times,
        "num_rows": len(rows),
        "dropped_by_trl": len(rows) - len(seen),
        "mean_tokens": {key: statistics.mean(map(len, seen[f"{key}_ids"])) for key in rows[0]},
        "built_s": built_s,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "attention": getattr(trainer.model.config, "_attn_implementation", None),
    }
    trainer.accelerator.free_memory()
    return found


if __name__ == "__main__":
    main()
