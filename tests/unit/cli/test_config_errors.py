"""Errors of the configuration as a person meets them: a sentence with the key and the fix, exit code 2."""

import os
import subprocess
import sys

import pytest
import yaml

from tests.helpers.ranks import ROOT
from trainer.cli import run_command
from trainer.command.rules import broken_rules
from trainer.command.usage import COMMANDS
from trainer.config import foreign
from trainer.config.data import Format
from trainer.config.describe import known_keys
from trainer.config.options import group_options
from trainer.config.store import compose_config, to_yaml

CORPUS = ["model=tiny", "data=text", "data.sources.corpus.path=a.jsonl"]


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("optm.lr=1", "optm", "optim"),
        ("optim.lrr=1", "optim.lrr", "optim.lr"),
        ("+optim.lrr=1", "optim.lrr", "optim.lr"),
        ("++optim.lrr=1", "optim.lrr", "optim.lr"),
        ("train.global_batch_token=1", "train.global_batch_token", "train.global_batch_tokens"),
        ("lr=1", "lr", "optim.lr"),
        ("evaluate.every_step=1", "evaluate.every_step", "evaluate.every_steps"),
        ("models=tiny", "models", "model"),
        ("recipes=full_finetune", "recipes", "recipe"),
    ],
)
def test_a_misspelt_key_or_group_is_named_with_the_nearest_one(refuse, override, key, nearest):
    assert refuse("train", override) == f"Unknown key `{key}`. Did you mean `{nearest}`?\n".rstrip()


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("learning_rate=1e-4", "optim.lr"),
        ("optim.learning_rate=1e-4", "optim.lr"),
        ("train.per_device_train_batch_size=1", "train.micro_batch_size"),
        ("train.gradient_accumulation_steps=4", "train.global_batch_tokens"),
        ("train.num_train_epochs=1", "train.max_epochs"),
        ("warmup_ratio=0.1", "schedule.warmup_frac"),
        ("lr_scheduler_type=cosine", "schedule.name"),
        ("max_seq_length=512", "data.seq_len"),
        ("bf16=true", "zero.dtype"),
        ("output_dir=x", "run_dir"),
        ("save_steps=10", "checkpoint.every_steps"),
        ("log.logging_steps=10", "log.every_steps"),
        ("lora_r=8", "tune.r"),
        ("base_model=x", "model.path"),
        ("model.model_name_or_path=x", "model.path"),
        ("sequence_len=512", "data.seq_len"),
        ("data.val_set_size=0.1", "data.validation_frac"),
    ],
)
def test_a_name_of_another_trainer_is_told_with_ours(refuse, word, ours):
    said = refuse("train", *CORPUS, word)
    assert f"Unknown key `{word.partition('=')[0]}`. Did you mean `{ours}`" in said


def test_a_name_that_is_also_a_key_of_another_section_is_told_with_both(refuse):
    said = refuse("train", *CORPUS, "output_dir=x")
    assert "Did you mean `run_dir` or `" in said and "`export.output_dir`" in said


def test_what_counts_otherwise_there_is_said(refuse):
    said = refuse("train", *CORPUS, "gradient_accumulation_steps=4")
    assert (
        "It counts tokens of a step over all ranks, accumulated ones too: sequences x data.seq_len." in said
    )
    said = refuse("train", "--learning_rate=1e-4")
    assert said.startswith(
        "Unknown option `--learning_rate=1e-4`. Keys are given without dashes: optim.lr=1e-4."
    )


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("data=pairs", "prompt_completion"),
        ("data=sharegpt", "chat"),
        ("recipe=sft", "full_finetune"),
        ("recipe=cpt", "continued_pretrain"),
        ("data.sources.corpus.format=pairs", "completion"),
        ("data.sources.corpus.format=sharegpt", "chat"),
    ],
)
def test_a_word_that_people_guess_is_told_with_the_option_it_means(refuse, word, ours):
    assert f"Did you mean `{ours}`?" in refuse("train", *CORPUS, word)


