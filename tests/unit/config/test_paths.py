"""Places on disk: every key that is one is known, and a frozen run reads the same files from anywhere."""

import dataclasses
import typing
from pathlib import Path

import pytest

from trainer.config.paths import PLACES, name_or_place, pattern
from trainer.config.schema import RunConfig
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.errors import ConfigError

NO_PLACES = {
    *("objective.distill.teacher_revision", "data.sources.NAME.curate.languages"),
    *("name", "model.revision", "model.new_tokens", "model.chat_template_date"),
    *(f"data.sources.NAME.columns.{name}" for name in ("text", "prompt", "completion", "messages", "tools")),
    *(f"data.sources.NAME.columns.{name}" for name in ("system", "input_ids", "loss_mask", "weight")),
    *(f"data.sources.NAME.columns.{name}" for name in ("attention_mask", "input", "labels", "ignore")),
    *(
        f"data.sources.NAME.columns.{name}"
        for name in ("chosen", "completions", "label", "margin", "rejected")
    ),
    "data.sources.NAME.learn.roles",
    *(f"data.sources.NAME.{name}" for name in ("subset", "split", "revision", "txt_documents")),
    *(
        "replay.points",
        "replay.watch",
        "evaluate.checkpoint",
        "evaluate.tasks.names",
        "zero.dtype",
        "plan.gpu",
    ),
    *("evaluate.during.tasks", "checkpoint.best.metric"),
    *(f"tune.{name}" for name in ("target", "feedforward", "target_pattern", "modules_to_save", "train")),
    *(f"export.{name}" for name in ("checkpoint", "dtype", "interpolate", "hub", "hub_revision", "hub_base")),
    *("gate.tasks.NAME.metric", "sweep.objective"),
    *("log.project", "log.group", "log.tags", "log.wandb.entity", "log.mlflow.uri", "log.mlflow.experiment"),
    "log.trackio.space",
    *(f"cluster.{name}" for name in ("deepspeed_runner", "partition", "account", "qos", "reservation")),
    *(f"cluster.{name}" for name in ("constraint", "exclude", "gres", "mem", "sbatch_options", "modules")),
    *("cluster.setup", "cluster.environment", "cluster.nccl"),
    *("synthetic.id_column", "synthetic.system"),
    *(
        f"synthetic.raft.{name}_column"
        for name in ("question", "answer", "document", "reasoning", "distractors")
    ),
    *(
        f"synthetic.raft.{name}"
        for name in ("corpus_column", "quote_begin", "quote_end", "answer_mark", "prompt")
    ),
    *(f"synthetic.sample.{name}" for name in ("prompt_column", "reference_column", "instruction", "pattern")),
    "synthetic.sample.verifier",  # of which MODULE is looked for as Python does
    *(f"synthetic.judge.{name}" for name in ("prompt_column", "first_column", "second_column", "question")),
    *("synthetic.judge.answer_begins", "synthetic.revise.prompt_column", "synthetic.revise.answer_column"),
    "synthetic.questions.document_column",
    # Read where a run is composed, from there; nothing of it is left.
    "zero.ds_config",
    # On the nodes, or inside an image: they must be written from / and are checked to be.
    *("cluster.scratch", "cluster.node_local_paths", "cluster.container.mounts"),
    *("cluster.container.options", "cluster.container.python"),
    # Whatever ends with `path` in it.
    "zero.extra",
}


def kinds_in(hint):
    """Yield the plain types that a value may hold; of a mapping those of its values."""
    inside = typing.get_args(hint)
    for part in inside[1:] if typing.get_origin(hint) is dict else inside:
        yield from kinds_in(part)
    if not inside:
        yield hint


def text_keys(section, prefix=""):
    """Yield the keys that can hold text, of a section and all below it."""
    hints = typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        key, hint = f"{prefix}{field.name}", hints[field.name]
        inside = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        if inside:
            yield from text_keys(inside[0], f"{key}." if inside[0] is hint else f"{key}.NAME.")
        elif {str, typing.Any} & set(kinds_in(hint)):
            yield key


def test_every_key_that_can_hold_text_is_a_place_or_known_not_to_be_one():
    """A failure: a new key. Add it to PLACES if it names something on disk, else to the list above."""
    found = set(text_keys(RunConfig))
    assert not PLACES.keys() & NO_PLACES
    assert found == PLACES.keys() | NO_PLACES


WORDS = [
    *("run_dir='~/run'", "model.path=model", "model.tokenizer=./words", "model.chat_template=chat.jinja"),
    *("data.sources.a.path=a.jsonl", "data.sources.b.path=part-*.jsonl", "data.sources.c.dataset=sets"),
    *("data.sources.d.dataset=org/sets", "data.cache_dir=cache", "replay.generate.output_dir=samples"),
    *("data.sources.e.path='s3://b/*.jsonl'", "data.sources.e.tokenizer=./words"),
    *("evaluate.scores.file=rows.jsonl", "evaluate.scores.generator=model"),
    *("evaluate.tasks.include_path=tasks", "export.output_dir=out", "export.llama_cpp=llama.cpp"),
    *(
        "objective.distill.teacher=./larger",
        "export.adapters=[runs/a,b]",
        "plan.output=plan.svg",
        "cluster.hostfile=hosts",
    ),
    *("cluster.python=env/bin/python", "cluster.container.image=image.sif"),
    *("synthetic.input=rows-*.jsonl", "synthetic.output=made.jsonl", "synthetic.raft.corpus=texts"),
    *(
        "synthetic.sample.reward_model=reward",
        "synthetic.judge.principles=a.txt",
        "synthetic.revise.principles=b.txt",
    ),
    "zero.extra.zero_optimization.offload_param.nvme_path=nvme",
]


