"""What is known of benchmark tasks on a login node, and which metrics loaded ones have."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.benchmark_tasks import write_tasks
from trainer.config.metric import Direction
from trainer.config.tasks import TasksConfig
from trainer.errors import ConfigError
from trainer.evaluate.tasks.known import known_problems

KEY = "evaluate.during.tasks"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Put a small lm-eval in the place of the real one, whose 14,000 files take seconds to read."""
    folder = tmp_path / "lm_eval"
    (folder / "tasks" / "arc").mkdir(parents=True)
    (folder / "tasks" / "arc" / "arc_easy.yaml").write_text(
        "tag: ai2_arc\ntask: arc_easy\ndataset_path: allenai/ai2_arc\n"
    )
    (folder / "tasks" / "arc" / "arc_challenge.yaml").write_text(
        "include: arc_easy.yaml\ntask: arc_challenge\n"
    )
    found = importlib.util.find_spec
    spec = SimpleNamespace(submodule_search_locations=[str(folder)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "lm_eval" else found(name))
    return folder


def problems(*names, include_path=None, **variables):
    return [one.sentence for one in known_problems(KEY, names, include_path, variables)]


def test_names_are_found_in_lm_evals_files_and_in_ones_own(package, tmp_path):
    own = str(write_tasks(tmp_path / "own"))
    assert problems("arc_easy", "ai2_arc", "arc_challenge", "local_text", include_path=own) == []
    (said,) = problems("arc_easy", "arc_esay")
    assert said.startswith(f"`{KEY}` must be names of tasks") and "Did you mean 'arc_easy'?" in said
    assert len(problems("arc", "local_text")) == 2, "a part of a name is no name"
    assert "a folder with task YAML files" in problems("arc_easy", include_path="/nowhere")[0]
    assert problems() == []


def test_without_lm_eval_a_login_node_says_so(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (said,) = problems("arc_easy")
    assert "empty without lm-eval, but is 'arc_easy'" in said and "pip install" in said


def test_data_that_is_not_there_is_a_problem_only_where_the_hub_is_not_asked(package, tmp_path):
    home = {"HF_HOME": str(tmp_path / "hf")}
    own = str(write_tasks(tmp_path / "own"))
    assert problems("arc_easy", **home) == []
    offline = {**home, "HF_HUB_OFFLINE": "1"}
    found = problems("arc_easy", "arc_challenge", "ai2_arc", "local_text", include_path=own, **offline)
    assert len(found) == 2 and all("of allenai/ai2_arc" in said for said in found), "the tag is not one task"
    assert "datasets.load_dataset('allenai/ai2_arc')" in found[0]
    Path(home["HF_HOME"], "hub", "datasets--allenai--ai2_arc").mkdir(parents=True)
    assert problems("arc_easy", "arc_challenge", **offline) == []


def test_a_metric_of_a_task_has_a_direction_and_one_that_it_has_not_is_refused(tmp_path):
    pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")
    from trainer.evaluate.tasks.harness import load_tasks
    from trainer.evaluate.tasks.task_metrics import better_direction

    folder = str(write_tasks(tmp_path))
    loaded = load_tasks(TasksConfig(names=["local_group", "local_answer", "local_text"], include_path=folder))
    for metric, direction in (
        ("tasks/local_choice/acc_norm", Direction.maximize),
        ("tasks/local_group/acc", Direction.maximize),
        ("tasks/local_answer/exact_match,first-char", Direction.maximize),
        ("tasks/local_text/byte_perplexity", Direction.minimize),
    ):
        assert (
            better_direction(metric, None, loaded) is better_direction(metric, direction, loaded) is direction
        )
    for metric in ("tasks/local_group/acc_norm", "tasks/local_answer/exact_match", "tasks/gone/acc"):
        with pytest.raises(ConfigError, match=r"`checkpoint.best.metric` must be a metric of the tasks"):
            better_direction(metric, None, loaded)
    with pytest.raises(
        ConfigError, match=r"`checkpoint.best.direction` must be minimize .* has it, but is max"
    ):
        better_direction("tasks/local_text/byte_perplexity", Direction.maximize, loaded)
