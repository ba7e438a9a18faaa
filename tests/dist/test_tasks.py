"""Benchmark tasks on real ranks: one rank and two agree under every kind of sharding, and the gate reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, session_of
from tests.helpers.benchmark_tasks import NAMES, write_tasks
from trainer.config.store import load_config
from trainer.errors import ConfigError, DataError
from trainer.evaluate.tasks.scores import BASE_FILE

pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")

ASKED = f"evaluate.tasks.names=[{','.join(NAMES)}]"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tasks(tmp_path_factory.mktemp("tasks")))


def score(mesh: Any, workspace: str, tasks: str, run_dir: str, words: list[str]) -> list[Any]:
    """Return the base's scores and some answers; nothing is taken from another run."""
    from trainer.evaluate.tasks.greedy import Prompt, continue_greedily
    from trainer.run.asking import build_task_scores

    config = config_of(
        workspace,
        run_dir,
        *words,
        ASKED,
        f"evaluate.tasks.include_path={tasks}",
        "evaluate.tasks.batch_tokens=150",
        "evaluate.tasks.num_fewshot=1",
    )
    with session_of(config) as session:
        mesh.barrier()
        if mesh.is_first:
            for path in (Path(config.data.cache_dir) / "evaluations").glob("tasks-*"):
                path.unlink()
        mesh.barrier()
        task_scores = build_task_scores(session)
        scores = [one.to_plain() for one in task_scores.measure_base()]
        prompts = [Prompt(list(range(50, 53 + 7 * n)), 3 + 2 * n, ()) for n in range(5)]
        answers = continue_greedily(task_scores._model, prompts, lambda ids: "")
    return [scores, answers]


@pytest.mark.parametrize(
    ("num_ranks", "words"),
    [
        pytest.param(1, ["zero.stage=3"], marks=pytest.mark.slow),
        pytest.param(2, ["zero.stage=0"], marks=pytest.mark.slow),
        (2, ["zero.stage=3"]),
        (2, ["zero.stage=2", "train.sequence_parallel=2"]),
    ],
)
def test_scores_do_not_depend_on_ranks_or_sharding(pool, workspace, tasks, tmp_path, num_ranks, words):
    """A difference: fillers are counted, or answers go to other questions on the way from the ranks."""
    alone, answers = pool(1).run(
        score, workspace=workspace, tasks=tasks, run_dir=str(tmp_path / "1"), words=["zero.stage=1"]
    )[0]
    assert {one["task"] for one in alone} == set(NAMES) and [len(ids) for ids in answers] == [3, 5, 7, 5, 11]
    # One of them ends early with an end token, so ranks end at different steps.
    found = pool(num_ranks).run(
        score, workspace=workspace, tasks=tasks, run_dir=str(tmp_path / "other"), words=words
    )
    for scores, others in found:
        assert others == answers
        for one, other in zip(alone, scores, strict=True):
            assert (one["task"], one["metric"]) == (other["task"], other["metric"])
            assert one["value"] == pytest.approx(other["value"], rel=1e-5)


def ask_differently(mesh: Any, workspace: str, tasks: str, run_dir: str) -> str:
    from trainer.evaluate.tasks.lm import EngineLM
    from trainer.run.asking import build_task_scores

    config = config_of(workspace, run_dir, ASKED, f"evaluate.tasks.include_path={tasks}")
    with session_of(config) as session:
        model = build_task_scores(session)._model
        request = type("Request", (), {"args": (f"rank {mesh.rank}", " more")})()
        with pytest.raises(DataError) as refused:
            EngineLM(model, session.tokenizer).loglikelihood([request])
    return str(refused.value)


def test_ranks_that_were_asked_different_things_say_so_instead_of_waiting(pool, workspace, tasks, tmp_path):
    said = pool(2).run(ask_differently, workspace=workspace, tasks=tasks, run_dir=str(tmp_path))
    assert len(said) == 2 and all("must ask every rank the same" in sentence for sentence in said)


def train(mesh: Any, workspace: str, tasks: str, run_dir: str) -> None:
    from trainer.config.snapshot import freeze
    from trainer.run import training

    config = config_of(
        workspace,
        run_dir,
        "zero.stage=3",
        "optim.lr=0.02",
        ASKED,
        f"evaluate.tasks.include_path={tasks}",
        "evaluate.kl_packs=1",
    )
    if mesh.is_first:
        freeze(config, Path(run_dir))
    mesh.barrier()
    assert training.run_training(config).value == "finished"


