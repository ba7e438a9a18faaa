"""`palimpsest plan`: what a configured run needs, before a GPU is asked for. Loads no torch for known architectures."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass

from rich.console import Console

from trainer.checkpoint.space import BYTES_PER_PARAMETER
from trainer.command.counted import config_json, find_shape, known_shape, run_shape, tuned_weights
from trainer.command.fitting import DTYPE_LEFT, fitted
from trainer.command.missing_here import needs_of
from trainer.command.model_rules import model_rules
from trainer.command.plan_answers import answer_notes
from trainer.command.plan_figure import write_figure
from trainer.command.plan_probes import probe_notes
from trainer.command.plan_replay import replay_notes
from trainer.command.plan_teacher import teacher_notes
from trainer.command.plan_time import NOTE as TIME_NOTE
from trainer.command.plan_time import (
    Timing,
    fastest_sentence,
    save_sentence,
    spare_on_nodes,
    time_sentences,
    timing_of,
)
from trainer.command.rules import broken_rules
from trainer.command.teacher_rules import teacher_problems
from trainer.command.ways import most_of_node, ways_to_fit
from trainer.config.check import refuse
from trainer.config.model import Attention, Kernels
from trainer.config.rule import told_together
from trainer.config.schema import RunConfig
from trainer.config.tune import ALL_LINEAR, EXPERTS, Quantise, TuneConfig, TuneMethod
from trainer.errors import TrainerError
from trainer.forecast.activations import score_bytes
from trainer.forecast.adapter_sizes import NF4_BYTES, adapters, whole_stage
from trainer.forecast.advice import smallest_change
from trainer.forecast.card import DEFAULT_GIB, Cards, find_cards
from trainer.forecast.memory import (
    EAGER,
    FLASH,
    GIB,
    RunShape,
    Weights,
    attention_of,
    forecast,
    full_weights,
)
from trainer.forecast.printed import (
    Gpu,
    adapter_table,
    memory_table,
    nodes_table,
    parameter_table,
    run_sentence,
    verdict,
)
from trainer.forecast.shapes import DecoderShape
from trainer.forecast.tuned import is_one_function, named_targets
from trainer.model.dtype import LEAST_CAPABILITY, Hardware, is_hidden
from trainer.model.on_disk import model_problems
from trainer.runtime.say import say


def show_plan(config: RunConfig) -> bool:
    """Print the forecast of a run and write its figure where one is asked for; tell whether the run fits.

    Raises:
        TrainerError: The configuration or the model's config.json cannot be used.
    """
    cards = find_cards()
    num_ranks, gpu = _ranks_of(config, cards), _gpu_of(config, cards)
    shape, origin = _checked_shape(config, num_ranks)
    hardware = Hardware(cards.capability or LEAST_CAPABILITY, False, is_hidden(os.environ))
    fit = fitted(config, num_ranks, True, gpu.gib, hardware=hardware, gpu_name=cards.name)
    config = fit.config
    run = run_shape(config, num_ranks)
    weights = tuned_weights(config, shape)
    stages = {stage: dataclasses.replace(run, stage=stage) for stage in range(4)}
    peaks = {stage: forecast(shape, of, weights) for stage, of in stages.items()}
    shown = {stage: peak for stage, peak in peaks.items() if not stages[stage].is_refused}
    full = {stage: forecast(shape, of, full_weights(shape)) for stage, of in stages.items()}
    lora = adapters(shape, run, _targets(config.tune), is_one_function(config.tune))
    said = _verdict(config, shape, run, weights, gpu)
    timing = timing_of(config, shape, run, weights, cards)
    known = None if isinstance(timing, str) else timing
    if config.plan.output is not None:
        write_figure(config.plan.output, shape, lora, full, whole_stage(run), known)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)

    say(console, f"Parameters of {origin}", "bold")
    console.print(parameter_table(shape), "")
    say(console, "Peak memory of one GPU in GiB", "bold")
    say(console, run_sentence(shape, run))
    console.print(memory_table(shown, run, gpu.reserve_gib, gpu.gib), "")
    say(console, said, "bold")
    if isinstance(timing, str):
        say(console, f"\n{timing}")
    else:
        _show_time(console, config, shape, run, weights, timing, gpu)
    say(console, f"\nLoRA on {_adapted(config.tune, shape)}, and the peak memory of one GPU in GiB", "bold")
    console.print(adapter_table(shape, lora, full, whole_stage(run)), "")
    if config.model.warning is not None:
        say(console, config.model.warning, "bold")
    if fit.dtype is not None:
        say(console, f"- {fit.dtype.sentence if cards.capability or hardware.is_hidden else DTYPE_LEFT}")
    notes = [*_asked_notes(config, shape, run, weights, known), *_notes(config, shape, run, cards, weights)]
    for note in notes if known is None else [*notes, TIME_NOTE]:
        say(console, f"- {note}")
    if config.plan.output is not None:
        say(console, f"Figure: {config.plan.output}")
    fits = gpu.spare_gib(peaks[run.stage]) >= 0
    if not fits and not config.plan.strict:
        say(
            console,
            "The run does not fit. This is no error here: with plan.strict=true the exit code is 3.",
            "bold",
        )
    return fits


def _checked_shape(config: RunConfig, num_ranks: int) -> tuple[DecoderShape, str]:
    """Return the model's counts and where they are from.

    Raises:
        ConfigError: Lists every rule that training would refuse, and why the model cannot be counted.
    """
    rules = [
        *broken_rules(config, "plan", num_ranks),
        *model_problems(config.model, needs_of(config, "plan")),
        *teacher_problems(config, needs_of(config, "plan")),
    ]
    if any(rule.is_in(("model",)) for rule in rules):
        refuse(rules)
    try:
        shape, origin = find_shape(config.model)
    except TrainerError as error:
        raise told_together([*(rule.sentence for rule in rules), str(error)]) from error
    refuse([*rules, *model_rules(config, config_json(config.model)[0], shape)])
    return shape, origin


def _show_time(
    console: Console,
    config: RunConfig,
    shape: DecoderShape,
    run: RunShape,
    weights: Weights,
    timing: Timing,
    gpu: Gpu,
) -> None:
    spare_gib = spare_on_nodes(config, shape, run, weights, gpu)
    fits = gpu.spare_gib(forecast(shape, run, weights)) >= 0
    say(console, "\nTime" if fits else "\nTime, were there room in memory", "bold")
    for sentence in time_sentences(config, timing):
        say(console, sentence)
    console.print(nodes_table(timing.by_nodes, spare_gib))
    say(console, fastest_sentence(config, shape, run, weights, timing, gpu))
    say(console, save_sentence(config, run, weights))


def _verdict(config: RunConfig, shape: DecoderShape, run: RunShape, weights: Weights, gpu: Gpu) -> str:
    """Return whether the run fits; where it does not, or barely, the smallest change on its GPUs, else other ways."""
    peak = forecast(shape, run, weights)
    advice, ways, spare_gib = None, [], gpu.spare_gib(peak)
    if spare_gib < gpu.margin_gib:
        wanted_gib = gpu.free_gib - (gpu.margin_gib if spare_gib >= 0 else 0.0)
        same = (run.offload_optimizer,)
        advice = smallest_change(shape, run, weights, wanted_gib, config.cluster.num_nodes, (1,), same)
        ways = [] if advice is not None else ways_to_fit(config, shape, run, wanted_gib)
    return verdict(peak, gpu, advice, ways)


def fit_sentence(config: RunConfig) -> str | None:
    """Return whether a composed run fits the GPUs of this machine, or one that is assumed; None where torch must count.

    Raises:
        TrainerError: The model's config.json or the batch cannot be used.
    """
    shape = known_shape(config)
    if shape is None:
        return None
    cards = find_cards()
    num_ranks, gpu = _ranks_of(config, cards), _gpu_of(config, cards)
    config = fitted(config, num_ranks, can_load=False, here_gib=gpu.gib, gpu_name=cards.name).config
    return _verdict(config, shape, run_shape(config, num_ranks), tuned_weights(config, shape), gpu)


def _ranks_of(config: RunConfig, cards: Cards) -> int:
    """Return the ranks of a run that starts here, or where it says."""
    return config.cluster.num_nodes * (config.cluster.ranks_per_node or max(cards.count, 1))


def _gpu_of(config: RunConfig, cards: Cards) -> Gpu:
    """Return the GPU that a run is planned for: the named one, the one that is here, or an assumed one."""
    is_assumed = config.gpu_gib is cards.gib is None
    return Gpu(config.gpu_gib or cards.gib or DEFAULT_GIB, config.plan.reserve_gib, is_assumed)


def _targets(tune: TuneConfig) -> list[str] | None:
    """Return the last names of the adapted layers; None for all, and for a pattern, which needs the model's names."""
    is_named = tune.method is TuneMethod.lora and tune.target_pattern is None
    found = named_targets(tune) if is_named else None
    return None if found is None else [name.rsplit(".", 1)[-1] for name in found] or None


