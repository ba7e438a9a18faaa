"""`palimpsest export interpolate=0:1:0.1`: evaluates models between base and tuned and says which to take.

One process, one GPU or the CPU; tensors are streamed, so beside the model under evaluation one is in memory.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from trainer.checkpoint.named import find_checkpoint
from trainer.command.write_export import tuned_tensors
from trainer.config.check import check_config
from trainer.config.data import Role
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.config.train import ExportConfig
from trainer.config.tune import Quantise
from trainer.data.store.prepared import in_rows, open_all
from trainer.dist.mesh import alone
from trainer.engine.engine import undivided
from trainer.engine.policy import Policy
from trainer.errors import ConfigError, DataError, Exit
from trainer.evaluate.forgetting import Texts, prompts_for_kl
from trainer.evaluate.held_out import HeldOut, held_out_pieces
from trainer.evaluate.kl import divergence_by_document, take_references
from trainer.export.blend import blended
from trainer.model.attention import choose_attention, offered
from trainer.model.base_files import open_base
from trainer.model.carry import carried_by
from trainer.model.causal import CausalLM
from trainer.model.head.head import install_loss_head
from trainer.model.kernels import apply_kernels
from trainer.model.load import load_model, read_config
from trainer.model.resolve import resolve_model
from trainer.model.tokenizer import configured_tokenizer
from trainer.report.build import build_report
from trainer.report.interpolation import FILE_NAME, rule_sentence
from trainer.run.identity import refuse_others
from trainer.run.packing import with_packing
from trainer.runtime.say import say

WITHIN = 0.01
"""A target loss this close to the best, relatively, counts as good as it."""
OF_SPAN = 0.1
"""And at most this share of what lies between the best and the worst: a run that learnt little has learnt something."""


@dataclass(frozen=True, slots=True)
class AlphaPoint:
    """Held-out losses of one alpha, in nats."""

    alpha: float
    losses: dict[str, float]
    target_nats: float
    """Mean over the sets with role=target."""
    general_nats: float | None
    """Mean over all other sets; None without any."""
    kl: dict[str, float] = field(default_factory=dict)
    """KL(base || mixture) by set of prompts, in nats: new-task text, and conversations where there is a template."""


def interpolate(config: RunConfig) -> int:
    """Evaluate every alpha, write interpolation.json and the report, and print the one to take."""
    check_config(config, only=("export",))
    config = with_packing(config, says=False)
    alphas = parse_alphas(config.export.interpolate or "")
    run_dir = Path(config.run_dir)
    checkpoint = find_checkpoint(run_dir, config.export.checkpoint)
    source = resolve_model(config.model, Path(config.data.cache_dir))
    refuse_others(config, source)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    capability = torch.cuda.get_device_capability() if device.type == "cuda" else None
    has = offered(read_config(source, config.model))
    attention = choose_attention(config.model.attention, capability, config.zero.dtype, has=has)
    if config.tune.quantise is not Quantise.none:
        print(
            "Base and tuned model are taken in full precision, as export.merge=true writes them: not in NF4."
        )
    loaded = load_model(source, config.model, attention, config.zero.dtype, None, device).model
    apply_kernels(loaded, config.model.kernels, device.type == "cuda")
    tensors = dict[str, Tensor]([*loaded.named_parameters(), *loaded.named_buffers()])
    install_loss_head(loaded, config.model.loss_chunk_tokens)
    carries = carried_by(loaded.config) is not None
    policy = Policy(
        undivided(CausalLM(loaded)), alone(device), attention.is_flash, in_rows(config.data), carries
    )
    held_out, drift = _measured_on(config, source, policy)
    points, base = [], open_base(source, config.model)
    for alpha in track(alphas, description="interpolating", console=Console()):
        _set_weights(tensors, blended(tuned_tensors(config, checkpoint, base), base, alpha))
        pieces = held_out_pieces(policy, held_out)
        losses = {name: found.mean for name, found in pieces.items()}
        points.append(_point(config, alpha, losses, drift()))
    best = suggest(points)
    record = {
        "checkpoint": checkpoint.name,
        "average": config.export.average,
        "suggested_alpha": None if best is None else best.alpha,
        "points": [asdict(p) for p in points],
    }
    write_atomic(run_dir / FILE_NAME, json.dumps(record, indent=2) + "\n")
    console = Console()
    console.print(_table(points, best))
    say(console, f"Report: {build_report(run_dir)}")
    has_general = points[0].general_nats is not None
    say(console, rule_sentence(None if best is None else best.alpha, has_general))
    if best is not None:
        say(console, f"To write that model: {export_words(config, best.alpha)}")
    return Exit.done


def export_words(config: RunConfig, alpha: float) -> str:
    """Return the command that writes what was measured at an alpha, for a shell."""
    own, usual = config.export, ExportConfig()
    words = [f"run_dir={config.run_dir}"]
    words += [f"export.average={own.average}"] * (own.average != usual.average)
    words += [f"export.checkpoint={own.checkpoint}"] * (own.checkpoint != usual.checkpoint)
    return shlex.join(["palimpsest", "export", *words, f"export.alpha={alpha:g}"])


def parse_alphas(text: str) -> list[float]:
    """Return the values of START:STOP:STEP, both ends included.

    Raises:
        ConfigError: Another form, no step, or values outside [0, 1].
    """
    fix = "Set interpolate=0.0:1.0:0.1."
    try:
        start, stop, step = (float(part) for part in text.split(":"))
    except ValueError as error:
        raise ConfigError(
            f"`export.interpolate` must be START:STOP:STEP, but is {text!r} instead. {fix}"
        ) from error
    if not (0 <= start <= stop <= 1 and step > 0):
        raise ConfigError(
            f"`export.interpolate` must rise from 0 or more to 1 or less by a step above 0, but is {text!r} "
            f"instead. {fix}"
        )
    count = int((stop - start) / step + 1e-9) + 1
    return [round(start + i * step, 10) for i in range(count)]


def suggest(points: list[AlphaPoint]) -> AlphaPoint | None:
    """Return the point that forgets least among those whose target loss is about the best; None where that is the base.

    About the best: within 1 % of it, and within a tenth of what lies between the best and the worst. Without general
    sets nothing says what is forgotten, and it is the one of the least target loss.
    """
    best = min(points, key=lambda point: (point.target_nats, point.alpha))
    span = max(point.target_nats for point in points) - best.target_nats
    allowed = best.target_nats + min(best.target_nats * WITHIN, span * OF_SPAN)
    good = [point for point in points if point.target_nats <= allowed and point.general_nats is not None]
    found = min(good, key=lambda point: (point.general_nats or 0.0, point.alpha), default=best)
    return found if found.alpha > 0 else None


def _measured_on(
    config: RunConfig, source: str, policy: Policy
) -> tuple[HeldOut, Callable[[], dict[str, float]]]:
    """Return the held-out text, and what says how far answers are from the base's, whose weights are still loaded."""
    tokenizer = configured_tokenizer(config.model, source)
    stores = open_all(config.data, tokenizer)
    targets = [n for n, s in config.data.sources.items() if s.role is Role.target]
    if not any(stores[name].validation.num_packs for name in targets):
        raise DataError(
            "`data.validation_frac` must hold out documents of a target source for an interpolation, but none are "
            "held out instead. Set it before training."
        )
    pad_id, max_packs = tokenizer.pad_id or 0, config.evaluate.kl_packs
    held_out = HeldOut(
        names=list(stores),
        stores=[store.validation for store in stores.values()],
        max_packs=config.data.max_validation_packs,
        micro_batch_size=config.evaluate.micro_batch_size,
        pad_id=pad_id,
    )
    if not max_packs:
        return held_out, dict
    prompts = prompts_for_kl(config.data, max_packs, Texts(stores, tokenizer), pad_id)
    references = take_references(policy, prompts)

    def drift() -> dict[str, float]:
        found = divergence_by_document(policy, prompts, references)
        return {name: sum(sums) / sum(counts) for name, (sums, counts) in found.items()}

    return held_out, drift


