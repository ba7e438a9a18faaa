"""The words of the command line and its help."""

from __future__ import annotations

from trainer.config.options import group_options

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
    "verify": "recompute which tokens a run should have consumed; verify checkpoints and export; time lost. No GPU",
    "export": "write a run's checkpoint as a Hugging Face folder and compare its logits",
    "replay": "replay for a model whose pretraining data cannot be had: `palimpsest replay generate`",
    "data": "rows that models make (`palimpsest data raft`, sample, judge, revise, questions); people look (review)",
    "init": "look at a model and at data and write an experiment for them; --site: a file for this cluster",
    "explain": "what a key, a section, a group or an option means, and which files set it",
    "schema": "JSON schema of the configuration, for editors",
    "completion": "a script that completes commands, groups, keys and words: bash, zsh or fish",
}

ABOUT = ("init", "explain", "schema", "completion")
"""Commands about the configuration, which take words of their own and run nothing."""

SUBCOMMANDS = {
    "plan": {
        "data": "how far the data is from what the base knows, and how much replay that asks for; loads the model"
    },
    "data": {
        "raft": "questions among documents, answers that quote the one that helps; synthetic.raft.*",
        "sample": "answers to prompts, scored by a verifier or a reward model; synthetic.sample.*",
        "judge": "which of two answers a model prefers, asked in both orders; synthetic.judge.*",
        "revise": "answers revised by a critique from a file of principles; synthetic.revise.*",
        "questions": "questions and answers to documents, those that cannot be answered left out",
        "review": "a sample of rows for people to tick, as a page and a table; their verdicts back",
    },
    "replay": {
        "generate": "sample the model into a store of texts or chats; replay.generate.* says what and how much"
    },
}
"""Commands of two words."""
WHOLE_ALONE = ("plan",)
"""Those of them that are a command without the second word too."""


def help_text() -> str:
    """Return the help: commands, config groups and where to read on."""
    commands = "\n".join(f"  {name:<11} {what}" for name, what in COMMANDS.items())
    groups = "\n".join(
        f"  {group:<11} {', '.join(o for o in options if o != 'none')}"
        for group, options in group_options().items()
    )
    return (
        "palimpsest: adapt open-weight language models on DeepSpeed, and keep what they knew.\n\n"
        "usage: palimpsest COMMAND [group=option ...] [section.key=value ...] [--cfg] [--config FILE]\n"
        "       palimpsest COMMAND --help [--all]     the keys that matter to a command\n"
        "       palimpsest --version\n\n"
        f"commands:\n{commands}\n\n"
        f"config groups (group=option):\n{groups}\n\n"
        "  --cfg            print the resolved configuration and stop\n"
        "  --config FILE    start from a frozen config.yaml instead of composing\n"
        "  --dry-run        submit: print the batch script and change nothing; -m: list the points; elsewhere --cfg,\n"
        "                   and train with cluster.hostfile: the launcher's command lines too\n"
        "  -m, --multirun   train, submit: a run for each of several values (key=a,b), below run_dir;\n"
        "                   hydra/launcher=slurm|local waits for all, hydra/sweeper=optuna chooses values\n\n"
        "example: palimpsest train recipe=full_finetune model=smollm2_135m data=chat \\\n"
        "           data.sources.chat.path=chats.jsonl run_dir=runs/first"
    )
