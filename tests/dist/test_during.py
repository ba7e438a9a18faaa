"""Tasks and answers during training on ranks: they change nothing of it, and a checkpoint scores as it did then."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of
from tests.dist.test_resume import lines, losses
from tests.dist.test_tasks import evaluate
from tests.helpers.benchmark_tasks import write_tasks
from trainer.checkpoint.layout import STATE, checkpoints_dir, step_dir
from trainer.config.store import load_config
from trainer.evaluate.tasks.scores import BASE_FILE_DURING

pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")

NAMES = "[local_choice,local_answer]"
METRIC = "tasks/local_choice/acc"
LIMIT = 5


def words_for(workspace: str, tasks: str, stage: int, method: str) -> list[str]:
    """Return a run of six steps with dropout, which the generators of every rank decide."""
    return [
        *(f"model.path={workspace}/dropout", f"zero.stage={stage}", f"tune.method={method}"),
        *("train.max_steps=6", "optim.lr=0.02", "evaluate.kl_packs=1", "checkpoint.every_steps=3"),
        *("checkpoint.keep_last=1", "log.every_steps=1", f"evaluate.tasks.include_path={tasks}"),
        *(["train.micro_batch_size=2"] if stage == 0 else []),
    ]


DURING = [
    *(f"evaluate.during.tasks={NAMES}", "evaluate.during.every_steps=2", "evaluate.during.max_share=1"),
    *(f"evaluate.during.limit={LIMIT}", "evaluate.during.kl=true", "evaluate.during.samples.num=3"),
    *("evaluate.during.samples.max_new_tokens=5", f"checkpoint.best.metric={METRIC}"),
]


def train(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> None:
    from trainer.config.snapshot import freeze
    from trainer.run import training

    config = config_of(workspace, run_dir, *words)
    if mesh.is_first:
        freeze(config, Path(run_dir))
    mesh.barrier()
    assert training.run_training(config).value == "finished"


def train_three(mesh: Any, workspace: str, folder: str, words: list[str]) -> None:
    """Train without tasks and with them, and go on from a copy of the latter's checkpoint after three steps."""
    plain, tasked, resumed = (Path(folder) / name for name in ("plain", "tasked", "resumed"))
    train(mesh, workspace, str(plain), words)
    # The third step stays, to go on from; the best one only because it is the best.
    with_tasks = [*words, *DURING, "checkpoint.keep_every_steps=3"]
    train(mesh, workspace, str(tasked), with_tasks)
    if mesh.is_first:
        shutil.copytree(step_dir(tasked, 3), step_dir(resumed, 3))
        shutil.copy(tasked / BASE_FILE_DURING, resumed)
    mesh.barrier()
    train(mesh, workspace, str(resumed), with_tasks)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tasks(tmp_path_factory.mktemp("tasks")))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((3, "full"), marks=pytest.mark.slow),
        pytest.param((0, "full"), marks=pytest.mark.slow),
        pytest.param((2, "full"), marks=pytest.mark.slow),
        pytest.param((1, "lora"), marks=pytest.mark.slow),
        pytest.param((3, "prefix"), marks=pytest.mark.slow),
    ],
    ids=lambda param: f"zero{param[0]}-{param[1]}",
)
def folder(
    request: Any, pool: Any, workspace: str, tasks: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return the folder of the three runs."""
    path = tmp_path_factory.mktemp("during")
    words = words_for(workspace, tasks, *request.param)
    pool(2).run(train_three, workspace=workspace, folder=str(path), words=words)
    return path


def scores(run_dir: Path) -> dict[int, dict[str, float]]:
    return {
        row["step"]: {key: value for key, value in row.items() if key.startswith("tasks/")}
        for row in lines(run_dir / "metrics.jsonl")
        if METRIC in row
    }


def test_a_run_with_tasks_is_to_the_last_bit_the_run_without(folder):
    """A difference: a generator, the mode of the model or a gradient is not put back."""
    assert losses(folder / "tasked") == losses(folder / "plain") and len(losses(folder / "plain")) == 6


def test_scores_answers_and_the_distance_from_the_base_are_logged_at_their_steps(folder):
    run_dir = folder / "tasked"
    found = scores(run_dir)
    assert sorted(found) == [0, 2, 4, 6]
    assert {METRIC, f"{METRIC}_stderr", "tasks/local_answer/exact_match,as-is"} <= set(found[4])
    answered = lines(run_dir / "samples.jsonl")
    assert [(row["step"], row["number"]) for row in answered] == [
        (s, n) for s in (0, 2, 4, 6) for n in range(3)
    ]
    assert all(row["num_tokens"] <= 5 and row["prompt"] and row["expected"] for row in answered)
    assert len({row["prompt"] for row in answered}) == 3
    rows = [row for row in lines(run_dir / "metrics.jsonl") if "kl_mean" in row]
    assert [row["step"] for row in rows] == [6] and rows[0]["kl_mean"] > 0
    page = (run_dir / "report.html").read_text()
    assert "Through training, on the first 5 documents" in page and 'id="answers"' in page


def test_a_resumed_run_scores_and_answers_at_the_same_steps_as_the_whole_one(folder):
    whole, resumed = folder / "tasked", folder / "resumed"
    assert scores(resumed) == {step: scores(whole)[step] for step in (4, 6)}
    texts = [
        [(row["step"], row["answer"]) for row in lines(path / "samples.jsonl") if row["step"] > 3]
        for path in (whole, resumed)
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 6


def test_the_best_by_a_task_is_kept_named_and_found(folder, pool):
    """And `palimpsest evaluate` gives it the very scores that it had in training."""
    run_dir = folder / "tasked"
    found = {step: row[METRIC] for step, row in scores(run_dir).items() if step}
    best = min(step for step, value in found.items() if value == max(found.values()))
    state = json.loads((step_dir(run_dir, 6) / STATE).read_text())
    assert (state["best_step"], state["best_value"], state["best_metric"]) == (best, found[best], METRIC)
    saved = [row for row in lines(run_dir / "ledger.jsonl") if row["event"] == "saved"]
    assert saved[-1]["best"] == {"step": best, "metric": METRIC, "value": found[best]}
    assert best in [row["step"] for row in saved] and step_dir(run_dir, best).is_dir()
    asked = [f"evaluate.tasks.names={NAMES}", f"evaluate.tasks.limit={LIMIT}", "evaluate.checkpoint=best"]
    (code, _, problems), _ = pool(2).run(evaluate, run_dir=str(run_dir), overrides=asked)
    assert code == 0, problems
    record = json.loads((run_dir / "evaluation.json").read_text())
    assert record["checkpoint"] == step_dir(run_dir, best).name
    told = {
        f"tasks/{task}/{metric}": value
        for task, row in record["tasks"].items()
        for metric, value in row.items()
    }
    assert told == {key: value for key, value in scores(run_dir)[best].items() if not key.endswith("_stderr")}


def test_the_base_is_scored_once_for_all_runs(folder):
    cache = Path(load_config(folder / "tasked" / "config.yaml").data.cache_dir) / "evaluations"
    kept = (folder / "tasked" / BASE_FILE_DURING).read_text()
    assert kept in [path.read_text() for path in cache.glob("tasks-*.json")]
    assert {path.name for path in checkpoints_dir(folder / "tasked").glob("step-*")} >= {"step-00000006"}