def _set_weights(tensors: dict[str, Tensor], stream: Iterator[tuple[str, Tensor]]) -> None:
    with torch.no_grad():
        for name, tensor in stream:
            if name in tensors:
                tensors[name].copy_(tensor)


def _point(config: RunConfig, alpha: float, losses: dict[str, float], kl: dict[str, float]) -> AlphaPoint:
    by_role = [(config.data.sources[name].role is Role.target, loss) for name, loss in losses.items()]
    target = [loss for is_target, loss in by_role if is_target]
    general = [loss for is_target, loss in by_role if not is_target]
    return AlphaPoint(
        alpha,
        losses,
        sum(target) / len(target),
        sum(general) / len(general) if general else None,
        kl,
    )


def _table(points: list[AlphaPoint], best: AlphaPoint | None) -> Table:
    table = Table(title="Held-out loss between base (0) and tuned (1), nats", title_justify="left")
    names, prompts = list(points[0].losses), list(points[0].kl)
    for column in ("alpha", *names, *(f"KL {name}" for name in prompts), "verdict"):
        table.add_column(column, justify="left" if column == "verdict" else "right", overflow="fold")
    for point in points:
        cells = [f"{point.losses[name]:.4f}" for name in names]
        cells += [f"{point.kl[name]:.4f}" for name in prompts]
        table.add_row(f"{point.alpha:g}", *cells, "suggested" if point is best else "")
    return table
