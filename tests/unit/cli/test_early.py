"""What costs nothing to look at is looked at before anything heavy is loaded."""

import os
import subprocess
import sys

import pytest

from trainer.config.store import compose_config, to_yaml

WORDS = ["model=tiny", "data=text", "train.max_steps=4"]


@pytest.fixture
def run_dir(tmp_path):
    """Return a run directory with a frozen configuration and one checkpoint's folder, of step 3."""
    (tmp_path / "a.txt").write_text("text")
    words = [*WORDS, f"data.sources.corpus.path={tmp_path}/a.txt"]
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-00000003").mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(compose_config([*words, f"run_dir={folder}"])))
    return folder


def refused(*words, lacks=()):
    """Return what a command says that can load no torch, nor what it is to lack."""
    code = (
        f"import sys\nfor name in {('torch', 'transformers', 'deepspeed', *lacks)!r}:\n    sys.modules[name] = None\n"
        "from trainer.cli import run_command\nsys.exit(run_command(sys.argv[1:]))"
    )
    secret = ("HF_TOKEN", "WANDB_API_KEY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    environment = {name: value for name, value in os.environ.items() if name not in secret}
    environment |= {"HF_HOME": "/nowhere", "NETRC": "/nowhere/netrc"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def test_data_that_is_not_there(tmp_path):
    words = [*WORDS, f"data.sources.corpus.path={tmp_path}/none.txt"]
    assert "none.txt" in refused("train", *words, f"run_dir={tmp_path}/new")


@pytest.mark.parametrize("command", ["train", "prepare"])
def test_packs_that_are_longer_than_the_models_context(tmp_path, command):
    (tmp_path / "a.txt").write_text("text")
    words = [*WORDS, f"data.sources.corpus.path={tmp_path}/a.txt", f"run_dir={tmp_path}/new", "optim.lr=-1"]
    said = refused(command, *words, "data.seq_len=16384", "train.global_batch_tokens=16384")
    assert "`data.seq_len` must be at most the model's context of 8192, but is 16384 instead." in said
    assert "`optim.lr` must be more than 0" in said, "all at once"


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_checkpoint_that_is_not_there_is_told_with_what_else_is_not(run_dir, command):
    (run_dir.parent / "a.txt").write_text("text")
    words = [f"run_dir={run_dir}", f"{command}.checkpoint=99", "model.chat_template=gone.jinja"]
    said = refused(command, *words)
    assert (
        f"  - `{command}.checkpoint` must be last, best or a step that is saved (3), but is 99 instead. Set"
        in said
    )
    assert "  - `model.chat_template` must name a readable" in said
    for folder in (run_dir / "checkpoints").iterdir():
        folder.rmdir()
    assert f"`run_dir` must hold a checkpoint that verifies, but {run_dir} holds none" in refused(
        command, *words
    )


def test_what_is_combined_is_there(run_dir, tmp_path):
    adapters = f"export.adapters=[{run_dir},{tmp_path}/rum,{tmp_path}]"
    said = refused("export", adapters, f"export.output_dir={tmp_path}/o", "export.checkpoint=4")
    assert f"{tmp_path}/rum is not there. Did you mean {run_dir}?" in said
    assert (
        f"but {tmp_path} has no adapter_config.json." in said
        and "`export.checkpoint` must be last, best or" in said
    )


@pytest.mark.parametrize("command", ["train", "prepare", "evaluate"])
def test_a_mistyped_column_is_told_with_what_else_is_wrong(run_dir, tmp_path, command):
    """It was told after torch was loaded; a second one after that was mended."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"body": "text"}\n')
    words = [] if command == "evaluate" else WORDS
    words = [
        *words,
        f"data.sources.corpus.path={tmp_path}/one.jsonl",
        f"data.sources.more.path={tmp_path}/two.jsonl",
    ]
    place = run_dir if command == "evaluate" else tmp_path / "new"
    said = refused(command, *words, "data.sources.more.columns.text=bodi", f"run_dir={place}", "optim.lr=-1")
    for sentence in (
        "`data.sources.corpus.columns.text` must name a column of one.jsonl (row 1), but is 'text' instead",
        "`data.sources.more.columns.text` must name a column of two.jsonl (row 1), but is 'bodi' instead",
        "`optim.lr` must be more than 0",
    ):
        assert f"  - {sentence}" in said, said


def test_a_place_of_an_export_that_is_a_file(run_dir):
    said = refused("export", f"run_dir={run_dir}", f"export.output_dir={run_dir}/config.yaml/x")
    place = f"{run_dir}/config.yaml"
    assert (
        f"`export.output_dir` must be a folder you can write to, but {place}/x is not: {place} is a file"
        in said
    )


def test_all_that_is_missing_is_told_at_once(tmp_path):
    """A person mends a typo in a path, the packages and the login in one go, not in nine starts."""
    (tmp_path / "file").touch()
    words = [
        "data=text",
        "train.max_steps=4",
        "recipe=qlora",
        "model.kind=pretrained",
        f"model.path={tmp_path}/gone",
    ]
    words += [f"data.sources.corpus.path={tmp_path}/none.txt", f"data.sources.more.path={tmp_path}/nothing"]
    words += [f"run_dir={tmp_path}/file/run", "log.trackers=[trackio,wandb]", "log.wandb.mode=online"]
    words += ["evaluate.tasks.names=[arc_easy]", f"evaluate.during.samples.file={tmp_path}/prompts.txt"]
    words += ["model.chat_template=gone.jinja", f"data.cache_dir={tmp_path}/file"]
    said = refused("train", *words, lacks=("bitsandbytes", "trackio", "lm_eval"))
    for sentence in (
        f"`model.path` must be a model name or an existing folder, but is '{tmp_path}/gone'",
        "`model.chat_template` must name a readable Jinja file",
        "`data.sources.corpus.path` must name a file, a folder or a glob that matches files",
        "`data.sources.more.path` must name a file, a folder or a glob that matches files",
        f"`run_dir` must be a folder you can write to, but {tmp_path}/file/run is not: {tmp_path}/file is a file.",
        f"`data.cache_dir` must be a folder you can write to, but {tmp_path}/file is not: {tmp_path}/file is a file.",
        "`log.trackers` must name trackers that are installed, but trackio is not: there is no package trackio.",
        "`log.wandb.mode` must be auto or offline without a login",
        "`tune.quantise` must be none without bitsandbytes, but is nf4 instead",
        "`evaluate.tasks.names` must be empty without lm-eval, but is 'arc_easy' instead.",
        "`evaluate.during.samples.file` must be a file of prompts",
    ):
        assert f"  - {sentence}" in said, (sentence, said)
    assert "The configuration has 11 problems:" in said


@pytest.mark.parametrize("command", ["train", "evaluate", "replay generate", "export"])
def test_a_folder_without_weights_is_told_with_the_other_problems(run_dir, tmp_path, command):
    """It was told in a library's words, after data had been prepared."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    (base / "tokenizer.json").touch()
    words = ["model.kind=pretrained", f"model.path={base}", "tune.method=lora", "export.alpha=2"]
    place = f"run_dir={run_dir}" if command in ("evaluate", "export") else f"run_dir={tmp_path}/new"
    data = (
        []
        if command in ("evaluate", "export")
        else [*WORDS[1:], f"data.sources.corpus.path={tmp_path}/a.txt"]
    )
    words += ["replay.generate.output_dir=/proc/shared/x"] if command == "replay generate" else []
    said = refused(*command.split(), *data, *words, place)
    assert (
        f"  - `model.path` must be a model's folder, with a config.json, weights and a tokenizer, but {base} "
        in said
    )
    assert "has no weights (model.safetensors, its shards with" in said
    other = {"replay generate": "`replay.generate.output_dir`"}.get(command, "`export.alpha`")
    assert f"  - {other} must be" in said, said


def test_prepare_and_plan_go_without_weights_and_not_without_a_tokenizer(run_dir, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')
    words = [*WORDS[1:], f"data.sources.corpus.path={tmp_path}/a.txt", f"model.path={base}", "optim.lr=-1"]
    said = refused("prepare", *words, f"run_dir={tmp_path}/new")
    assert (
        f"with a config.json and a tokenizer, but {base} has no tokenizer (tokenizer.json, tokenizer.model)."
        in said
    )
    assert "weights" not in said and "`optim.lr`" in said


@pytest.mark.parametrize("command", ["train", "prepare", "plan", "evaluate"])
def test_a_mistyped_folder_is_answered_with_the_one_that_is_there(run_dir, tmp_path, monkeypatch, command):
    """It was taken for a name of the hub, which was asked for a minute."""
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = [
        *WORDS[1:],
        f"data.sources.corpus.path={tmp_path}/a.txt",
        "model.path=models/lama",
        "optim.lr=-1",
    ]
    said = refused(command, *words, f"run_dir={tmp_path}/new")
    assert "Did you mean models/llama?" in said and "`optim.lr` must be more than 0" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_run_directory_that_may_not_be_written_to(run_dir, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    words = [*WORDS, f"data.sources.corpus.path={tmp_path}/a.txt", f"run_dir={tmp_path}/locked/run"]
    assert f"{tmp_path}/locked cannot be written to (Permission denied). Set run_dir." in refused(
        "train", *words
    )


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_run_directory_that_nobody_can_make(run_dir, tmp_path, command):
    """Root has every right, also in /proc, and was told after torch was loaded and data prepared."""
    words = [*WORDS, f"data.sources.corpus.path={tmp_path}/a.txt", "run_dir=/proc/shared/run"]
    said = refused(command, *words)
    assert (
        "`run_dir` must be a folder you can write to, but /proc/shared/run is not: /proc cannot be written"
        in said
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "run"]


def test_an_export_over_a_run_is_refused_before_it_begins(run_dir):
    (run_dir / "adapter_config.json").write_text("{}")
    said = refused("export", f"run_dir={run_dir}", f"export.output_dir={run_dir}")
    assert (
        f"must be a new folder or an earlier export, but {run_dir} holds adapter_config.json and 2 more"
        in said
    )
    assert sorted(path.name for path in run_dir.iterdir()) == [
        "adapter_config.json",
        "checkpoints",
        "config.yaml",
    ]


def test_an_export_into_a_run_directory_that_takes_nothing_is_refused_before_it_begins(run_dir):
    (run_dir / "export").write_text("a file is in the way, as a disk that is only read would be")
    said = refused("export", f"run_dir={run_dir}")
    assert f"`export.output_dir` must be a folder you can write to, but {run_dir}/export is not" in said


def test_all_that_an_export_lacks_is_told_at_once(run_dir):
    words = [f"run_dir={run_dir}", f"export.output_dir={run_dir}/config.yaml", "export.hub=my-org/mine"]
    words += ["tune.method=lora", "export.gguf=f16", f"export.llama_cpp={run_dir}"]
    said = refused("export", *words)
    assert "The configuration has 4 problems:" in said
    for sentence in (
        "`export.hub_base` must be given where an adapter is pushed whose base is a folder (tiny), but is not. Set",
        "`export.output_dir` must be a folder you can write to, but",
        "`export.hub` must have a token of the hub, but there is none here.",
        "`export.llama_cpp` must be a checkout of llama.cpp, but",
    ):
        assert f"  - {sentence}" in said, (sentence, said)


@pytest.mark.parametrize("command", ["train", "prepare"])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "must name the tokenizer that made the token ids of 'a.bin', but is null"),
        (
            ["data.sources.corpus.tokenizer=./gone"],
            "that made the ids, but is '{here}/gone' instead: no such file",
        ),
    ],
)
def test_the_tokenizer_of_megatrons_ids_that_is_not_named_or_not_there(
    tmp_path, monkeypatch, command, given, sentence
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.bin", "a.idx"):
        (tmp_path / name).touch()
    words = [*WORDS, f"data.sources.corpus.path={tmp_path}/a.bin", "data.sources.corpus.format=ids", *given]
    said = refused(command, *words, f"run_dir={tmp_path}/run")
    assert "`data.sources.corpus.tokenizer` must name" in said and sentence.format(here=tmp_path) in said


def test_a_run_directory_that_cannot_be_made_is_a_sentence(tmp_path):
    from trainer.errors import CheckpointError
    from trainer.runtime.lock import run_lock

    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match="`run_dir` must be a folder you can write to, but"),
        run_lock(tmp_path / "file" / "run"),
    ):
        pass
    with pytest.raises(CheckpointError, match="Set run_dir"), run_lock(tmp_path / "x" / ("y" * 300)):
        pass


