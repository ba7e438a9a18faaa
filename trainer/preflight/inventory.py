"""What one process finds on its own: the device of its rank, and what its node has."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from trainer.preflight.facts import NodeFacts, RankFacts
from trainer.preflight.matmul import measure
from trainer.preflight.versions import code_digests, compared_versions


def num_visible_gpus() -> int:
    """Return the GPUs that torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_of(local_rank: int) -> torch.device:
    """Return the device that training gives a rank; the CPU where there is no such GPU."""
    return torch.device("cuda", local_rank) if local_rank < num_visible_gpus() else torch.device("cpu")


def take_facts(rank: int, local_rank: int, node: str, of_node: NodeFacts | None) -> RankFacts:
    """Measure the device of a rank; nothing where its GPU is missing."""
    device = device_of(local_rank)
    on_gpu = device.type == "cuda"
    if num_visible_gpus() and not on_gpu:
        return RankFacts(rank, local_rank, node, of_node=of_node)
    try:
        if on_gpu:
            torch.cuda.set_device(device)
        measured = measure(device)
    except RuntimeError as error:
        # CUDA tells of a broken GPU so.
        trouble = str(error).strip().splitlines()[0][:200]
        return RankFacts(rank, local_rank, node, on_gpu, trouble=trouble, of_node=of_node)
    return RankFacts(rank, local_rank, node, on_gpu, measured.gpu, measured.flops, None, of_node)


def node_facts(config_digest: str) -> NodeFacts:
    """Return what one process of a node tells for all of them."""
    num_gpus = num_visible_gpus()
    trouble = None if num_gpus else _why_no_gpu()
    return NodeFacts(compared_versions(), code_digests(), config_digest, num_gpus, trouble)


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"Its torch, {torch.__version__}, is a build without CUDA"
    if not Path("/dev/nvidiactl").exists():
        return (
            "No NVIDIA driver is loaded there (/dev/nvidiactl is missing; in a container, hand the GPUs in)"
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return f"CUDA_VISIBLE_DEVICES is '{visible}' there"
    return "CUDA does not start there: try python -c 'import torch; torch.cuda.init()'"
