"""The shipped configuration files: every option composes, sets known keys only, and wins in the promised order."""

import copy
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trainer.cli import run_command
from trainer.command.usage import help_text
from trainer.config.check import check_config, find_problems
from trainer.config.data import Format, Role
from trainer.config.describe import known_keys, schema_key
from trainer.config.model import ModelKind
from trainer.config.objective import ObjectiveKind
from trainer.config.optim import ScheduleName
from trainer.config.options import group_options
from trainer.config.schema import RunKind
from trainer.config.snapshot import config_digest, freeze
from trainer.config.store import compose_config, load_config

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
OPTIONS = [(path.parent.name, path.stem) for path in FILES if path.parent.name]
RECIPES, DEBUGS, EXPERIMENTS = (
    [option for group, option in OPTIONS if group == wanted] for wanted in ("recipe", "debug", "experiment")
)
OPEN_DICTS = ("zero.extra.", "model.tiny.", "hydra.sweeper.params.")
# One of each recipe; tests/conf/test_experiments.py composes and plans all of them.
SOME = ("quickstart", "llama3_1_8b_sft", "llama3_1_8b_lora", "phi4_qlora")


def content(path):
    return yaml.safe_load((CONF / path).read_text(encoding="utf-8")) or {}


@functools.cache
def composed(*overrides):
    return compose_config(overrides)


def complete(*overrides):
    """Compose, and fill in what an option leaves to the person: files, a model folder, a length."""
    config = copy.deepcopy(composed(*overrides))
    for source in config.data.sources.values():
        if source.path is None and source.dataset is None:
            source.path = "/data/documents.jsonl"
    if config.model.kind in (ModelKind.pretrained, ModelKind.random) and not config.model.path:
        config.model.path = "/models/ours"
    if config.objective.kind is ObjectiveKind.distill and not config.objective.distill.teacher:
        config.objective.distill.teacher = "/models/larger"
    if config.train.max_steps is config.train.max_epochs is config.train.max_tokens is None:
        config.train.max_steps = 1
    return config


def test_the_walk_finds_every_file_and_group():
    assert len(FILES) >= 44, FILES
    assert len(FILES) == 1 + len(OPTIONS) and Path("train.yaml") in FILES
    listed = {(group, option) for group, options in group_options().items() for option in options}
    assert listed == set(OPTIONS)
    assert len(group_options()) >= 12
    assert len(RECIPES) >= 3 and len(DEBUGS) >= 4 and len(EXPERIMENTS) >= 5


OF_PAIRS = (
    *("apo_down", "apo_zero", "conservative", "cpo", "dpo", "hinge", "ipo", "ipo_sum", "normalised", "orpo"),
    *("robust", "rpo", "simpo"),
)
OF_ANSWERS = ("apo_zero_unpaired", "kto")
OF_PREFERENCES = ("dpo", "preference_lora", "reward", "reward_lora")
# Composing costs 0.2 s, so one option of every group is taken at a time; the last groups have tests below.
GLOBAL = ("recipe", "experiment", "debug")
CHOSEN = {group: options for group, options in group_options().items() if group not in GLOBAL}
ROUNDS = [
    {group: options[turn % len(options)] for group, options in CHOSEN.items()}
    for turn in range(max(len(options) for options in CHOSEN.values()))
]