def _adapted(tune: TuneConfig, shape: DecoderShape) -> str:
    """Return the layers of the table over r, and that it leaves out the experts of a mixture."""
    named = _targets(tune)
    beside = (
        f", without tune.modules_to_save ({', '.join(tune.modules_to_save)})" if tune.modules_to_save else ""
    )
    if named or not shape.experts:
        return f"{', '.join(named or ['all linear layers'])}{beside}"
    share = f"the experts, {100 * shape.experts / shape.num_params:.0f} % of the parameters"
    if EXPERTS in tune.target:
        return f"all linear layers (tune.target has {share}, as well, which this table leaves out)"
    return f"all linear layers, without {share} (tune.target=[{ALL_LINEAR},{EXPERTS}] adapts them too)"


@dataclass(frozen=True, slots=True)
class LightForecast:
    """What a submission says of a run without loading torch."""

    need_gib: float
    """Peak of one GPU with the reserve."""
    gpu_gib: float | None
    """Memory of one GPU; None where nobody said."""
    fits: bool | None
    advice: str | None
    checkpoint_bytes: int


def forecast_without_torch(config: RunConfig, num_ranks: int) -> LightForecast | None:
    """Return the forecast of a checked configuration; None where only torch can count the model.

    Raises:
        TrainerError: The model's config.json or the ZeRO section cannot be used.
    """
    shape = known_shape(config)
    if shape is None:
        return None
    refuse([*model_rules(config, config_json(config.model)[0], shape)])
    gpu_gib = config.gpu_gib
    config = fitted(config, num_ranks, can_load=False).config
    run = run_shape(config, num_ranks)
    weights = tuned_weights(config, shape)
    need_gib = forecast(shape, run, weights).gib + config.plan.reserve_gib
    fits = None if gpu_gib is None else need_gib <= gpu_gib
    advice = None
    if gpu_gib is not None and not fits:
        limit_gib = gpu_gib - config.plan.reserve_gib
        most = most_of_node(config, num_ranks)
        found_change = smallest_change(
            shape, run, weights, limit_gib, config.cluster.num_nodes, most_of_node=most
        )
        advice = None if found_change is None else " ".join(found_change.overrides)
    size = weights.num_trainable * BYTES_PER_PARAMETER
    return LightForecast(need_gib, gpu_gib, fits, advice, size)


