"""Config sections for the batch, the run length, evaluation, checkpoints and logs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from trainer.config.asked import AskedConfig
from trainer.config.during import DuringConfig
from trainer.config.metric import Direction
from trainer.config.scores import ScoresConfig
from trainer.config.spikes import SpikeConfig
from trainer.config.tasks import TasksConfig


@dataclass
class TrainConfig:
    """Batch and length of the run. Everything else about the batch is derived."""

    global_batch_tokens: int = 131072
    """Tokens of one optimizer step over all ranks. Must be a multiple of data.seq_len x ranks x micro batch."""
    micro_batch_size: int = 1
    """Packs of data.seq_len that one rank puts through the model at once; those that share packs, together."""
    sequence_parallel: int = 1
    """Ranks that share the tokens of each pack, neighbours; 1: each has packs of its own. For packs whose activations
    one GPU cannot hold: a rank computes, and keeps, data.seq_len / N tokens of a pack, and in attention ranks exchange
    tokens for heads (DeepSpeed-Ulysses). Divides the ranks, data.seq_len and the heads of attention; heads of keys
    are repeated where it does not divide them. objective=causal_lm, without replay.kl, spread experts and virtual
    tokens. Counts and losses of a step are those without it; a run may go on with another number."""
    max_steps: int | None = None
    """Length in optimizer steps. Give one of max_steps, max_epochs, max_tokens."""
    max_epochs: float | None = None
    """Length in passes over the training packs."""
    max_tokens: int | None = None
    """Length in tokens (all tokens of the packs, supervised or not)."""
    max_non_finite_steps: int = 3
    """Stop after so many skipped or non-finite steps in a row. 0 stops at the first."""
    spikes: SpikeConfig = field(default_factory=SpikeConfig)
    """What is done about steps far beyond what is usual."""
    verify_every: int = 0
    """Every so many steps, each micro-batch of the step goes forward and backward twice more on its rank, without
    dropout; a rank whose loss or gradients differ by a bit computes wrongly, and ends the run with its name. Below
    ZeRO-3 the gradients of all that trains are compared; at ZeRO-3 those that flow into each layer, and the first
    layer's own. Sums over ranks and the optimizer's update are not done again. Such a step takes three times as long.
    Needs deterministic=true. 0: never."""
    router_bias_rate: float = 0.0
    """For mixtures whose routers have a bias without a gradient instead of a loss that evens out the use of experts
    (DeepSeek-V3, GLM-4.5, MiniMax-M2, Kimi): after each step the bias of an expert that got fewer tokens than the mean
    of its layer rises by this, that of one that got more falls. 0: it stays as in the base. DeepSeek-V3 was pre-trained
    with 0.001 (arXiv:2412.19437). All weights must train."""
    isolation_probe: bool = True
    """Before the first step: perturb one document and assert that the others' logits do not move, and that the gradient
    of the loss is that of the model's own code."""


class ProbeChoice(Enum):
    """Whether a run is also measured on kinds of text that nobody named."""

    auto = "auto"
    """Where reading them takes at most 2 % of the computation of the training."""
    all = "all"
    """Whatever they take."""
    none = "none"
    """None."""