@pytest.mark.parametrize("options", [{**r, **dict.fromkeys(GLOBAL, "none")} for r in ROUNDS], ids=str)
def test_every_option_of_every_group_composes_and_passes_the_check(options):
    config = complete(*(f"{group}={option}" for group, option in options.items()))
    targets = [name for name, source in config.data.sources.items() if source.role is Role.target]
    fed = {**dict.fromkeys(OF_PAIRS, "preference"), **dict.fromkeys(OF_ANSWERS, "unpaired")}
    fed["reward"] = "preference"
    wanted = fed.get(options["objective"])
    is_fed = options["data"] == wanted or (wanted is None and options["data"] not in fed.values())
    formats = {config.data.sources[name].format for name in targets}
    is_fed = is_fed and not (options["objective"] == "distill_on_policy" and Format.text in formats)
    refused = {
        "cluster.hostfile": options["cluster"] == "hostfile",
        "data.sources": options["data"] == "none",
        f"data.sources.{targets[0] if targets else ''}.format": bool(targets) and not is_fed,
        # A reward model learns from pairs alone, replay too.
        **{
            f"data.sources.{name}.format": options["objective"] == "reward"
            for name, source in config.data.sources.items()
            if source.role is not Role.target and source.format is not Format.preference
        },
        **{
            key: options["objective"] == "reward" and options["gate"] != "none"
            for key in ("evaluate.forgetting", "gate.sets")
        },
        # A gate about general text needs some, and one about what was learnt no loss that makes it less likely.
        "gate.sets.general": options["gate"] != "none"
        and bool(targets)
        and len(targets) == len(config.data.sources),
        "gate.sets.target.min_drop_nats": options["gate"] == "default"
        and options["data"] in fed.values()
        and wanted is not None
        and options["objective"] not in ("cpo", "orpo", "reward"),
        # Answers are not sampled behind virtual tokens.
        "tune.method": options["objective"] == "distill_on_policy"
        and options["tune"] in ("prefix", "prompt"),
        "zero.stage": options["tune"] == "pissa" and options["zero"].startswith("zero3"),
        "zero.offload_param": (options["tune"], options["zero"]) == ("qlora", "zero3_offload"),
    }
    expected = [key for key, is_refused in refused.items() if is_refused]
    assert sorted(problem.key for problem in find_problems(config)) == sorted(expected)
    if not expected:
        check_config(config)


@pytest.mark.parametrize("objective", [*OF_PAIRS, *OF_ANSWERS])
def test_an_objective_of_preferences_passes_the_check_with_what_it_reads(objective):
    data = "preference" if objective in OF_PAIRS else "unpaired"
    check_config(complete(f"data={data}", f"objective={objective}", "model=tiny"))


def test_the_rounds_miss_no_option():
    taken = {choice for one in ROUNDS for choice in one.items()}
    assert taken == {(group, option) for group, option in OPTIONS if group not in GLOBAL}


@pytest.mark.parametrize("debug", DEBUGS)
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "none"])
def test_every_recipe_can_be_debugged(recipe, debug):
    data = "preference" if recipe in OF_PREFERENCES else "text"
    check_config(complete(f"data={data}", f"recipe={recipe}", f"debug={debug}"))


@pytest.mark.parametrize("experiment", SOME)
def test_an_experiment_can_be_debugged_with_its_number_of_ranks(experiment):
    config = complete(f"experiment={experiment}", "debug=one_step")
    check_config(config, config.cluster.num_nodes * max(config.cluster.ranks_per_node, 1))
    assert config.train.max_steps == 1 and config.train.max_epochs is None


def test_the_primary_defaults_begin_with_the_schema_and_name_every_group():
    defaults = content("train.yaml")["defaults"]
    assert defaults[0] == "run_schema"
    named = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    groups = [name for name in named if not name.startswith("override ")]
    assert sorted(groups) == sorted(group_options()) and len(groups) == len(set(groups))
    order = [entry if isinstance(entry, str) else next(iter(entry)) for entry in defaults]
    last = ["_self_", "recipe", "experiment", "debug"]
    assert [name for name in order if name in last] == last


def keys_of(tree, prefix):
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            yield from keys_of(value, f"{name}.")
        else:
            yield name


def unknown_keys(path):
    text = (CONF / path).read_text(encoding="utf-8")
    is_global = "@package _global_" in text.splitlines()[0]
    tree = {key: value for key, value in content(path).items() if key != "defaults"}
    known = set(known_keys())
    for key in keys_of(tree, "" if is_global else f"{path.parent.name}."):
        if schema_key(key) not in known and not key.startswith(OPEN_DICTS):
            yield key


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name], ids=str)
def test_every_option_file_sets_only_known_keys(path):
    assert list(unknown_keys(path)) == []


