"""Benchmark tasks are found, their files too, and what cannot be run is refused with a sentence."""

import importlib.util

import numpy as np
import pytest

from tests.helpers.benchmark_tasks import ANSWER, NAMES, TEXT, write_tasks
from trainer.config.gate import TaskRule
from trainer.config.tasks import TasksConfig
from trainer.errors import ConfigError
from trainer.evaluate.tasks.harness import check_names, check_rules, load_tasks, tasks_digest


def test_without_lm_eval_a_sentence_says_how_to_install_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else found(name))
    check_names(TasksConfig())
    with pytest.raises(
        ConfigError, match=r"`evaluate.tasks.names`.*pip install 'palimpsest-trainer\[eval\]'"
    ):
        check_names(TasksConfig(names=["arc_easy"]))


@pytest.fixture
def folder(tmp_path):
    pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")
    return write_tasks(tmp_path)


def options(folder, *names, **others):
    return TasksConfig(names=list(names), include_path=str(folder), **others)


def test_data_files_count_from_the_yaml_whatever_the_working_directory(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    loaded = load_tasks(options(folder, *NAMES))
    assert loaded.names == NAMES
    assert [len(task.eval_docs) for task in loaded.plain["tasks"].values()] == [7, 7, 5, 4]


def test_data_files_may_count_from_the_working_directory_too(folder, monkeypatch):
    monkeypatch.chdir(folder / "mine")
    (folder / "mine" / "text.yaml").rename(folder / "text.yaml")
    assert load_tasks(options(folder, "local_text")).names == ["local_text"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            TEXT.replace("data/text.jsonl", "data/gone.jsonl"),
            "'broken' cannot: Unable to find .*mine/data/gone.jsonl",
        ),
        (
            ANSWER.replace("do_sample: false", "do_sample: true"),
            "`generation_kwargs` of task 'broken' must be greedy",
        ),
        (
            ANSWER.replace("do_sample: false", "num_beams: 4"),
            "`generation_kwargs` of task 'broken' must be greedy",
        ),
        (TEXT + "unsafe_code: true\n", "'broken' runs code that the model wrote instead"),
    ],
)
def test_a_task_that_cannot_be_run_is_named(folder, text, sentence):
    name = next(line for line in text.splitlines() if line.startswith("task: "))
    (folder / "mine" / "broken.yaml").write_text(text.replace(name, "task: broken"))
    with pytest.raises(ConfigError, match=sentence):
        load_tasks(options(folder, "broken"))


def test_a_task_named_twice_is_refused(folder):
    with pytest.raises(ConfigError, match="'local_choice' is in 'local_choice' and in one named before it"):
        load_tasks(options(folder, "local_group", "local_choice"))


@pytest.mark.slow  # reads lm-eval's own index of tasks
def test_an_unknown_name_gets_the_nearest_one_and_a_broken_file_is_shown(folder):
    """lm-eval passes over a file that it cannot read, so its task is merely unknown."""
    (folder / "mine" / "cut.yaml").write_text("task: [cut\n")
    with pytest.raises(
        ConfigError, match=r"has 'local_chioce' instead. Did you mean 'local_choice'\?.*cut.yaml cannot"
    ):
        check_names(options(folder, "local_text", "local_chioce"))
    check_names(options(folder, "arc_easy", "local_text"))


def test_rules_are_about_tasks_that_run(folder):
    loaded = load_tasks(options(folder, "local_group"))
    check_rules({"local_group": TaskRule(), "local_letters": TaskRule()}, loaded)
    with pytest.raises(
        ConfigError, match=r"`gate.tasks.arc_easy`.*\(local_choice, local_letters, local_group\)"
    ):
        check_rules({"arc_easy": TaskRule()}, loaded)


def test_the_digest_follows_what_is_asked_and_not_where_it_lies(folder, tmp_path_factory):
    def digest(where, **others):
        return tasks_digest(load_tasks(options(where, "local_choice", "local_text", **others)))

    first = digest(folder)
    assert digest(write_tasks(tmp_path_factory.mktemp("other"))) == first == digest(folder)
    assert (
        len({first, digest(folder, limit=2), digest(folder, num_fewshot=1), digest(folder, max_length=9)})
        == 4
    )
    moved = write_tasks(tmp_path_factory.mktemp("edited"))
    data = moved / "mine" / "data" / "text.jsonl"
    data.write_text(data.read_text().replace("hat", "cap", 1))
    assert digest(moved) != first


def test_loading_leaves_the_generators_of_the_run_alone(folder):
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    load_tasks(options(folder, *NAMES))
    assert np.random.random() == expected
