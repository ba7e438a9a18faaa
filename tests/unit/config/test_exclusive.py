"""What a person types takes the place of what a group chose, and of nothing else."""

import dataclasses

import pytest

from trainer.command.explain import explain
from trainer.config.check import find_problems
from trainer.config.data import SourceConfig
from trainer.config.exclusive import EXCLUSIVE, partners
from trainer.config.model import ModelKind
from trainer.config.replay import Shift
from trainer.config.schema import RunConfig
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.errors import ConfigError

CHAT = ["data=chat", "data.sources.chat.path=a.jsonl"]


def composed(*words):
    """Return the configuration and the lines that were said."""
    lines = []
    return compose_config(words, say=lines.append), lines


def test_every_key_of_the_list_is_left_open_as_the_schema_has_it():
    for one in EXCLUSIVE:
        for key, left in one.keys.items():
            name = key.removeprefix("data.sources.NAME.")
            owner = SourceConfig() if name != key else RunConfig()
            for part in name.split(".")[:-1]:
                owner = getattr(owner, part)
            assert getattr(owner, name.rpartition(".")[2]) == left, key
    defaults = {field.name: field.default for field in dataclasses.fields(SourceConfig)}
    (along,) = [one.goes_along for one in EXCLUSIVE if "data.sources.NAME.dataset" in one.keys]
    assert all(defaults[name] == left for name, left in along["data.sources.NAME.dataset"].items())
    assert partners("train.max_steps") == ["train.max_epochs", "train.max_tokens"]


@pytest.mark.parametrize("recipe", ["full_finetune", "continued_pretrain", "lora", "qlora"])
def test_a_typed_length_replaces_that_of_the_recipe(recipe):
    config, lines = composed(*CHAT, f"recipe={recipe}", "train.max_steps=6")
    assert (config.train.max_steps, config.train.max_epochs) == (6, None)
    assert not [problem for problem in find_problems(config) if problem.key == "train"]
    (line,) = lines
    assert line.startswith("train.max_steps=6 of the command line takes the place of train.max_epochs=")


@pytest.mark.parametrize(
    "word", ["train={max_tokens: 1000}", "+train.max_tokens=1000", "++train.max_tokens=1000"]
)
def test_every_way_of_typing_counts(word):
    config, _ = composed(*CHAT, "experiment=quickstart", word)
    assert (config.train.max_tokens, config.train.max_steps, config.train.max_epochs) == (1000, None, None)


def test_null_leaves_open_and_replaces_nothing():
    config, lines = composed(*CHAT, "recipe=lora", "train.max_steps=null")
    assert config.train.max_epochs == 2 and lines == []


def test_two_typed_lengths_are_refused_and_the_recipes_is_out_of_it():
    config, _ = composed(*CHAT, "recipe=lora", "train.max_steps=6", "train.max_tokens=9")
    (problem,) = [found for found in find_problems(config) if found.key == "train"]
    assert "but has max_steps and max_tokens instead" in problem.sentence


def test_a_path_replaces_a_dataset_with_all_that_says_which():
    config, lines = composed("replay=general", *CHAT, "data.sources.general.path=old.txt")
    source = config.data.sources["general"]
    assert source.path.endswith("old.txt")
    assert (source.dataset, source.subset, source.revision, source.split) == (None, None, None, "train")
    assert len(lines) == 1 and "data.sources.general.dataset=wikimedia/wikipedia" in lines[0]


def test_a_typed_subset_stays_beside_a_typed_path():
    config, _ = composed("data=gsm8k", "data.sources.gsm8k={path: folder, subset: socratic}")
    source = config.data.sources["gsm8k"]
    assert (source.dataset, source.subset) == (None, "socratic") and source.columns.prompt == "question"


def test_a_typed_model_folder_replaces_the_tiny_model():
    config, lines = composed(*CHAT, "model=tiny", "model.path=org/some")
    assert config.model.kind is ModelKind.pretrained and "model.kind=tiny" in lines[0]
    shape, lines = composed(*CHAT, "model=benchmark", "model.path=org/some")
    assert shape.model.kind is ModelKind.random and lines == [], "a shape stands beside its folder"


