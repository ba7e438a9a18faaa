"""Time the parts of the LoRA step against each other in one process on one GPU, and count its kernels.

    python benchmarks/lora_step.py --corpus FILE.txt --out OUT.json [--tune qlora] [--micros 8] [VARIANT ...]

Variants: gated (as the trainer is), layers (gated MLPs layer by layer), and gated_bnb and layers_bnb with weights in 4
bits unpacked by bitsandbytes. All train the same model on the next batches, one variant after the other, so that their
documents differ; a step is timed between two synchronisations. The first variant is profiled for one step at the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from run import environment, tokenizer_dir

HERE = Path(__file__).resolve().parent
VARIANTS = ("gated", "layers", "gated_bnb", "layers_bnb")
TOKENS = 8192
WARMUP = 3
RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def main() -> None:
    """Measure the variants and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "variants", nargs="*", default=["gated", "layers"], help=f"any of: {', '.join(VARIANTS)}"
    )
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tune", default="lora", choices=["lora", "qlora"])
    parser.add_argument("--micros", type=int, default=1)
    parser.add_argument("--steps", type=int, default=13)
    parser.add_argument("--shape", type=Path, default=HERE / "shapes" / "llama3_8b")
    parser.add_argument("--set", nargs="*", default=[], help="overrides")
    arguments = parser.parse_args()
    arguments.gpus = 1
    with ExitStack() as stack:
        session, step = open_steps(arguments, stack)
        gc.collect()
        gc.freeze()
        gc.disable()
        rows = [measure(variant, session, step, arguments) for variant in arguments.variants]
        choose(arguments.variants[0], session)
        profile = profiled(step)
    record = {"environment": environment(arguments) | {"warmup_steps": WARMUP}, "results": rows}
    arguments.out.write_text(json.dumps(record | {"profile": profile}, indent=2) + "\n", encoding="utf-8")


def open_steps(arguments: argparse.Namespace, stack: ExitStack) -> tuple[Any, Any]:
    """Build the trainer's own session; return it and what trains one step."""
    work = Path(tempfile.mkdtemp(prefix="palimpsest-step-"))
    words = [
        *(f"tune={arguments.tune}", "tune.r=16", "data.seq_len=4096", "zero=zero1", "zero.dtype=bf16"),
        *("train.micro_batch_size=2", "model.checkpoint_layers=0", "model=benchmark"),
        *(f"model.path={arguments.shape}", f"model.tokenizer={tokenizer_dir(work)}", "data=text"),
        *(f"data.sources.corpus.path={arguments.corpus.resolve()}", "data.validation_frac=0"),
        *("data.sources.corpus.txt_documents=paragraph", f"data.cache_dir={work / 'cache'}"),
        *(f"train.global_batch_tokens={TOKENS * arguments.micros}", "train.max_steps=1000"),
        *("evaluate.every_steps=0", "checkpoint.enabled=false", "log.progress=false"),
        *(f"run_dir={work / 'run'}", *arguments.set),
    ]
    subprocess.run(
        [sys.executable, "-m", "trainer", "prepare", *words], check=True, stdout=subprocess.DEVNULL
    )
    os.environ.update(RANK | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"})
    from trainer.config.store import compose_config
    from trainer.objective.build import build_objective
    from trainer.run.session import open_session
    from trainer.run.step import train_step
    from trainer.run.training import open_loader

    config = compose_config(words)
    session = open_session(config, stack, goes_on=False)
    units = [store.train.unit for store in session.stores.values()]
    objective = build_objective(config.objective, list(session.stores), units)
    loader = open_loader(session, session.mixing(), objective)
    stack.callback(loader.close)
    session.policy.engine.set_lr(1e-5)
    taken = iter(range(1000))
    return session, lambda: train_step(session.policy, objective, loader.read(next(taken)), lambda: False)


def measure(variant: str, session: Any, step: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train some steps of a variant; return their median."""
    import torch

    choose(variant, session)
    torch.cuda.reset_peak_memory_stats()
    times, loss = [], 0.0
    for _ in range(arguments.steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        loss = step().loss
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    kept = times[WARMUP:]
    row = {
        "tune": arguments.tune,
        "variant": variant,
        "num_micros": arguments.micros,
        "num_steps": len(kept),
        "step_time_s": round(statistics.median(kept), 4),
        "fastest_s": round(min(kept), 4),
        "slowest_s": round(max(kept), 4),
        "tokens_per_s": round(TOKENS * arguments.micros / statistics.median(kept)),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "last_loss": loss,
        "attention": session.loaded.attention.name,
        "kernels": session.loaded.kernels,
    }
    print(json.dumps(row), flush=True)
    return row


def choose(variant: str, session: Any) -> None:
    """Compute as the variant says, in place."""
    from trainer.model.tune import fused_nf4
    from trainer.model.tune.adapters import ADAPTER
    from trainer.model.tune.gated import fuse_gated

    if not hasattr(fused_nf4, "measured_is_for"):
        fused_nf4.measured_is_for = fused_nf4.is_for  # type: ignore[attr-defined]
    takes = fused_nf4.measured_is_for  # type: ignore[attr-defined]
    fused_nf4.is_for = (lambda state: False) if variant.endswith("bnb") else takes
    for module in session.loaded.model.modules():
        if hasattr(module, "down_proj") and getattr(vars(module).get("forward"), "args", None):
            module.forward = module.forward.args[1]  # what it was before `fuse_gated`
    if variant.startswith("gated"):
        fuse_gated(session.loaded.model, ADAPTER)


def profiled(step: Any) -> dict[str, Any]:
    """Return the kernels of one step: how many, how long, and the longest by name."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        step()
        torch.cuda.synchronize()
    on_gpu = [event for event in found.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    on_gpu.sort(key=lambda event: -event.self_device_time_total)
    longest = [
        {"name": event.key[:100], "count": event.count, "ms": round(event.self_device_time_total / 1000, 2)}
        for event in on_gpu[:30]
    ]
    busy_ms = sum(event.self_device_time_total for event in on_gpu) / 1000
    return {"num_kernels": sum(e.count for e in on_gpu), "busy_ms": round(busy_ms, 1), "longest": longest}


if __name__ == "__main__":
    main()
