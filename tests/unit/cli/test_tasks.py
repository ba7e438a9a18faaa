"""Benchmark tasks that cannot be run are refused before ranks start, with exit code 2 and nothing written."""

import pytest

from tests.helpers.benchmark_tasks import write_tasks

pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")


@pytest.mark.parametrize("command", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["evaluate.tasks.names=[local_choice]", "evaluate.tasks.include_path=/nowhere"],
            "where there is no folder",
        ),
        (["evaluate.tasks.names=[local_gone]"], "'local_gone' cannot: Unable to find"),
    ],
)
def test_a_missing_folder_or_file_is_found_before_ranks_start(
    refuse, tmp_path, model, command, overrides, sentence
):
    folder = write_tasks(tmp_path / "tasks")
    broken = (
        (folder / "mine" / "text.yaml")
        .read_text()
        .replace("local_text", "local_gone")
        .replace("text.jsonl", "no")
    )
    (folder / "mine" / "gone.yaml").write_text(broken)
    (tmp_path / "a.txt").write_text("text")
    words = [
        "data=text",
        f"data.sources.corpus.path={tmp_path}/a.txt",
        "model.kind=pretrained",
        f"model.path={model}",
    ]
    words += [
        f"data.cache_dir={tmp_path}/cache",
        f"run_dir={tmp_path}/run",
        "train.max_steps=1",
        "data.seq_len=64",
    ]
    words += [
        "train.global_batch_tokens=64",
        f"evaluate.tasks.include_path={folder}",
        "evaluate.checkpoint=base",
    ]
    assert sentence in refuse(command, *words, *overrides)
    assert not (tmp_path / "run").exists() and not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["checkpoint.best.metric=tasks/local_choice/acc_nrom"],
            "Did you mean 'tasks/local_choice/acc_norm'?",
        ),
        (
            ["evaluate.during.tasks=[local_gone]"],
            "`evaluate.during.tasks` must name tasks that can be loaded",
        ),
    ],
)
def test_what_is_asked_of_tasks_during_training_is_found_before_ranks_start(
    refuse, tmp_path, model, overrides, sentence
):
    folder = write_tasks(tmp_path / "tasks")
    (folder / "mine" / "gone.yaml").write_text("task: local_gone\ndataset_path: nobody/nothing\n")
    (tmp_path / "a.txt").touch()
    words = ["data=text", f"data.sources.corpus.path={tmp_path}/a.txt", f"model.path={model}"]
    words += [
        f"run_dir={tmp_path}/run",
        "train.max_steps=1",
        "data.seq_len=64",
        "train.global_batch_tokens=64",
    ]
    words += [f"evaluate.tasks.include_path={folder}", "evaluate.during.tasks=[local_choice]"]
    assert sentence in refuse("train", *words, *overrides)
    assert not (tmp_path / "run").exists()


def test_a_gate_rule_about_a_task_that_will_not_run_is_found_before_ranks_start(refuse, tmp_path, model):
    (tmp_path / "run" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (tmp_path / "a.txt").touch()
    words = ["data=text", f"data.sources.corpus.path={tmp_path}/a.txt", f"model.path={model}"]
    words += [
        f"run_dir={tmp_path}/run",
        "train.max_steps=1",
        "data.seq_len=64",
        "train.global_batch_tokens=64",
    ]
    words += [
        f"evaluate.tasks.include_path={write_tasks(tmp_path / 'tasks')}",
        "evaluate.tasks.names=[local_choice]",
    ]
    said = refuse("evaluate", *words, "gate.tasks.arc_easy.max_drop=0.1")
    assert "`gate.tasks.arc_easy` must be about a task in evaluate.tasks.names (local_choice)" in said