def test_every_foreign_name_leads_to_a_key_and_is_none_itself():
    known = set(known_keys())
    assert set(foreign.KEYS.values()) <= known and not known & foreign.KEYS.keys()
    assert set(foreign.HINTS) <= set(foreign.KEYS.values())
    for group, words in foreign.OPTIONS.items():
        options = group_options()[group]
        assert set(words.values()) <= set(options) and not set(words) & set(options), group
    assert set(foreign.WORDS["format"].values()) == {one.value for one in Format}


def test_a_base_in_4_bits_without_bitsandbytes_is_refused_before_ranks_start(refuse, tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = refuse("train", *CORPUS, f"data.sources.corpus.path={tmp_path}/a.jsonl", "recipe=qlora")
    assert said.startswith("`tune.quantise` must be none without bitsandbytes, but is nf4 instead")
    assert said.endswith("Install it with: pip install 'palimpsest-trainer[qlora]'")


def test_a_base_in_4_bits_that_should_train_is_refused(refuse):
    said = refuse("train", *CORPUS, "recipe=full_finetune", "tune.quantise=nf4")
    assert "`tune.quantise` must be none with tune.method=full, but is 'nf4' instead. Set tune=qlora" in said


def test_a_key_like_no_other_is_named_without_a_guess(refuse):
    assert refuse("train", "+qqqqq=1") == "Unknown key `qqqqq`."


def test_a_key_like_none_of_its_section_is_told_with_the_keys_of_the_section(refuse):
    said = refuse("train", "evaluate.during.samples.prompts=p.txt")
    keys = "file, num, max_new_tokens, apply_chat_template"
    assert said.endswith(f"Keys of `evaluate.during.samples`: {keys}.")


def test_all_words_that_cannot_be_are_told_together(refuse):
    said = refuse("train", *CORPUS, "data.seq_len=ab", "optim.lrr=3", "train.micro_batch_size=x").splitlines()
    assert said[0] == "The configuration has 4 problems:" and len(said) == 5
    for key in ("data.seq_len", "optim.lrr", "train.micro_batch_size", "data.sources.corpus.path"):
        assert any(f"`{key}`" in line for line in said[1:])


def test_what_is_missing_is_told_with_the_broken_rules(refuse, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    said = refuse(
        "train", *CORPUS, "recipe=qlora", "optim.lr=0", "train.global_batch_tokens=1000"
    ).splitlines()
    assert said[0] == "The configuration has 4 problems:" and len(said) == 5
    keys = ("optim.lr", "train.global_batch_tokens", "data.sources.corpus.path", "tune.quantise")
    assert all(any(f"  - `{key}` must" in line for line in said[1:]) for key in keys), said


def test_how_long_is_asked_of_what_trains_and_not_of_a_preparation():
    config = compose_config(CORPUS)
    asked = {command: {one.key for one in broken_rules(config, command)} for command in ("train", "prepare")}
    assert asked["train"] - asked["prepare"] == {"train"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "log.trackers=[wandbb]",
            "`log.trackers[0]` must be one of wandb, mlflow, tensorboard, trackio, but is",
        ),
        (
            "tune.r=viel",
            "`tune.r` must be a whole number, but is 'viel' instead. Set tune.r=16, or leave it out.",
        ),
        (
            "tune.dora=maybe",
            "`tune.dora` must be true or false, but is 'maybe' instead. Set tune.dora=false, or",
        ),
        (
            "tune.alpha=x",
            "`tune.alpha` must be a number, but is 'x' instead. Set tune.alpha=0.1 or such, or leave",
        ),
        ("plan.gpu_gib=80GB", "`plan.gpu_gib` must be a number, but is '80GB' instead. Set plan.gpu_gib=80."),
        ("cluster.time_limit_min=90min", "is '90min' instead. Set cluster.time_limit_min=90."),
        ("cluster.time_limit_min=2h", "is '2h' instead. Set cluster.time_limit_min=1440, or"),
        ("train.max_steps=1.5", "is '1.5' instead. Set train.max_steps=2."),
        (
            "train.max_tokens=auto",
            "`train.max_tokens` must be a whole number, but is 'auto' instead. Set train.max_tokens=null.",
        ),
        (
            "optim.betas=7",
            "`optim.betas` must be a list, but is '7' instead. Set 'optim.betas=[0.9, 0.95]', or",
        ),
        (
            "tune.target=q",
            "`tune.target` must be a list, but is 'q' instead. Set 'tune.target=[all_linear]', or",
        ),
        ("tune.target={a: 1}", "`tune.target` must be a list, but is"),
        (
            "model.tiny.hidden_size=x",
            "`model.tiny.hidden_size` must be a whole number, but is 'x' instead. Set model",
        ),
        (
            "log.wandb.mode=xyz",
            "auto, online, offline, but is 'xyz' instead. Set log.wandb.mode=auto, or leave it out.",
        ),
        ("name=a\bb", "`name` must be a text without control characters"),
        ("~gate.sets.none", "`gate.sets.none` must be an entry of `gate.sets`"),
        ("@optim.lr=1", "must be given"),
    ],
)
def test_a_word_that_cannot_be_hides_no_other_problem(refuse, tmp_path, word, said):
    """A misspelt tracker hid all else: a mended start was refused again."""
    words = ["model=tiny", "data=text", f"data.sources.corpus.path={tmp_path}/gone.txt", "train.max_steps=1"]
    message = refuse("train", *words, word, "optim.weight_decay=-1")
    for sentence in (
        said,
        "`optim.weight_decay` must be 0 or more",
        "`data.sources.corpus.path` must name a file",
    ):
        assert sentence in message, message