@dataclass
class EvaluateConfig:
    """Held-out loss during the run."""

    every_steps: int = 100
    """Optimizer steps between evaluations; 0: only before the first step and at the end."""
    micro_batch_size: int = 1
    """Packs a rank evaluates at once."""
    patience: int | None = None
    """Stop after so many evaluations without a lower mean held-out loss; null never stops."""
    min_delta_nats: float = 0.0
    """For `patience`, an evaluation counts as better only if the loss falls by more than this."""
    forgetting: bool = True
    """Compare the tuned model with its base at the end of training: forgetting.json and report.html."""
    kl_packs: int = 16
    """Held-out packs of each target source, and conversations, on which the KL to the base is taken; 0: none."""
    forgotten_documents: int = 10
    """Held-out documents of which the report shows what became less likely, token by token: those whose own loss rose
    most. Their text stands in forgotten_documents.json and report.html then. 0: none."""
    probes: ProbeChoice = ProbeChoice.auto
    """Kinds of text that come with the package (conversation, maths, code, prose, languages), a few short documents
    each: losses and KL to the base on them before training and at its end, in the report."""
    probe_dir: str | None = None
    """Folder of texts that must not be forgotten, each file a kind of its own: UTF-8 text, which is cut at empty lines,
    or .jsonl of rows with `text` or `messages`. Measured beside evaluate.probes, before and after training."""
    layer_drift: bool | None = None
    """How far the weights of each layer moved from the base's, in the report. null: at the end of a run of 50 steps or
    more whose base has at most 4 GB of files; `palimpsest report run_dir=RUN evaluate.layer_drift=true` measures it of
    any. Reads the base, the newest checkpoint and up to eight that are still there before it, on one rank; of its own
    accord no more than 4 GB of them."""
    recovery_steps: int = 0
    """After training, so many steps on replay alone tell covered knowledge from lost knowledge, in the report; the
    weights are thrown away. 20 is usual; 0: none."""
    checkpoint: str = "last"
    """`palimpsest evaluate`: `last`, `best`, a step number, or `base` for the model before training."""
    tasks: TasksConfig = field(default_factory=TasksConfig)
    asked: AskedConfig = field(default_factory=AskedConfig)
    during: DuringConfig = field(default_factory=DuringConfig)
    scores: ScoresConfig = field(default_factory=ScoresConfig)

    @property
    def has_tasks(self) -> bool:
        """Tell whether base and tuned model are asked anything, be it tasks of lm-eval or our own."""
        return bool(self.tasks.names or self.asked.names)

    @property
    def tasks_during(self) -> TasksConfig:
        """Return the tasks that are run during training: asked as all are."""
        return replace(self.tasks, names=self.during.tasks, limit=self.during.limit)


@dataclass
class BestConfig:
    """By which number the best checkpoint is the best. The base, at step 0, never is."""

    metric: str = "eval_mean"
    """eval_mean, eval/SOURCE, of pairs eval_pair_loss/SOURCE and eval_accuracy/SOURCE, of answers with labels
    eval_answer_loss/SOURCE, forgetting (mean rise of the sources that are not target), kl_mean and kl/SET (with
    evaluate.during.kl), or tasks/TASK/METRIC (of evaluate.during.tasks), as in metrics.jsonl. The best by a task is
    saved when it is found; by the others it is the best of those that are saved, each of which is evaluated first."""
    direction: Direction | None = None
    """Which values are better; null: as the metric has it, losses low, scores as lm-eval says."""


@dataclass
class CheckpointConfig:
    """When to save and what to keep."""

    enabled: bool = True
    """False for benchmarks and trials: nothing is written, resumed or exported."""
    every_steps: int | None = None
    """Optimizer steps between checkpoints; 0: only at the end. null: by time, the root of twice what a save costs times
    what is between two failures (Young, Daly), from one minute to an hour; the first after five minutes. Such a save
    waits for the next evaluation by evaluate.every_steps, if that comes in less than the same time again."""
    node_mtbf_days: float = 264.0
    """Days between two failures of a node, for every_steps=null. 264: Llama 3, 419 failures of 2,048 nodes, 54 days."""
    background: bool = True
    """Write while training goes on, from a copy of weights and optimizer in host memory: steps wait for the copy alone.
    Where a node has no room for it, and with false, steps wait until all is on disk."""
    keep_last: int = 2
    """Newest verified checkpoints kept. At least 1."""
    keep_every_steps: int | None = None
    """Keep every checkpoint whose step is a multiple of this for ever."""
    keep_best: bool = True
    """Keep the best checkpoint, by `best`."""
    best: BestConfig = field(default_factory=BestConfig)
    resume: bool = True
    """Go on from the newest checkpoint that can be used; False: begin at step 0, with what is there in abandoned-N."""


