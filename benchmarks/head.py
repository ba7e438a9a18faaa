"""Time the loss head at the 8B shape: ours, eager chunks, Liger's fused linear cross-entropy.

    python benchmarks/head.py [--out FILE]

Forward and backward, bf16, hidden 4,096, vocabulary 128,256; median of 10 after 3 warm-ups.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from trainer.model.head.nll import ChunkedCrossEntropy

HIDDEN, VOCAB = 4096, 128256


def timed_ms(run: Callable[[], None]) -> float:
    """Return the median milliseconds of a call."""
    times = []
    for _ in range(13):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
    return round(statistics.median(times[3:]), 2)


def measure(num_tokens: int, weight: torch.Tensor) -> dict[str, float]:
    """Return the milliseconds of every head at one size."""
    hidden = torch.randn(num_tokens, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, VOCAB, (num_tokens,), device="cuda")

    def ours(chunk: int) -> None:
        hidden.grad = weight.grad = None
        ChunkedCrossEntropy.apply(hidden, weight, None, labels, chunk)[0].backward()

    row: dict[str, float] = {"tokens": num_tokens}
    for chunk in (2048, 4096, 8192):
        row[f"fused_chunk_{chunk}_ms"] = timed_ms(functools.partial(ours, chunk))
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")

        def peer() -> None:
            hidden.grad = weight.grad = None
            liger(weight, hidden, labels).backward()

        row["liger_ms"] = timed_ms(peer)
    row["floor_790_tflops_ms"] = round(6 * num_tokens * HIDDEN * VOCAB / 790e12 * 1e3, 2)
    return row


def main() -> None:
    """Print one line a size and write them as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    weight = (0.02 * torch.randn(VOCAB, HIDDEN, device="cuda", dtype=torch.bfloat16)).requires_grad_()
    rows = []
    for num_tokens in (4096, 8192, 16384):
        rows.append(measure(num_tokens, weight))
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        facts = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "rows": rows}
        arguments.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