@pytest.fixture(scope="module")
def run_dir(pool: Any, workspace: str, tasks: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tasks"
    pool(2).run(train, workspace=workspace, tasks=tasks, run_dir=str(folder))
    return folder


def compared(run_dir: Path) -> dict[tuple[str, str], dict[str, Any]]:
    record = json.loads((run_dir / "forgetting.json").read_text())
    return {(one["task"], one["metric"]): one for one in record["tasks"]}


def test_training_ends_with_both_scores_in_the_file_and_the_report(run_dir):
    found = compared(run_dir)
    perplexity = found[("local_text", "byte_perplexity")]
    assert perplexity["higher_is_better"] is False and perplexity["num_documents"] == 4
    assert perplexity["base"] != perplexity["tuned"]
    assert perplexity["change"] == pytest.approx(perplexity["tuned"] - perplexity["base"])
    assert {("local_choice", "acc"), ("local_letters", "acc"), ("local_answer", "exact_match,as-is")} <= set(
        found
    )
    assert found[("local_choice", "acc")]["base_stderr"] > 0
    page = (run_dir / "report.html").read_text()
    assert "Benchmark tasks" in page and "byte_perplexity" in page


def evaluate(mesh: Any, run_dir: str, overrides: list[str]) -> list[Any]:
    """Return the exit code of `palimpsest evaluate` as a rank, and what it printed to a file."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from trainer.cli import run_command

    said, problems = StringIO(), StringIO()
    with redirect_stdout(said), redirect_stderr(problems):
        code = run_command(["evaluate", "--config", f"{run_dir}/config.yaml", *overrides])
    return [code, said.getvalue(), problems.getvalue()]


def test_the_gate_reads_task_scores_and_says_by_how_much_they_are_broken(pool, run_dir):
    before = compared(run_dir)
    change = before[("local_text", "byte_perplexity")]["change"]
    limit = f"max_rise: {change - 0.25}" if change > 0.25 else f"min_drop: {0.25 - change}"
    loose, strict = (
        f"gate.tasks.local_text={{metric: byte_perplexity, {rule}}}"
        for rule in (f"max_rise: {abs(change) + 1}", limit)
    )
    (code, said, _), _ = pool(2).run(evaluate, run_dir=str(run_dir), overrides=[loose])
    assert code == 0 and "Gate: passed." in said and "local_text byte_perplexity:" in said
    for key, one in compared(run_dir).items():
        assert one["tuned"] == pytest.approx(before[key]["tuned"], rel=1e-5)
    codes = pool(2).run(evaluate, run_dir=str(run_dir), overrides=[strict])
    assert [code for code, _, _ in codes] == [3, 3]
    said = codes[0][1]
    assert "FAIL" in said and "0.2500" in said and "Gate: 1 of 1 rules broken." in said


@pytest.mark.slow
def test_a_base_that_was_never_scored_is_scored_before_the_checkpoint_is_loaded(pool, run_dir, tmp_path):
    """A difference: the base is scored with the tuned weights."""
    before = compared(run_dir)
    shutil.copytree(run_dir, tmp_path / "copy")
    (tmp_path / "copy" / BASE_FILE).unlink()
    cache_dir = load_config(run_dir / "config.yaml").data.cache_dir
    for path in (Path(cache_dir) / "evaluations").glob("tasks-*"):
        path.unlink()
    (code, _, problems), _ = pool(2).run(
        evaluate, run_dir=str(tmp_path / "copy"), overrides=[f"run_dir={tmp_path / 'copy'}"]
    )
    assert code == 0, problems
    assert (tmp_path / "copy" / BASE_FILE).exists()
    for key, one in compared(tmp_path / "copy").items():
        assert one["base"] == pytest.approx(before[key]["base"], rel=1e-5)
        assert one["tuned"] == pytest.approx(before[key]["tuned"], rel=1e-5)


@pytest.mark.slow
def test_evaluating_without_tasks_keeps_what_is_known_of_the_checkpoint(pool, run_dir):
    before = compared(run_dir)
    (code, _, _), _ = pool(2).run(evaluate, run_dir=str(run_dir), overrides=["evaluate.tasks.names=[]"])
    assert code == 0 and compared(run_dir) == before
    (code, said, _), _ = pool(2).run(evaluate, run_dir=str(run_dir), overrides=["evaluate.checkpoint=base"])
    assert code == 0 and "base model: local_text byte_perplexity:" in said


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "gate.tasks.absent.max_drop=0.1",
            r"`gate.tasks.absent` must be about a task .* \(local_choice, local_letters",
        ),
        (
            "gate.tasks.local_choice={metric: f1, max_drop: 0.1}",
            r"a metric of the task \(acc; acc_norm\), but is 'f1'",
        ),
        (
            "gate.tasks.local_text={metric: byte_perplexity, max_drop: 1}",
            "less is better, but is 1 instead. Use max_rise",
        ),
        ("gate.tasks.local_choice.max_rise=1", "more is better, but is 1 instead. Use max_drop"),
    ],
)
def test_a_rule_about_what_was_not_measured_is_refused(run_dir, override, sentence):
    from trainer.command.evaluate import gate_passes

    config = load_config(run_dir / "config.yaml", [override])
    with pytest.raises(ConfigError, match=sentence):
        gate_passes(config, "step-00000008")


def test_a_folder_that_is_not_there_ends_every_rank_before_the_model_is_loaded(pool, run_dir):
    said = pool(2).run(evaluate, run_dir=str(run_dir), overrides=["evaluate.tasks.include_path=/nowhere"])
    for code, _, problems in said:
        assert code == 2 and "where there is no folder" in problems and "Resumed" not in problems