def _asked_notes(
    config: RunConfig, shape: DecoderShape, run: RunShape, weights: Weights, known: Timing | None
) -> list[str]:
    """Return what is asked before the first step, or beside it: of the model itself, or of a teacher."""
    given = (config, shape, run, weights, known)
    return [*answer_notes(*given), *teacher_notes(*given)]


def _notes(
    config: RunConfig, shape: DecoderShape, run: RunShape, cards: Cards, weights: Weights
) -> list[str]:
    """Return what the numbers leave open."""
    notes = [*replay_notes(config), *shape.notes, *probe_notes(config)]
    attention = attention_of(shape, run)
    if config.tune.method is not TuneMethod.full:
        share = weights.num_trainable / (weights.num_frozen + weights.num_trainable)
        notes.append(
            f"tune.method={config.tune.method.value} as configured trains {weights.num_trainable:,} parameters "
            f"({100 * share:.2g} %)."
        )
    if config.tune.quantise is not Quantise.none:
        notes.append(
            f"The base is in NF4: {weights.frozen_bytes / GIB:.2f} GiB instead of "
            f"{weights.num_frozen * run.element_bytes / GIB:.2f} in {config.zero.dtype}. Embeddings, norms and the "
            "head stay so. ZeRO-3 shards it when all of it is read, and keeps the constants whole."
        )
        if shape.experts:
            size = shape.experts * run.element_bytes / 1e9
            notes.append(
                f"Experts are no linear layers and stay in {config.zero.dtype}: {size:.4g} GB of the base."
            )
    if config.tune.method is TuneMethod.lora and config.tune.target_pattern is not None:
        notes.append("The table over r takes `tune.target_pattern` for all linear layers.")
    if not config.cluster.ranks_per_node and not cards.count:
        notes.append("There is no GPU here, so one rank a node is counted: set cluster.ranks_per_node.")
    if config.plan.gpu_gib is config.cluster.gpu_gib is cards.gib is None:
        notes.append(f"There is no GPU here, so one of {DEFAULT_GIB:.0f} GiB is assumed: set plan.gpu_gib.")
    if attention == EAGER:
        notes.append(_eager_note(shape, run))
    is_auto = (
        attention == FLASH and config.model.attention is Attention.auto,
        config.model.kernels is Kernels.auto,
    )
    if any(is_auto):
        taken = " and ".join(
            name for name, is_it in zip(("flash attention", "Liger"), is_auto, strict=True) if is_it
        )
        notes.append(f"`auto` is taken for {taken}: without it activations take more.")
    if run.offload_optimizer:
        host_bytes = 16 * weights.num_trainable / config.cluster.num_nodes
        notes.append(
            f"Optimizer state and fp32 gradients take {host_bytes / GIB:.0f} GiB of host memory on each node."
        )
    if run.expert_parallel > 1:
        notes.append(
            f"The experts of a layer are counted as shared by {run.expert_parallel} ranks; the buffers in which tokens "
            "travel between them are not counted."
        )
    if config.zero.extra:
        notes.append("`zero.extra` is not part of the forecast.")
    notes.append(
        "Parts are GiB of torch's allocator at the moment of the peak. QLoRA keeps linear layers of the base in NF4 "
        f"with double quantisation, {NF4_BYTES:.3f} bytes a parameter (arXiv:2305.14314). The measured peaks are those "
        "in benchmarks/results: full fine-tuning, LoRA and QLoRA of an 8B shape, one micro-step. Accumulation, SDPA "
        "and offload are counted the same way, but were not measured."
    )
    return notes


def _eager_note(shape: DecoderShape, run: RunShape) -> str:
    size = score_bytes(shape, run.micro_batch_size * run.seq_len**2, run.element_bytes)
    why = (
        "" if shape.has_sdpa else ", because the model has no SDPA, nor the flash attention of the extra gpu"
    )
    return (
        f"Eager attention is counted{why}: the scores of all pairs of a pack are {size / GIB:.1f} GiB in a layer that "
        "is not recomputed, and grow with the square of data.seq_len."
    )
