"""The yardstick: a plain DeepSpeed loop on the batches of a run, without any of our step, head or engine code.

    python -m torch.distributed.run --nproc_per_node N benchmarks/plain_loop.py [overrides as for `palimpsest train`]

transformers, Liger with its fused loss, flash attention, deepspeed, torch's fused AdamW; ZeRO settings of
the run. Writes the metrics.jsonl that `figures` of run.py reads. Started by `run.py --plain`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from liger_kernel.transformers import apply_liger_kernel_to_llama
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from trainer.config.schema import RunConfig
from trainer.config.store import compose_config
from trainer.data.pack.collate import MicroBatch
from trainer.data.store.prepared import open_all
from trainer.dist.mesh import Axis
from trainer.engine.batch import BatchShape, batch_shape
from trainer.engine.ds_config import deepspeed_dict
from trainer.mix.loader import TrainLoader
from trainer.mix.plan import DataPlan, Pool
from trainer.model.tokenizer import configured_tokenizer


def main() -> None:
    """Train some steps and write one record a step."""
    config = compose_config(sys.argv[1:])
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed("nccl")
    shape = batch_shape(
        config.train.global_batch_tokens, config.data.seq_len, config.train.micro_batch_size, world_size
    )
    loader = build_loader(config, shape, Axis(rank, world_size))
    engine = build_engine(config, shape)
    rows = []
    for step in range(config.train.max_steps or 0):
        (micro,) = loader.read(step).micro_batches
        torch.cuda.synchronize()
        started = time.perf_counter()
        loss = engine(**inputs(micro)).loss
        engine.backward(loss)
        engine.step()
        loss_value = float(loss)
        norm = float(engine.get_global_grad_norm())
        torch.cuda.synchronize()
        step_s = time.perf_counter() - started
        rows.append(
            {
                "step": step + 1,
                "loss": loss_value,
                "grad_norm": norm,
                "step_time_s": step_s,
                "tokens_per_s_per_gpu": micro.tokens_BT.size / step_s,
                "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
            }
        )
    if rank == 0:
        path = Path(config.run_dir) / "metrics.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build_loader(config: RunConfig, shape: BatchShape, data: Axis) -> TrainLoader:
    """Return the batches that the trainer would get."""
    tokenizer = configured_tokenizer(config.model, str(config.model.path))
    splits = [store.train for store in open_all(config.data, tokenizer).values()]
    pool = Pool("all", False, 1.0, range(len(splits)), [split.pack_targets for split in splits])
    plan = DataPlan([pool], shape.packs_per_step, config.data.seq_len, lambda step: 0.0, config.seed)
    names = list(config.data.sources)
    return TrainLoader(names, splits, plan, data, config.train.micro_batch_size, 0)


def build_engine(config: RunConfig, shape: BatchShape) -> Any:
    """Return what deepspeed.initialize makes of the shape with random weights."""
    apply_liger_kernel_to_llama()
    ds_config = deepspeed_dict(config.zero, config.optim, shape, on_gpu=True)
    keep_alive = HfDeepSpeedConfig(ds_config)
    hf_config = AutoConfig.from_pretrained(config.model.path)
    hf_config.use_cache = False
    torch.manual_seed(0)
    place = torch.device("cpu" if config.zero.stage == 3 else "cuda")
    with place:
        model = AutoModelForCausalLM.from_config(
            hf_config, dtype=torch.bfloat16, attn_implementation="flash_attention_2"
        )
    if config.model.checkpoint_layers == -1:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    elif config.model.checkpoint_layers != 0:
        raise SystemExit("The plain loop recomputes all layers or none.")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.optim.lr, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=ds_config)
    del keep_alive
    return engine


def inputs(micro: MicroBatch) -> dict[str, Any]:
    """Return one row of all packs with explicit boundaries; labels are shifted already."""

    def move(array: Any) -> Tensor:
        return torch.from_numpy(array).cuda()

    boundaries = move(micro.cu_seq_lens)
    labels = move(micro.labels_BT).reshape(1, -1)
    return {
        "input_ids": move(micro.tokens_BT).reshape(1, -1),
        "position_ids": move(micro.positions_BT).reshape(1, -1),
        "labels": labels,
        "shift_labels": labels,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": micro.max_seq_len,
        "max_length_k": micro.max_seq_len,
    }


if __name__ == "__main__":
    main()