def test_a_pipe_that_has_read_enough_is_no_error():
    """`palimpsest schema | head -c 10`: the text is longer than what a pipe holds."""
    words = [sys.executable, "-m", "trainer", "schema"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() == 128 + 13


def test_another_run_of_the_directory_is_refused_before_its_data_is_read(run_dir):
    """The seed is known to be another without the data, which is not even there."""
    (run_dir / "metrics.jsonl").write_text("")
    words = [*WORDS, f"data.sources.corpus.path={run_dir}/none.txt", f"run_dir={run_dir}", "seed=9"]
    said = refused("train", *words, "optim.weight_decay=-1")
    assert "`optim.weight_decay` must be 0 or more" in said, "what else is wrong is told with it"
    said = refused("train", *words)
    assert "holds a run of another configuration" in said and "seed: " in said and "none.txt" in said


@pytest.mark.parametrize("command", ["evaluate", "verify", "export", "report"])
def test_a_command_about_a_run_without_one_says_what_to_give(command):
    assert "must be given a run, but is given none instead. Say which: palimpsest " in refused(command)


def test_an_export_of_no_run_says_so_and_names_no_folder_that_nobody_typed():
    said = refused("export", "export.merge=true")
    assert (
        "`palimpsest export` must be given a run, but is given none instead." in said and "runs/" not in said
    )
