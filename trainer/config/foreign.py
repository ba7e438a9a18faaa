"""Names that other trainers have for what is here under another: whoever moves over types them first.

Those of Hugging Face (TrainingArguments, TRL, peft), Axolotl, LLaMA-Factory and torchtune, and words people guess.
"""

from __future__ import annotations

from collections.abc import Mapping

_TOKENS_A_STEP = "train.global_batch_tokens"
_SOURCE = "data.sources.NAME"
KEYS: Mapping[str, str] = {
    **dict.fromkeys(("learning_rate", "lr_rate", "max_lr", "peak_lr"), "optim.lr"),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "adam_betas", "beta1", "beta2"), "optim.betas"),
    **dict.fromkeys(("adam_epsilon", "adam_eps"), "optim.eps"),
    **dict.fromkeys(("weight_decay_rate", "wd"), "optim.weight_decay"),
    **dict.fromkeys(
        ("max_grad_norm", "gradient_clipping", "gradient_clip_val", "clip_grad", "grad_clip"),
        "optim.clip_norm",
    ),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler"), "schedule.name"),
    **dict.fromkeys(("warmup_ratio", "warmup"), "schedule.warmup_frac"),
    **dict.fromkeys(("num_warmup_steps", "lr_warmup_steps"), "schedule.warmup_steps"),
    **dict.fromkeys(("min_lr", "min_lr_ratio", "cosine_min_lr_ratio"), "schedule.final_frac"),
    **dict.fromkeys(
        (
            *("per_device_train_batch_size", "per_gpu_train_batch_size", "train_micro_batch_size_per_gpu"),
            *("micro_batch", "device_batch_size"),
        ),
        "train.micro_batch_size",
    ),
    **dict.fromkeys(
        (
            *(
                "gradient_accumulation_steps",
                "gradient_accumulation",
                "grad_accum",
                "accumulate_grad_batches",
            ),
            *("train_batch_size", "global_batch_size", "batch_size", "global_batch"),
        ),
        _TOKENS_A_STEP,
    ),
    **dict.fromkeys(("num_train_epochs", "num_epochs", "epochs", "n_epochs"), "train.max_epochs"),
    **dict.fromkeys(
        ("num_steps", "steps", "total_steps", "max_train_steps", "train_steps"), "train.max_steps"
    ),
    **dict.fromkeys(
        (
            *("max_seq_length", "max_seq_len", "max_length", "sequence_len", "sequence_length", "seq_length"),
            *("cutoff_len", "model_max_length", "block_size", "context_length"),
        ),
        "data.seq_len",
    ),
    **dict.fromkeys(("sample_packing", "pack_sequences", "pad_to_sequence_len"), "data.packing"),
    **dict.fromkeys(("val_set_size", "val_size", "validation_split", "test_size"), "data.validation_frac"),
    **dict.fromkeys(
        (
            "dataloader_num_workers",
            "preprocessing_num_workers",
            "dataset_num_proc",
            "num_proc",
            "dataset_processes",
        ),
        "data.num_workers",
    ),
    **dict.fromkeys(("dataset_prepared_path", "cache_path"), "data.cache_dir"),
    **dict.fromkeys(
        ("train_file", "data_path", "dataset_path", "data_files", "train_files"), f"{_SOURCE}.path"
    ),
    **dict.fromkeys(("dataset_name", "datasets"), f"{_SOURCE}.dataset"),
    **dict.fromkeys(("dataset_text_field", "text_column", "text_field"), f"{_SOURCE}.columns.text"),
    **dict.fromkeys(
        ("train_on_inputs", "assistant_only_loss", "completion_only_loss"), f"{_SOURCE}.learn.turns"
    ),
    **dict.fromkeys(
        ("model_name_or_path", "model_name", "base_model", "pretrained_model_name_or_path", "model_id"),
        "model.path",
    ),
    **dict.fromkeys(("tokenizer_name_or_path", "tokenizer_name", "tokenizer_path"), "model.tokenizer"),
    **dict.fromkeys(
        ("attn_implementation", "flash_attention", "use_flash_attention_2", "flash_attn"), "model.attention"
    ),
    **dict.fromkeys(
        ("gradient_checkpointing", "activation_checkpointing", "enable_activation_checkpointing"),
        "model.checkpoint_layers",
    ),
    **dict.fromkeys(("use_liger_kernel", "use_liger", "liger_kernel"), "model.kernels"),
    **dict.fromkeys(("lora_r", "lora_rank", "lora_dim", "rank"), "tune.r"),
    "lora_alpha": "tune.alpha",
    "lora_dropout": "tune.dropout",
    **dict.fromkeys(
        ("lora_target_modules", "target_modules", "lora_target", "lora_target_linear"), "tune.target"
    ),
    **dict.fromkeys(("use_rslora", "peft_use_rslora"), "tune.rslora"),
    **dict.fromkeys(("use_dora", "peft_use_dora"), "tune.dora"),
    "loraplus_lr_ratio": "tune.lora_plus_ratio",
    **dict.fromkeys(
        ("load_in_4bit", "quantization_bit", "quantization", "bnb_4bit_quant_type"), "tune.quantise"
    ),
    **dict.fromkeys(
        ("adapter", "finetuning_type", "peft_method", "use_peft", "use_lora", "peft"), "tune.method"
    ),
    **dict.fromkeys(("bf16", "fp16", "tf32", "torch_dtype", "precision", "mixed_precision"), "zero.dtype"),
    **dict.fromkeys(("deepspeed", "deepspeed_config"), "zero.ds_config"),
    **dict.fromkeys(("zero_stage", "zero_optimization", "fsdp"), "zero.stage"),
    **dict.fromkeys(("output_dir", "logging_dir", "save_dir", "work_dir", "out_dir"), "run_dir"),
    **dict.fromkeys(("run_name", "experiment_name"), "name"),
    **dict.fromkeys(
        ("save_steps", "save_every", "save_interval", "checkpoint_every"), "checkpoint.every_steps"
    ),
    **dict.fromkeys(("save_total_limit", "saves_to_keep"), "checkpoint.keep_last"),
    "load_best_model_at_end": "checkpoint.keep_best",
    "metric_for_best_model": "checkpoint.best.metric",
    **dict.fromkeys(("resume_from_checkpoint", "auto_resume_from_checkpoints"), "checkpoint.resume"),
    **dict.fromkeys(("logging_steps", "log_interval", "log_every_n_steps", "log_every"), "log.every_steps"),
    **dict.fromkeys(("report_to", "logger", "loggers"), "log.trackers"),
    **dict.fromkeys(("wandb_project", "project_name"), "log.project"),
    **dict.fromkeys(("eval_steps", "eval_every", "eval_interval", "evals_per_epoch"), "evaluate.every_steps"),
    **dict.fromkeys(("per_device_eval_batch_size", "eval_batch_size"), "evaluate.micro_batch_size"),
    **dict.fromkeys(("early_stopping_patience", "early_stopping"), "evaluate.patience"),
    **dict.fromkeys(("hub_model_id", "push_to_hub"), "export.hub"),
    **dict.fromkeys(
        ("nproc_per_node", "num_processes", "num_gpus", "n_gpus", "gpus", "devices"), "cluster.ranks_per_node"
    ),
    **dict.fromkeys(("nnodes", "num_machines", "nodes"), "cluster.num_nodes"),
    **dict.fromkeys(("data_seed", "random_seed"), "seed"),
}
"""The last part of a name -> our key."""
HINTS: Mapping[str, str] = {
    _TOKENS_A_STEP: "It counts tokens of a step over all ranks, accumulated ones too: sequences x data.seq_len.",
    "model.checkpoint_layers": "It counts the layers that are recomputed: -1 is all of them.",
    "schedule.final_frac": "It is the last rate as a share of the highest.",
    "tune.quantise": "Or take recipe=qlora.",
    "tune.method": "Or take tune=lora, or recipe=lora.",
    "zero.dtype": "It is bf16 or fp32; auto, the default, takes what the hardware computes in.",
}
"""What to know of a key whose unit is another there."""
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "data": {
        **dict.fromkeys(
            ("pairs", "pair", "completion", "instruction", "instructions", "instruct", "alpaca", "qa", "sft"),
            "prompt_completion",
        ),
        **dict.fromkeys(
            ("messages", "sharegpt", "conversations", "conversation", "openai", "chats", "dialog"), "chat"
        ),
        **dict.fromkeys(
            ("raw", "txt", "plain", "corpus", "pretrain", "pretraining", "jsonl", "documents"), "text"
        ),
    },
    "recipe": {
        **dict.fromkeys(("sft", "full", "finetune", "fine_tune", "fft", "instruct"), "full_finetune"),
        **dict.fromkeys(("cpt", "pretrain", "pretraining", "continued_pretraining"), "continued_pretrain"),
        **dict.fromkeys(("peft", "adapter", "dora", "sft_lora"), "lora"),
    },
    "tune": {
        **dict.fromkeys(("peft", "adapter"), "lora"),
        "none": "full",
        "lora+": "lora_plus",
        "all": "full",
    },
    "optim": dict.fromkeys(("adam", "adamw_torch", "adamw_torch_fused", "fused_adam"), "adamw"),
}
"""By group: a word that people guess -> the option."""
WORDS: Mapping[str, Mapping[str, str]] = {
    "format": {
        **dict.fromkeys(
            ("pairs", "pair", "prompt_completion", "instruction", "instruct", "alpaca", "qa"), "completion"
        ),
        **dict.fromkeys(
            ("messages", "sharegpt", "conversations", "openai", "chat_template", "chatml"), "chat"
        ),
        **dict.fromkeys(("raw", "txt", "plain", "corpus", "pretrain", "jsonl"), "text"),
        **dict.fromkeys(("tokens", "token_ids", "input_ids", "tokenized"), "ids"),
        **dict.fromkeys(("dpo", "orpo", "rm", "pairwise", "ranking", "chosen_rejected"), "preference"),
        **dict.fromkeys(("kto", "unpaired_preference", "labelled"), "unpaired"),
    },
}
"""By the last part of a key: a word that people guess -> the value."""


def key_for(name: str) -> str | None:
    """Return the key that another trainer's name means, by its last part; None where it means none."""
    return KEYS.get(name.rsplit(".", 1)[-1].lower().replace("-", "_"))