def test_every_choice_of_an_experiment_names_an_option():
    chosen = []
    for experiment in EXPERIMENTS:
        for entry in content(f"experiment/{experiment}.yaml").get("defaults", []):
            ((place, option),) = entry.items()
            group = place.removeprefix("override /")
            assert option in group_options()[group], (experiment, entry)
            chosen.append(group)
    assert chosen.count("recipe") == len(EXPERIMENTS) - 1


def test_help_lists_every_command_and_every_option_of_every_group(capsys):
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.rstrip("\n") == help_text()
    lines = {line.split()[0]: line for line in shown.splitlines() if line.startswith("  ")}
    for group, options in group_options().items():
        for option in options:
            assert option == "none" or option in lines[group].replace(",", "").split(), (group, option)


# ---- who wins


def test_an_experiment_beats_its_recipe_and_the_command_line_beats_both():
    recipe = complete("data=text", "recipe=continued_pretrain")
    experiment = complete("experiment=quickstart")
    assert (recipe.optim.lr, experiment.optim.lr) == (3e-5, 2e-4)
    assert (recipe.train.max_epochs, experiment.train.max_epochs) == (1, None)
    assert experiment.kind is RunKind.continued_pretrain and experiment.optim.weight_decay == 0.1
    asked = complete("experiment=quickstart", "optim.lr=7e-4", "train.max_steps=3")
    assert (asked.optim.lr, asked.train.max_steps) == (7e-4, 3)


def test_a_group_chosen_on_the_command_line_beats_the_choice_of_the_experiment():
    config = complete("experiment=quickstart", "model=tiny", "zero=zero1", "recipe=full_finetune")
    assert config.model.kind is ModelKind.tiny and config.zero.stage == 1
    assert config.kind is RunKind.full_finetune and config.optim.weight_decay == 0.0
    assert config.optim.lr == 2e-4, "the experiment's own values stand after those of the recipe"


def test_a_debug_option_beats_the_experiment():
    config = complete("experiment=quickstart", "debug=overfit")
    assert config.train.max_steps == 100 and config.schedule.name is ScheduleName.constant


def test_a_private_option_is_found_through_the_search_path(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "ours.yaml").write_text("path: /models/ours\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "ours.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: ours\n  - override /data: text\n"
        "  - override /recipe: full_finetune\nname: ours\noptim: {lr: 3.0e-6}\n"
    )
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert complete(search, "data=text", "model=ours").model.path == "/models/ours"
    config = complete(search, "experiment=ours")
    check_config(config)
    assert (config.name, config.optim.lr, config.model.path) == ("ours", 3e-6, "/models/ours")


# ---- composed once, read by every rank


@pytest.mark.parametrize("experiment", SOME)
def test_a_frozen_configuration_comes_back_equal(experiment, tmp_path):
    config = complete(
        f"experiment={experiment}",
        f"run_dir={tmp_path}/run",
        "+zero.extra.zero_optimization={zero_hpz_partition_size: 8}",
        "log.tags=[a,b]",
        "model.chat_template_date=2026-11-28",
    )
    path = freeze(config, Path(config.run_dir))
    assert path == tmp_path / "run" / "config.yaml" and [*path.parent.iterdir()] == [path]
    assert load_config(path) == config
    assert config_digest(load_config(path)) == config_digest(config)


def test_ranks_that_read_the_frozen_configuration_agree_on_its_digest(tmp_path):
    config = complete(
        "experiment=quickstart", f"run_dir={tmp_path}/run", "model.chat_template_date=2026-11-28"
    )
    path = freeze(config, Path(config.run_dir))
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from trainer.config.snapshot import config_digest\nfrom trainer.config.store import load_config\n"
        "print(config_digest(load_config(Path(sys.argv[1]), ['run_dir=elsewhere'])))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == config_digest(config), done.stderr


def test_composing_writes_nothing_and_can_be_done_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert compose_config(["experiment=quickstart"]) == compose_config(["experiment=quickstart"])
    assert [*tmp_path.iterdir()] == []