def test_what_would_be_passed_over_counts_when_it_is_typed():
    config, _ = composed(*CHAT, "replay=generated", "replay.shift=strong")
    assert (config.replay.shift, config.replay.ratio) == (Shift.strong, None)
    config, lines = composed(*CHAT, "replay=general", "replay.ratio=0.1")
    assert (config.replay.ratio, config.replay.shift) == (0.1, Shift.weak), "a ratio wins over a shift anyway"
    assert lines == []


@pytest.mark.parametrize(
    "words",
    [
        ("schedule.warmup_steps=3", "schedule.warmup_frac=0.1"),
        ("replay.ratio=0.1", "replay.shift=weak"),
        ("tune.target=[q_proj]", "tune.target_pattern='.*q_proj'"),
        ("plan.gpu_gib=80", "cluster.gpu_gib=40"),
        ("model.kind=tiny", "model.path=x"),
    ],
)
def test_two_typed_ones_of_which_one_would_do_nothing_are_refused(words):
    first, second = (word.partition("=")[0] for word in words)
    with pytest.raises(
        ConfigError, match=rf"`({first}|{second})` must be left out with .* Leave one of them out"
    ):
        compose_config(words)


@pytest.fixture
def own(tmp_path):
    """Return a function that writes an experiment of a person's own and returns the words that choose it."""

    def write(text):
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
        return [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]

    return write


def test_a_persons_own_file_replaces_what_a_group_chose(own):
    words = own("defaults:\n  - override /recipe: lora\ntrain: {max_steps: 7}\n")
    config, lines = composed(*CHAT, *words)
    assert (config.train.max_steps, config.train.max_epochs) == (7, None)
    assert lines == ["train.max_steps=7 of your own file takes the place of train.max_epochs=2.0."]


def test_the_command_line_replaces_what_a_persons_own_file_says(own):
    words = own("defaults:\n  - override /recipe: lora\ntrain: {max_steps: 7}\n")
    config, lines = composed(*CHAT, *words, "train.max_tokens=5")
    assert (config.train.max_steps, config.train.max_epochs, config.train.max_tokens) == (None, None, 5)
    assert any(line.endswith("train.max_steps=7 of your own file.") for line in lines)


def test_two_in_one_own_file_are_refused(own):
    config, _ = composed(*CHAT, *own("train: {max_steps: 7, max_epochs: 1}\n"))
    assert [problem.key for problem in find_problems(config)] == ["model", "train"]


def test_a_frozen_configuration_shows_the_result_and_gives_way_to_words(tmp_path, capsys):
    config, _ = composed(*CHAT, "recipe=lora", "train.max_steps=6")
    file = tmp_path / "config.yaml"
    file.write_text(to_yaml(config))
    again = load_config(file)
    assert (again.train.max_steps, again.train.max_epochs) == (6, None)
    assert capsys.readouterr().err == ""
    later = load_config(file, ["train.max_epochs=1"])
    assert (later.train.max_steps, later.train.max_epochs) == (None, 1.0)
    assert "takes the place of train.max_steps=6" in capsys.readouterr().err


@pytest.fixture
def own_data(tmp_path):
    """Return a function that writes files of a person's own and returns the word that leads to them."""

    def write(**files):
        for name, text in files.items():
            group, option = name.split("__")
            (tmp_path / group).mkdir(exist_ok=True)
            (tmp_path / group / f"{option}.yaml").write_text(text)
        return f"hydra.searchpath=[file://{tmp_path}]"

    return write


MINE = "seq_len: 8192\nsources: {mine: {path: a.jsonl}}\n"


def test_a_persons_own_option_wins_over_a_recipe_that_comes_later(own_data, capsys):
    words = [own_data(data__mine=MINE), "data=mine", "recipe=continued_pretrain"]
    config, lines = composed(*words)
    assert config.data.seq_len == 8192
    assert lines == ["data.seq_len=8192 of your own file takes the place of data.seq_len=4096."]
    assert "8192" in next(line for line in explain(["data.seq_len", *words]).splitlines() if "here" in line)