def places_of(config):
    sources = config.data.sources
    return {
        "run_dir": config.run_dir,
        "model.path": config.model.path,
        "model.tokenizer": config.model.tokenizer,
        "model.chat_template": config.model.chat_template,
        "objective.distill.teacher": config.objective.distill.teacher,
        "path": [sources["a"].path, sources["b"].path, sources["e"].path],
        "data.sources.e.tokenizer": sources["e"].tokenizer,
        "dataset": [sources["c"].dataset, sources["d"].dataset],
        "data.cache_dir": config.data.cache_dir,
        "replay.generate.output_dir": config.replay.generate.output_dir,
        "evaluate.tasks.include_path": config.evaluate.tasks.include_path,
        "scores": [config.evaluate.scores.file, config.evaluate.scores.generator],
        "export": [config.export.output_dir, config.export.llama_cpp, *config.export.adapters],
        "plan.output": config.plan.output,
        "cluster": [config.cluster.hostfile, config.cluster.python, config.cluster.container.image],
        "synthetic": [config.synthetic.input, config.synthetic.output, config.synthetic.raft.corpus],
        "of a verb": [
            config.synthetic.sample.reward_model,
            config.synthetic.judge.principles,
            config.synthetic.revise.principles,
        ],
        "nvme": config.zero.extra["zero_optimization"]["offload_param"]["nvme_path"],
    }


def test_a_frozen_configuration_names_the_same_places_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "model").mkdir()
    (tmp_path / "sets").mkdir()
    monkeypatch.chdir(tmp_path)
    here, config = tmp_path, compose_config(WORDS)
    assert places_of(config) == {
        "run_dir": f"{here}/home/run",
        "model.path": f"{here}/model",
        "model.tokenizer": f"{here}/words",
        "model.chat_template": f"{here}/chat.jinja",
        "objective.distill.teacher": f"{here}/larger",
        "path": [f"{here}/a.jsonl", f"{here}/part-*.jsonl", "s3://b/*.jsonl"],
        "data.sources.e.tokenizer": f"{here}/words",
        "dataset": [f"{here}/sets", "org/sets"],
        "data.cache_dir": f"{here}/cache",
        "replay.generate.output_dir": f"{here}/samples",
        "evaluate.tasks.include_path": f"{here}/tasks",
        "scores": [f"{here}/rows.jsonl", f"{here}/model"],
        "export": [f"{here}/out", f"{here}/llama.cpp", f"{here}/runs/a", f"{here}/b"],
        "plan.output": f"{here}/plan.svg",
        "cluster": [f"{here}/hosts", f"{here}/env/bin/python", f"{here}/image.sif"],
        "synthetic": [f"{here}/rows-*.jsonl", f"{here}/made.jsonl", f"{here}/texts"],
        "of a verb": [f"{here}/reward", f"{here}/a.txt", f"{here}/b.txt"],
        "nvme": f"{here}/nvme",
    }
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(tmp_path / "config.yaml") == config


def test_names_of_the_hub_and_programs_on_the_path_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["model.path=org/model", "model.tokenizer=gpt2", "cluster.python=python3.12"]
    config = compose_config([*words, "cluster.container.image=docker://nvcr.io/a:1"])
    assert (config.model.path, config.model.tokenizer) == ("org/model", "gpt2")
    assert config.cluster.python == "python3.12"
    assert config.cluster.container.image == "docker://nvcr.io/a:1"
    assert compose_config(["model=tiny"]).model.path == "", "no path is no place"


def test_the_brackets_of_a_working_directory_are_no_pattern(tmp_path):
    here = tmp_path / "v[1]"
    here.mkdir()
    (here / "a.jsonl").touch()
    assert pattern("a.jsonl", here) == f"{here}/a.jsonl"
    assert pattern("*.jsonl", here) == f"{tmp_path}/v[[]1]/*.jsonl"
    assert pattern(f"{tmp_path}/*.jsonl", here) == f"{tmp_path}/*.jsonl"
    assert pattern("b.jsonl", here) == f"{here}/b.jsonl", "a missing file is named, not searched for"


@pytest.mark.parametrize("name", ["./m", "../m", "/m", "~/m"])
def test_what_looks_like_a_path_is_one_even_if_nothing_is_there(name, tmp_path):
    assert Path(name_or_place(name, tmp_path)).is_absolute()


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "a" * 5000, "b\0c", "*" * 300])
def test_odd_paths_are_left_for_whoever_opens_them(path, tmp_path):
    for whole in set(PLACES.values()):
        whole(path, tmp_path)


def test_a_working_directory_that_is_gone_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="working directory must be there"):
        compose_config(["model=tiny"])