class Combination(Enum):
    """How peft adds several LoRA adapters up (`add_weighted_adapter`)."""

    cat = "cat"
    """Exactly the weighted sum: the ranks add up."""
    svd = "svd"
    """The nearest to it with the largest of their ranks."""
    linear = "linear"
    """Sums of the factors, at the same rank: rough, with cross terms."""
    ties = "ties"
    """Yadav et al. 2023, arXiv:2306.01708; keeps `density` of every adapter. At the same rank, as the next ones."""
    dare_ties = "dare_ties"
    """Yu et al. 2024, arXiv:2311.03099: drops at random and rescales, then as ties."""
    dare_linear = "dare_linear"
    """The same, then as linear."""
    magnitude_prune = "magnitude_prune"
    """Keeps the largest values, then as linear."""


class GgufType(Enum):
    """What llama.cpp's converter writes; more kinds are made from these with `llama-quantize`."""

    none = "none"
    """No such file."""
    f32 = "f32"
    """32 bits a weight."""
    f16 = "f16"
    """16 bits a weight."""
    bf16 = "bf16"
    """16 bits a weight, the range of 32."""
    q8_0 = "q8_0"
    """8.5 bits a weight."""


@dataclass
class ExportConfig:
    """What `palimpsest export` writes."""

    checkpoint: str = "last"
    """`last`, `best`, or a step number."""
    output_dir: str | None = None
    """Folder of the exported model; default RUN_DIR/export."""
    dtype: str = "auto"
    """`bfloat16`, `float32`, or `auto`: what the run trained in, which loses nothing of it."""
    max_shard_gb: float = 4.0
    """Largest size of one safetensors file in 10^9 bytes."""
    merge: bool = False
    """An adapter: add it into the base and write the whole model. False writes the adapter alone."""
    average: int = 1
    """Write the mean of so many checkpoints of the run, the named one and those before it (LAWA, arXiv:2209.14981),
    read a tensor at a time without a GPU. In the run checkpoint.keep_last says how many there are,
    checkpoint.every_steps how far apart. An adapter needs merge=true or an alpha: the mean of its factors is not that
    of their product. With `interpolate` the mean takes the tuned model's place. 1: the named one alone."""
    alpha: float = 1.0
    """Write base + alpha (tuned - base): 1 is the tuned model, 0 the base. Range: [0, 1]."""
    interpolate: str | None = None
    """START:STOP:STEP of alphas to evaluate instead of writing a model; `palimpsest export interpolate=0:1:0.1`.

    Suggested is the alpha of the least loss on sets that are no target, among those whose target loss is within 1 % of
    the best and within a tenth of what lies between the best and the worst; without such sets that of the least target
    loss."""
    text_only: bool = False
    """A model that also sees or hears: write its language model alone, as a folder of its own. False writes the whole:
    what is not language is the base's."""
    gguf: GgufType = GgufType.none
    """Write a GGUF file beside the safetensors, by llama.cpp's own converter."""
    llama_cpp: str | None = None
    """Checkout of llama.cpp with convert_hf_to_gguf.py; default: the environment variable LLAMA_CPP."""
    adapters: list[str] = field(default_factory=list)
    """LoRA adapters of one base to write as one: run directories, or folders in peft's format. The base is that of
    the first run directory. `palimpsest export adapters=[runs/a,runs/b] export.output_dir=both`."""
    weights: list[float] = field(default_factory=list)
    """One for each adapter; none given means equal shares that add up to 1."""
    combination: Combination = Combination.cat
    """How they are added up."""
    density: float = 0.5
    """Share of an adapter's values that ties, dare_* and magnitude_prune keep. Range: (0, 1]."""
    despite_gate: bool = False
    """Export although the gate refuses the checkpoint."""
    verify: bool = True
    """Reload the folder and compare its logits with those of the trained model."""
    hub: str | None = None
    """ORG/NAME on the Hugging Face hub to push the verified folder to; made if it is not there. Needs HF_TOKEN or a
    login, which are tried before the export is computed."""
    hub_revision: str | None = None
    """Branch that is pushed to, made if it is not there; null: main."""
    hub_private: bool = True
    """Make the repository private, and refuse one that everybody can read."""
    hub_base: str | None = None
    """ORG/NAME of the base on the hub, where model.path is a folder: for the model card and for adapters."""