def test_words_win_over_a_persons_own_option_and_a_debug_option_does_what_it_is_asked_for(own_data):
    search = own_data(
        data__mine=MINE, experiment__mine="# @package _global_\ntrain: {max_epochs: 3}\noptim: {lr: 1.0e-3}\n"
    )
    words = [search, "data=mine", "recipe=continued_pretrain", "experiment=mine"]
    config, lines = composed(*words, "data.seq_len=1024", "debug=one_step")
    assert config.data.seq_len == 1024 and lines == []
    assert (config.train.max_steps, config.train.max_epochs, config.optim.lr) == (1, None, 1e-3)


def test_a_later_file_of_ones_own_wins_over_an_earlier_one(own_data):
    search = own_data(data__mine=MINE, experiment__mine="# @package _global_\ndata: {seq_len: 512}\n")
    config, lines = composed(search, "data=mine", "recipe=continued_pretrain", "experiment=mine")
    assert config.data.seq_len == 512 and lines == []


def test_an_own_option_of_a_shipped_name_is_refused_since_it_would_not_be_read(own_data):
    with pytest.raises(ConfigError, match=r"`data=text` must be the name of one option"):
        composed(own_data(data__text=MINE), "data=text")


@pytest.mark.parametrize("recipe", ["lora", "qlora"])
@pytest.mark.parametrize("tune", ["full", "freeze"])
def test_a_rate_that_a_recipe_chose_for_an_adapter_is_not_kept_for_weights(recipe, tune):
    words = [*CHAT, f"recipe={recipe}", f"tune={tune}"]
    with pytest.raises(ConfigError) as caught:
        composed(*words)
    assert str(caught.value) == (
        f"`optim.lr` must be chosen for tune.method={tune}, but is 0.0001 instead, which recipe={recipe} chose for an "
        "adapter. Set recipe=full_finetune, or optim.lr=1e-05."
    )
    config, lines = composed(*words, "optim.lr=1e-4")
    assert (config.optim.lr, lines) == (1e-4, []), "a person may choose the same"
    assert composed(*CHAT, "recipe=full_finetune", f"tune={tune}")[1] == []


def test_a_rate_that_a_recipe_chose_for_other_parameters_is_told_of():
    _, lines = composed(*CHAT, "recipe=full_finetune", "tune=lora")
    assert lines == [
        "optim.lr=1e-05 is what recipe=full_finetune chose for other parameters; for tune.method=lora 1e-4 is usual. "
        "Set optim.lr to say which."
    ]
    assert composed(*CHAT, "recipe=lora", "tune=prompt")[1][0].endswith(
        "3e-2 is usual. Set optim.lr to say which."
    )
    assert composed(*CHAT, "recipe=lora", "tune=dora")[1] == []
    assert composed(*CHAT, "tune=lora")[1] == [], "no recipe chose anything"
    assert composed(*CHAT, "recipe=full_finetune", "tune=lora", "optim={lr: 1e-5}")[1] == []
    (line,) = composed("data=preference", "recipe=dpo", "tune=lora")[1]
    assert (
        line.startswith("optim.lr=5e-07 is what recipe=dpo chose")
        and "tune.method=lora 5e-6 is usual" in line
    )
    with pytest.raises(
        ConfigError, match=r"recipe=preference_lora chose for an adapter. Set recipe=dpo, or optim.lr=5e-07"
    ):
        composed("data=preference", "recipe=preference_lora", "tune=full")


def test_a_rate_of_an_own_file_is_its_own(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = (
        "# @package _global_\ndefaults: [override /recipe: lora]\ntune: {method: full}\noptim: {lr: 1.0e-4}\n"
    )
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    config, lines = composed(*CHAT, f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine")
    assert config.optim.lr == 1e-4 and not [line for line in lines if "chose for" in line]
