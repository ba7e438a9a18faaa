"""`palimpsest evaluate`: held-out loss of the base or of a checkpoint, compared with the base, and the gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.checkpoint.layout import STATE
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.named import find_checkpoint
from trainer.checkpoint.shards import open_shards
from trainer.checkpoint.state import TrainState, read_state
from trainer.config.schema import RunConfig
from trainer.config.snapshot import write_atomic
from trainer.data.store.store import data_digest
from trainer.dist.progress import PROGRESS, Phase
from trainer.errors import CheckpointError, ConfigError
from trainer.evaluate.gate import GateResult, check_gate, check_tasks
from trainer.evaluate.held_out import held_out_losses, held_out_pieces
from trainer.evaluate.record import BASE_FILE, FILE_NAME, ForgettingRecord, read_forgetting
from trainer.evaluate.tasks.scores import TaskScores
from trainer.model.tune.prompt import virtual_off
from trainer.objective.preference.judged import JudgedPairs
from trainer.objective.preference.judged_answers import JudgedAnswers
from trainer.report.announce import announce
from trainer.run.asking import build_task_scores
from trainer.run.conclusion import tell_trackers
from trainer.run.evaluator import build_forgetting, replay_record, texts_of
from trainer.run.held_out_answers import HeldOutAnswers, held_out_answers, told_answers
from trainer.run.held_out_pairs import HeldOutPairs, held_out_pairs, told
from trainer.run.proofs import prove_head
from trainer.run.references import build_references
from trainer.run.scored_pairs import scored_pairs
from trainer.run.session import Session, open_session
from trainer.runtime.disk import disk_explained
from trainer.runtime.log import EVALUATION
from trainer.runtime.shortage import shortage_explained

BASE = "base"


def run_evaluation(config: RunConfig) -> bool:
    """Evaluate and return whether the gate, if there is one, let the model pass. Collective: every rank."""
    with ExitStack() as stack:
        # Inside the stack: the other ranks hear of the sentence, not of what it explains.
        size = config.evaluate.micro_batch_size
        with shortage_explained("evaluate.micro_batch_size", size, -1), disk_explained(Path(config.run_dir)):
            session = open_session(config, stack, logs_of=EVALUATION)
            prove_head(session)
            PROGRESS.begin(Phase.evaluate)
            passed = _evaluate(session)
            if session.mesh.is_first and config.evaluate.checkpoint != BASE:
                tell_trackers(config)
            session.mesh.barrier()
            return passed


def _evaluate(session: Session) -> bool:
    config, mesh = session.config, session.mesh
    which = config.evaluate.checkpoint
    if which == BASE:
        with virtual_off(session.policy.module):
            _evaluate_base(session)
        return True
    folder: Path = mesh.from_first(lambda: find_checkpoint(session.run_dir, which, "evaluate.checkpoint"))
    _refuse_other_inputs(session, folder)
    if config.gate.has_rules:
        _refuse_without_base(session)
    task_scores = build_task_scores(session)
    if task_scores is not None:
        with virtual_off(session.policy.module):
            task_scores.measure_base()  # the weights are the base's until the checkpoint is loaded
    references = build_references(session, session.mixing())
    pairs = held_out_pairs(session, None if references is None else references.validation)
    preferred = pairs or held_out_answers(session, references)
    session.policy.engine.load(open_shards(folder))
    _evaluate_tuned(session, folder.name, read_state(folder / STATE), task_scores, preferred)
    if not config.gate.has_rules:
        return True
    passed: bool = mesh.from_first(lambda: gate_passes(config, folder.name))
    return passed


def _refuse_other_inputs(session: Session, folder: Path) -> None:
    """Raise when the data or the frozen base is not what the checkpoint was trained with. Collective: every rank.

    Raises:
        CheckpointError: Names what differs; provenance.json, where it is there, said more before.
    """
    manifest = read_manifest(folder)
    before, now = json.loads(manifest.data_digest), json.loads(data_digest(session.stores))
    differ = [f"`data.sources.{name}`" for name in now if name in before and before[name] != now[name]]
    base = manifest.facts.get("base")
    if base is not None and base != session.base_digest():
        differ.append("the base (`model.path`)")
    if differ:
        raise CheckpointError(
            f"{folder} must be evaluated with the data and the base that it was trained with, but of these "
            f"{', '.join(differ)} has changed. Bring back what the run read."
        )


def _refuse_without_base(session: Session) -> None:
    """Raise where the gate would have nothing to compare with after all has been evaluated. Collective: every rank."""
    forgetting = build_forgetting(session)
    if forgetting is None or not forgetting.has_base:
        raise CheckpointError(_without(BASE_FILE, session.run_dir))


def _without(file: str, run_dir: Path) -> str:
    return (
        f"{run_dir} must hold {file} for the gate, but has none instead. Evaluate the base first: "
        f"palimpsest evaluate run_dir={run_dir} evaluate.checkpoint=base, then the checkpoint."
    )


def _evaluate_base(session: Session) -> None:
    if (scored := scored_pairs(session)) is not None:
        _show(session, "base model", {}, [], scored.judge())
        return
    forgetting, task_scores = build_forgetting(session), build_task_scores(session)
    scores = [score.to_plain() for score in task_scores.measure_base()] if task_scores is not None else []
    if forgetting is None:
        pieces = held_out_pieces(session.policy, session.held_out())
        losses = {name: found.mean for name, found in pieces.items()}
    else:
        losses = forgetting.measure_base()
    _show(session, "base model", losses, [(score, "value", "stderr") for score in scores])


def _evaluate_tuned(
    session: Session,
    label: str,
    state: TrainState,
    task_scores: TaskScores | None,
    preferred: HeldOutPairs | HeldOutAnswers | None,
) -> None:
    if (scored := scored_pairs(session)) is not None:
        _show(session, label, {}, [], scored.judge())
        return
    found = held_out_losses(session.policy, session.held_out())
    tasks = task_scores.measure_tuned(state.step) if task_scores is not None else []
    losses = {name: pieces.mean for name, pieces in found.pieces.items()}
    judged: Mapping[str, JudgedPairs | JudgedAnswers] = {} if preferred is None else preferred.judge(found)
    shown = [(compared.to_plain(), "tuned", "tuned_stderr") for compared in tasks]
    _show(session, label, losses, shown, judged)
    forgetting = build_forgetting(session)
    if forgetting is None:
        return
    replay = replay_record(session.mixing(), state)
    if forgetting.compare(state, found.pieces, texts_of(session), replay, tasks) and session.mesh.is_first:
        announce(session.run_dir)


def _show(
    session: Session,
    label: str,
    losses: dict[str, float],
    scores: list[tuple[dict[str, Any], str, str]],
    judged: Mapping[str, JudgedPairs | JudgedAnswers] = MappingProxyType({}),
) -> None:
    """Print and keep losses, judged pairs or answers, and task scores; a score has its keys of value and error."""
    if not session.mesh.is_first:
        return
    for name, loss in losses.items():
        print(f"{label}: held-out loss of {name}: {loss:.4f} nats", flush=True)
    for name, found in judged.items():
        said = told(found) if isinstance(found, JudgedPairs) else told_answers(found)
        print(f"{label}: held-out {_kind(found)} of {name}: {said}", flush=True)
    tasks: dict[str, dict[str, float | None]] = {}
    for score, value, stderr in scores:
        tasks.setdefault(score["task"], {})[score["metric"]] = score[value]
        shown = "not finite" if score[value] is None else f"{score[value]:.4f}"
        error = "" if score[stderr] is None else f" (standard error {score[stderr]:.4f})"
        print(f"{label}: {score['task']} {score['metric']}: {shown}{error}", flush=True)
    record: dict[str, Any] = {"checkpoint": label, "losses": losses, "tasks": tasks}
    for name, found in judged.items():
        record.setdefault(_kind(found), {})[name] = found.to_plain()
    write_atomic(session.run_dir / "evaluation.json", json.dumps(record, indent=2) + "\n")


def _kind(found: JudgedPairs | JudgedAnswers) -> str:
    return "pairs" if isinstance(found, JudgedPairs) else "answers"


def gate_passes(config: RunConfig, checkpoint: str) -> bool:
    """Print what the gate found in forgetting.json of a checkpoint and return whether all rules hold.

    Raises:
        ConfigError: A rule about a set or task that was not evaluated.
        CheckpointError: There is no measurement of this checkpoint.
    """
    found = read_measurement(Path(config.run_dir), checkpoint)
    results = check_gate(config.gate.sets, found.sets) + check_tasks(config.gate.tasks, found.tasks)
    Console().print(gate_table(results))
    failed = sum(not result.passed for result in results)
    print(f"Gate: {'passed' if not failed else f'{failed} of {len(results)} rules broken'}.", flush=True)
    return not failed


def read_measurement(run_dir: Path, checkpoint: str) -> ForgettingRecord:
    """Return forgetting.json if it is about a checkpoint."""
    found = read_forgetting(run_dir / FILE_NAME)
    if found is None:
        raise CheckpointError(_without(FILE_NAME, run_dir))
    if found.run.tuned != checkpoint:
        raise CheckpointError(
            f"{run_dir / FILE_NAME} must be about {checkpoint}, but is about {found.run.tuned} instead. Run "
            f"palimpsest evaluate run_dir={run_dir} evaluate.checkpoint={int(checkpoint.split('-')[-1])}."
        )
    return found


def gate_table(results: list[GateResult]) -> Table:
    """Return a row a rule: what was allowed, what happened, by how much it is broken."""
    table = Table(title="Gate", title_justify="left")
    for column in ("set or task", "rule"):
        table.add_column(column, overflow="fold")
    for column in ("change", "broken by"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for result in results:
        rule = f"{result.unit} {result.rule} {result.allowed:g}"
        broken = "" if result.passed else f"{result.excess:.4f}"
        table.add_row(
            result.subject, rule, f"{result.change:+.4f}", broken, "pass" if result.passed else "FAIL"
        )
    return table


def refuse_failing(config: RunConfig, checkpoint: str) -> None:
    """Raise when a gate is set and the checkpoint fails it.

    Raises:
        ConfigError: The gate refuses the checkpoint.
    """
    if config.gate.has_rules and not gate_passes(config, checkpoint):
        raise ConfigError(
            f"`gate` must pass before {checkpoint} is exported, but does not. Train with more replay, export "
            "another checkpoint, or take it all the same with export.despite_gate=true."
        )
