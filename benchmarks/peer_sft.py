"""One peer: TRL's SFTTrainer or Unsloth, LoRA, QLoRA or all weights, on the documents that `peers.py` hands over.

    python benchmarks/peer_sft.py unsloth --model FOLDER --documents FILE.json --out OUT.json [--nf4] --micros 1 8

Its own packing, nothing recomputed, fused AdamW, Liger for TRL; all weights (TRL, under torchrun): DeepSpeed's ZeRO-3,
every layer recomputed, four packs. A step is timed from the end of one to the end of the
next, after a synchronisation.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from peer_versions import versions

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SEQ_LEN = 4096
ZERO3 = {
    "bf16": {"enabled": True},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
PACKAGES = (
    "unsloth",
    "unsloth_zoo",
    "trl",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "deepspeed",
    "flash-attn",
)


def main() -> None:
    """Train a few steps at each number of micro-batches and write the times of the steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=("trl", "unsloth"))
    parser.add_argument("--model", type=Path, required=True, help="folder with weights and tokenizer")
    parser.add_argument("--documents", type=Path, required=True, help="JSON list of lists of token ids")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--nf4", action="store_true")
    parser.add_argument("--attention", default="flash_attention_2", help="of TRL")
    parser.add_argument("--full", action="store_true", help="all weights, ZeRO-3")
    parser.add_argument("--micros", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, nargs="+", default=[16], help="one number for each of --micros")
    arguments = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1", UNSLOTH_RETURN_LOGITS="0")
    if arguments.full:
        model, tokenizer, peft_config = whole_model(arguments)
    else:
        model, tokenizer, peft_config = (
            unsloth_model(arguments) if arguments.peer == "unsloth" else trl_model(arguments)
        )
    rows = []
    for num_micros, num_steps in zip(arguments.micros, arguments.steps, strict=True):
        row, model = measure(model, tokenizer, peft_config, num_micros, num_steps, arguments)
        peft_config = None  # the model has its adapter now
        rows.append(row)
        if os.environ.get("RANK", "0") == "0":
            arguments.out.write_text(
                json.dumps({"rows": rows, "versions": versions(PACKAGES)}), encoding="utf-8"
            )


def whole_model(arguments: argparse.Namespace) -> tuple[str, Any, None]:
    """Return the folder, which TRL reads when DeepSpeed is there to shard it."""
    from transformers import AutoTokenizer

    return str(arguments.model), AutoTokenizer.from_pretrained(arguments.model), None


def unsloth_model(arguments: argparse.Namespace) -> tuple[Any, Any, None]:
    """Return Unsloth's model with its adapter."""
    import torch
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(arguments.model), max_seq_length=SEQ_LEN, dtype=torch.bfloat16, load_in_4bit=arguments.nf4
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        target_modules=LINEAR,
        use_gradient_checkpointing=False,
        random_state=1,
    )
    return model, tokenizer, None


def trl_model(arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return a model of transformers, and the adapter that TRL is to add."""
    import torch
    from peft import LoraConfig, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantiser = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model,
        dtype=torch.bfloat16,
        attn_implementation=arguments.attention,
        device_map={"": 0},
        quantization_config=quantiser if arguments.nf4 else None,
    )
    if arguments.nf4:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=LINEAR, task_type="CAUSAL_LM")
    return model, AutoTokenizer.from_pretrained(arguments.model), config


def measure(
    model: Any,
    tokenizer: Any,
    peft_config: Any,
    num_micros: int,
    num_steps: int,
    arguments: argparse.Namespace,
) -> tuple[dict[str, Any], Any]:
    """Train some steps; return what was measured, and the model."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    ends: list[float] = []
    hours: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **options: Any) -> None:
            torch.cuda.synchronize()
            ends.append(time.perf_counter())
            hours.append(time.time())

    documents = json.loads(arguments.documents.read_text(encoding="utf-8"))
    options: dict[str, Any] = {} if arguments.peer == "unsloth" else {"use_liger_kernel": True}
    num_packs = 4 if arguments.full else 2
    if arguments.full:
        read = {"dtype": "bfloat16", "attn_implementation": arguments.attention}
        options |= {"deepspeed": ZERO3, "model_init_kwargs": read}
    config = SFTConfig(
        output_dir=str(arguments.out.parent / f"{arguments.peer}-{num_micros}"),
        max_steps=num_steps,
        per_device_train_batch_size=num_packs,
        gradient_accumulation_steps=num_micros,
        gradient_checkpointing=arguments.full,
        bf16=True,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        packing=True,
        max_length=SEQ_LEN,
        learning_rate=1e-5,
        optim="adamw_torch_fused",
        **options,
    )
    torch.cuda.reset_peak_memory_stats()
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"input_ids": documents}),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[Clock()],
    )
    if len(trainer.train_dataset) < 2 * num_packs * num_micros:
        raise SystemExit(
            f"{len(trainer.train_dataset)} packs are too few for steps of {num_packs * num_micros}"
        )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    row = {
        "num_micros": num_micros,
        "step_times_s": [b - a for a, b in itertools.pairwise(ends)],
        "first_step_at": hours[0],
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "attention": getattr(trainer.model.config, "_attn_implementation", None),
        "packs": len(trainer.train_dataset),
    }
    print("RESULT", json.dumps(row), flush=True)
    return row, trainer.model


if __name__ == "__main__":
    main()