def test_words_beside_a_frozen_configuration_are_told_together(refuse, tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(compose_config(["model=tiny", "optim.weight_decay=-1"])))
    message = refuse(
        "train", "--config", f"{tmp_path}/config.yaml", "log.trackers=[wandbb]", "tune.r=viel", "tune.x=1"
    )
    for sentence in (
        "`log.trackers[0]` must be",
        "`tune.r` must be",
        "Unknown key `tune.x`",
        "`optim.weight_decay`",
    ):
        assert f"  - {sentence}" in message, message


def test_of_two_words_for_a_key_the_wrong_one_is_told_once(refuse):
    message = refuse("train", "model=tiny", "optim.lr=1e-3", "optim.lr=abc", "optim.weight_decay=-1")
    assert message.count("`optim.lr` must be a number") == 1 and "`optim.weight_decay`" in message


def test_a_rule_of_the_gate_that_was_typed_is_left_out_and_not_removed(refuse):
    words = ["model=tiny", "data=text", "data.sources.corpus.path=a.txt", "gate.sets.no.max_rise_nats=0.1"]
    assert "or leave the rule out (one of a file: '~gate.sets.no')." in refuse("train", *words)


def test_a_tracker_without_its_package_is_refused_before_torch_is_loaded(here):
    code = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "trackio" else found(name, *rest)
from trainer.cli import run_command
assert run_command(sys.argv[1:]) == 2 and "torch" not in sys.modules
"""
    (here / "a.jsonl").touch()
    words = ["train", *CORPUS, "train.max_steps=1", "log.trackers=[trackio]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=here)
    assert done.returncode == 0 and "but trackio is not: there is no package trackio" in done.stderr, (
        done.stderr
    )


def test_a_misspelt_key_of_a_source_is_named(refuse):
    assert "Unknown key `data.sources.corpus.pth`." in refuse(
        "train", "data=text", "data.sources.corpus.pth=x"
    )


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("model=tinny", "tiny"), ("zero=zero22", "zero2"), ("recipe=full_finetun", "full_finetune"),
     ("schedule=cosin", "cosine"), ("experiment=quick_start", "quickstart")],
)  # fmt: skip
def test_an_unknown_option_is_named_with_the_nearest_and_all_others(refuse, override, nearest):
    group = override.split("=")[0]
    message = refuse("train", override)
    assert message.startswith(f"`{override}` is not an option of the group `{group}`.")
    assert f"Did you mean `{nearest}`?" in message
    assert nearest in message.split("Options: ")[1].rstrip(".").split(", ")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optim.lr=fast", ["`optim.lr`", "'fast'", "a number"]),
        ("train.micro_batch_size=1.5", ["`train.micro_batch_size`", "1.5", "a whole number"]),
        ("zero.stage=auto", ["`zero.stage` must be a whole number", "Set zero.stage=null."]),
        ("train.max_steps=ten", ["`train.max_steps`", "'ten'"]),
        ("model.trust_remote_code=maybe", ["`model.trust_remote_code`", "'maybe'"]),
        ("optim.betas=0.9", ["`optim.betas`", "list"]),
        ("seed=null", ["`seed` must be a whole number, but is null instead. Set seed="]),
        ("model.tiny.hidden_size=wide", ["`model.tiny.hidden_size`", "a whole number"]),
        ("run_dir=${nme}", ["`run_dir`", "a key that there is", "'nme'"]),
        ("name=${run_dir}", ["`name`", "Recursive"]),
        ("model=null", ["`model` must be the name of an option, but is null instead"]),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_named_with_its_key(refuse, override, parts):
    message = refuse("train", override)
    assert all(part in message for part in parts), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        (
            "model.attention=sdpaa",
            "auto, flash_attention_4, flash_attention_3, flash_attention_2, sdpa, eager",
        ),
        ("model.kernels=ligr", "auto, liger, none"),
        ("zero.offload_param=gpu", "none, cpu"),
        ("log.wandb.mode=on", "auto, online, offline"),
        ("schedule.name=cosin", "cosine, linear, constant, wsd, infinite"),
    ],
)
def test_a_misspelt_choice_lists_the_allowed_ones(refuse, override, allowed):
    key, value = override.split("=")
    said = refuse("train", override)
    assert said.startswith(f"`{key}` must be one of {allowed}, but is '{value}' instead.")


@pytest.mark.parametrize(("given", "shown"), [("[dpo,ipo]", "['dpo', 'ipo']"), ("{dpo:1}", "{'dpo': 1}")])
def test_several_values_for_a_choice_are_told_that_it_is_one_of_them(refuse, given, shown):
    said = refuse("train", f"objective.preference.loss={given}")
    assert "`objective.preference.loss` must be one of dpo, conservative, " in said
    assert f", but is {shown} instead. Set objective.preference.loss=dpo, or leave it out." in said


def test_a_misspelt_word_of_a_list_is_told_with_the_nearest(refuse):
    said = refuse("train", *CORPUS, "log.trackers=[wnadb]")
    assert (
        "`log.trackers[0]` must be one of wandb, mlflow, tensorboard, trackio, but is 'wnadb' instead. "
        "Did you mean `wandb`?"
    ) in said


def test_a_misspelt_command_is_told_with_the_nearest(refuse):
    assert "Unknown command `trian`. Did you mean `train`?" in refuse("trian", *CORPUS)


@pytest.mark.parametrize(
    ("option", "fix"),
    [
        ("data=text", "data.sources.corpus.path=FILES"),
        ("data=chat", "data.sources.chat.path=FILES"),
        ("data=prompt_completion", "data.sources.pairs.path=FILES"),
        ("data=none", "data=text data.sources.corpus.path=FILES"),
        ("model=benchmark", "Set model.path=FOLDER"),
    ],
)
def test_a_mandatory_value_that_is_missing_is_asked_for(refuse, option, fix):
    rest = CORPUS[1:] if option.startswith("model") else ["model=tiny"]
    message = refuse("prepare", *rest, option, "train.max_steps=1")
    first, second, *_ = message.splitlines()  # a missing file may be told behind it
    assert first.startswith("The configuration has ") and second.startswith("  - `") and fix in second


def test_the_length_of_the_run_is_asked_for_and_may_be_given_once_only(refuse):
    assert "but has none instead. Set train.max_epochs=1." in refuse("train", *CORPUS)
    twice = refuse("prepare", *CORPUS, "train.max_epochs=1", "train.max_steps=10")
    assert "but has max_steps and max_epochs instead. Set the others to null." in twice


def test_problems_across_sections_are_reported_together_and_counted(refuse):
    message = refuse(
        "prepare",
        "data=text",
        "optim.lr=-1",
        "zero.stage=1",
        "zero.offload_param=cpu",
        "train.max_steps=0",
        "evaluate.every_steps=0",
        "evaluate.patience=2",
    )
    first, *problems = message.splitlines()
    assert first == "The configuration has 6 problems:"
    keys = [line.removeprefix("  - ").split("`")[1] for line in problems]
    assert keys == [
        "model", "data.sources.corpus.path", "train.max_steps", "optim.lr", "zero.offload_param", "evaluate.every_steps"
    ]  # fmt: skip
    assert all(line.endswith(".") for line in problems)


@pytest.mark.parametrize(("asked", "nearest"), [(131073, 131072), (16000, 16384), (1, 16384), (30000, 32768)])
def test_a_global_batch_that_does_not_divide_gets_the_nearest_that_does(refuse, asked, nearest):
    message = refuse(
        "train",
        *CORPUS,
        "train.max_steps=1",
        "cluster.ranks_per_node=8",
        f"train.global_batch_tokens={asked}",
    )
    assert "ranks x micro batch x seq_len = 8 x 1 x 2048 = 16384" in message
    assert f"but is {asked} instead. Set train.global_batch_tokens={nearest}." in message


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [
        ("optimizer", "{type: Adam}", "optim"),
        ("scheduler", "{type: WarmupLR}", "schedule"),
        ("gradient_clipping", "1.0", "optim.clip_norm"),
        ("train_batch_size", "8", "train.global_batch_tokens"),
    ],
)
def test_extra_may_not_override_what_we_derive(refuse, key, value, ours):
    message = refuse("prepare", *CORPUS, "train.max_steps=1", f"+zero.extra.{key}={value}")
    assert f"`zero.extra.{key}` must be left out" in message and f"Set {ours} instead." in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (b"optim:\n  lr: [1\nname: x\n", ["is not valid YAML", "line 3, column 5"]),
        (b"optim: {lr: 1}\noptim: {lr: 2}\n", ["duplicate key optim", "line 2"]),
        (b"\xff\xfe\x00\x01", ["is not valid YAML", "utf-8"]),
        (b"optim: {lrr: 1}\n", ["Unknown key `optim.lrr`. Did you mean `optim.lr`?"]),
        (b"optim: {lr: fast}\n", ["`optim.lr`", "'fast'"]),
        (b"- a\n- b\n", ["cannot merge dictconfig with listconfig"]),
    ],
)
def test_a_broken_configuration_file_is_named_with_the_place(refuse, tmp_path, text, parts):
    path = tmp_path / "mine.yaml"
    path.write_bytes(text)
    message = refuse("train", "--config", str(path))
    assert message.startswith(str(path)) and "\n" not in message
    assert all(part.lower() in message.lower() for part in parts), message


def test_a_configuration_file_that_cannot_be_opened_is_named(refuse, tmp_path):
    missing = tmp_path / "nope.yaml"
    assert (
        refuse("train", "--config", str(missing)) == f"{missing} cannot be read: No such file or directory."
    )
    assert refuse("train", "--config", str(tmp_path)).startswith(f"{tmp_path} cannot be read: ")


def test_an_override_beside_a_configuration_file_is_checked_too(refuse, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\n")
    assert "Unknown key `optim.lrr`" in refuse("train", "--config", str(path), "optim.lrr=1")


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("trains", " Did you mean `train`?"),
        ("Train", " Did you mean `train`?"),
        ("prepare-data", " Did you mean `prepare`?"),
        ("fly", ""),
    ],
)
def test_an_unknown_command_gets_the_nearest_and_the_list_of_commands(refuse, command, meant):
    expected = f"Unknown command `{command}`.{meant} Commands: {', '.join(COMMANDS)}."
    assert refuse(command) == refuse(command, "optim.lr=1") == expected


@pytest.mark.parametrize("option", ["--frobnicate", "-x", "--config"])
def test_an_unknown_option_gets_the_list_of_options(refuse, option):
    assert (
        refuse("train", option)
        == f"Unknown option `{option}`. Options: --config FILE, --cfg, --dry-run, -m, --help."
    )


def test_a_run_for_slurm_is_sent_to_submit_outside_of_its_jobs(refuse, monkeypatch):
    """It began eight ranks on the login node."""
    said = refuse("train", *CORPUS, "train.max_steps=1", "cluster=slurm")
    assert "`cluster.scheduler` must be none for `palimpsest train`" in said and "palimpsest submit" in said
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "palimpsest submit" not in refuse(
        "train", *CORPUS, "train.max_steps=1", "cluster=slurm", "optim.lr=-1"
    )


@pytest.mark.parametrize("option", ["--bogus", "--cfg", "--dry-run", "--config"])
def test_options_that_a_command_does_not_take_are_refused_with_its_own(refuse, option):
    assert refuse("status", option) == f"Unknown option `{option}`. Options: --help."
    assert refuse("prepare", "--bogus") == "Unknown option `--bogus`. Options: --config FILE, --cfg, --help."


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("model=smolm", "`smollm3_3b`, `smollm2_135m` or `smollm2_1_7b_instruct`"),
        ("model=mistral7b", "`mistral_7b_instruct`"),
        ("cluster=slrum", "`slurm`"),
    ],
)
def test_a_wrong_option_gets_all_that_are_as_near(refuse, word, meant):
    assert f" Did you mean {meant}?" in refuse("train", *CORPUS, word)


def test_several_nodes_are_not_started_from_here(refuse):
    message = refuse("train", *CORPUS, "train.max_steps=1", "cluster.num_nodes=2")
    assert (
        "`cluster.num_nodes` must be 1" in message
        and "`palimpsest submit`" in message
        and "cluster.hostfile" in message
    )


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_a_run_directory_without_a_run_is_named(refuse, tmp_path, command):
    assert f"{tmp_path} has no config.yaml" in refuse(command, f"run_dir={tmp_path}")


@pytest.mark.parametrize("variable", ["RANK", "OMPI_COMM_WORLD_RANK"])
def test_a_rank_of_any_launcher_does_not_prepare(refuse, monkeypatch, variable):
    """mpirun's ranks were once taken for a person's shell, and each started a launcher of its own."""
    prefix = variable.removesuffix("RANK")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE" if not prefix else "SIZE", "1")):
        monkeypatch.setenv(prefix + name, value)
    message = refuse("prepare", *CORPUS, "train.max_steps=1")
    assert message == "`prepare` must be started alone, not by a launcher. Run: palimpsest prepare"


def test_half_a_launchers_environment_is_refused(refuse, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert "`LOCAL_RANK` must be a whole number, but is unset" in refuse("train", *CORPUS)


# ---- what is not an error


def test_the_launchers_local_rank_is_accepted_and_ignored(here, capsys):
    for words in (["--local_rank", "3"], ["--local_rank=3"], ["--local-rank=3"]):
        assert run_command(["train", *words, "seed=5", "--cfg"]) == 0
        assert "\nseed: 5\n" in capsys.readouterr().out
    assert [*here.iterdir()] == []


def test_showing_the_configuration_prints_yaml_with_an_absolute_run_directory(here, capsys):
    assert run_command(["name=mine", "model=tiny", "--cfg"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["run_dir"] == str(here / "runs" / "mine") and shown["model"]["kind"] == "tiny"
    assert [*here.iterdir()] == []


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"], ["help"], ["optim.lr=1", "--help"]])
def test_help_is_shown_and_nothing_done(here, capsys, words):
    assert run_command(words) == 0
    assert capsys.readouterr().out.startswith("palimpsest: ") and [*here.iterdir()] == []


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_a_source_can_be_added_by_its_path(here, capsys, sign):
    words = [f"{sign}data.sources.mine.path=a.jsonl", f"{sign}data.sources.mine.format=chat", "data=text"]
    assert run_command(["prepare", *words, "data.sources.corpus.path=b.jsonl", "--cfg"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)["data"]["sources"]
    assert {name: (source["path"], source["format"]) for name, source in shown.items()} == {
        "corpus": (str(here / "b.jsonl"), "text"),
        "mine": (str(here / "a.jsonl"), "chat"),
    }


@pytest.mark.parametrize("sign", ["", "+"])
def test_a_misspelt_key_of_an_added_source_is_named(refuse, sign):
    message = refuse("prepare", f"{sign}data.sources.mine.path=a.jsonl", f"{sign}data.sources.mine.pth=x")
    assert "pth" in message


def test_a_misspelt_key_of_a_source_gets_the_nearest_key_of_sources(refuse):
    message = refuse("train", "data=text", "data.sources.corpus.pth=x")
    assert "Did you mean `data.sources.NAME.path`?" in message


@pytest.mark.parametrize("word", ["folder/sizes", "Ordner/größe/chäts", "№1.jsonl", "Ordner/größe=3/chäts"])
def test_a_path_that_a_shell_split_at_a_space_is_to_be_quoted(refuse, word):
    """One with an umlaut was an unknown key."""
    said = refuse("train", "data=chat", "data.sources.chat.path=mein", word)
    key = word.partition("=")[0]
    assert f"`{key}` must be given as KEY=VALUE, but the command line has '{key}" in said
    assert "instead. Quote the value." in said and "Unknown key" not in said


@pytest.mark.parametrize(("word", "part"), [("optim", "KEY=VALUE"), ("optim.lr=[1", "`optim.lr`")])
def test_an_override_that_cannot_be_parsed_says_how_to_write_it(refuse, word, part):
    assert part in refuse("train", word)


@pytest.mark.parametrize("shape", ["hidden_size=63", "num_attention_heads=0"])
def test_an_impossible_shape_of_the_tiny_model_is_a_sentence(refuse, tmp_path, shape):
    message = refuse(
        "prepare", *CORPUS, "train.max_steps=1", f"data.cache_dir={tmp_path}/cache", f"model.tiny.{shape}"
    )
    assert "`model.tiny" in message


def test_adapters_to_combine_need_one_run_directory_for_their_base(refuse, tmp_path):
    message = refuse("export", "adapters=[a,b]", f"export.output_dir={tmp_path}/both")
    assert "`export.adapters` must name at least one run directory" in message and "a, b" in message


@pytest.mark.parametrize("word", ["interpolate=0:1:0.1", "export.interpolate=0:1:0.1"])
def test_a_sweep_is_text_although_yaml_takes_it_for_a_number(word):
    from trainer.command.invocation import parse
    from trainer.config.store import compose_config

    overrides = parse(["export", "run_dir=x", word]).overrides
    assert compose_config(overrides).export.interpolate == "0:1:0.1"
    assert parse(["train", "interpolate=1"]).overrides == ["interpolate=1"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            ["replay.kl.beta=0.5"],
            ["`data.sources` must have a source with role=replay for replay.kl.beta=0.5"],
        ),
        (
            ["replay.kl.beta=-1"],
            ["`replay.kl.beta` must be 0 (off) or a finite number above it, but is -1.0"],
        ),
        (
            ["replay.kl.beta=inf"],
            ["`replay.kl.beta` must be a finite number, but is inf"],
        ),
        (["replay.kl.top=0"], ["`replay.kl.top` must be at least 1, but is 0 instead. Set 64."]),
        (["replay.kl.betta=1"], ["Unknown key `replay.kl.betta`. Did you mean `replay.kl.beta`?"]),
    ],
)
def test_a_divergence_that_cannot_be_is_refused_before_anything_is_read(refuse, overrides, parts):
    message = refuse("train", *CORPUS, "train.max_steps=1", *overrides)
    assert all(part in message for part in parts), message


def test_a_terminal_that_is_not_utf_8_gets_replaced_characters(here):
    command = [
        sys.executable,
        "-m",
        "trainer",
        "prepare",
        *CORPUS,
        "name='\u0436\u27e6'",
        "--cfg",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}
    shown = subprocess.run(command, env=environment, capture_output=True, cwd=here)
    assert shown.returncode == 0, shown.stderr
    assert b"name: ??" in shown.stdout


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_wrong_accelerator_is_told_with_what_else_is_wrong(refuse, monkeypatch, command):
    monkeypatch.setenv("DS_ACCELERATOR", "nonsense")
    said = refuse(command, *CORPUS, "train.max_steps=1", "optim.lr=-1")
    assert "`DS_ACCELERATOR` must be cuda, cpu or unset, but is 'nonsense' instead." in said
    assert "`optim.lr` must be more than 0" in said
