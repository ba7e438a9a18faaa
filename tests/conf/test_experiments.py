"""Every experiment that ships is planned as it stands, and its head tells what the plan said."""

import re
from pathlib import Path

import pytest

from trainer.cli import run_command
from trainer.config.options import group_options, shipped_options
from trainer.config.tune import TuneMethod

CONF = Path(__file__).resolve().parents[2] / "conf"
EXPERIMENTS = [name for name in group_options()["experiment"] if name != "none"]
HEAD = re.compile(
    r"GPUs: (?P<gpus>\d+) x (?P<gib>\d+) GiB[^.]*\. Memory of one: (?P<peak>[\d.]+) GiB "
    r"\((?P<command>palimpsest plan experiment=\S+ plan\.gpu_gib=\d+)\)\.$"
)
FAMILIES = {"llama", "qwen2", "qwen3", "mistral", "gemma3_text", "olmo2", "olmo3", "phi3", "smollm3"}
FAMILIES |= {"qwen3_moe", "gemma3", "mistral3", "gpt_oss", "granitemoehybrid", "glm4_moe"}


def option(name):
    (found,) = [one for one in shipped_options() if one.word == f"experiment={name}"]
    return found


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_fits_its_gpus_with_the_memory_that_its_head_tells(name, offline, capsys):
    head = HEAD.search(option(name).purpose)
    assert head, "the head ends with GPUs, memory and the command that says so"
    assert head["command"] == f"palimpsest plan experiment={name} plan.gpu_gib={head['gib']}"
    # What a person still has to say does not matter for memory.
    files = [f"{key}=/data/x.jsonl" for key in ("data.sources.corpus.path", "data.sources.chat.path")]
    given = [word for word in files if word.split(".")[2] in option(name).choices.get("data", "")]
    given += files[:1] if option(name).choices["data"] == "text" else []
    given += ["data.sources.pairs.path=/data/x.jsonl"] * (option(name).choices["data"] == "preference")
    assert run_command([*head["command"].split()[1:], "plan.strict=true", *given]) == 0
    shown = capsys.readouterr().out
    peaks = {line.split("  ")[0].strip(): line for line in shown.splitlines()}["peak"].split()[1:]
    (spare,) = re.findall(r"Fits a GPU of [\d.]+ GiB with ([\d.]+) GiB to spare", shown)  # not "only"
    assert any(float(peak) == pytest.approx(float(head["peak"]), abs=0.051) for peak in peaks)
    assert float(head["gib"]) - 4 - float(head["peak"]) == pytest.approx(float(spare), abs=0.11)
    # One rank a GPU of the head, one column of a stage the run's own.
    assert re.search(rf"\b{head['gpus']} (rank|GPU)s?\b", shown), "the plan counts the GPUs of the head"


def test_there_is_an_experiment_for_every_recipe_and_method_people_ask_for():
    choices = [option(name).choices for name in EXPERIMENTS]
    chosen = {pair for one in choices for pair in one.items()}
    for wanted in (
        *(("recipe", name) for name in ("full_finetune", "continued_pretrain", "lora", "qlora")),
        *(("recipe", name) for name in ("dpo", "preference_lora", "reward")),
        *(("tune", name) for name in ("dora", "pissa", TuneMethod.freeze.value)),
        *(("replay", name) for name in ("general", "generated")),
        ("objective", "weighted"),
    ):
        assert wanted in chosen, wanted


def test_every_family_that_trains_has_an_experiment():
    from trainer.forecast.config_json import shipped_shapes
    from trainer.model.embedded import EMBEDDED

    paths = {one.word: one.values.get("path") or one.values.get("model.path") for one in shipped_options()}
    used = {paths[f"model={option(name).choices['model']}"] or EMBEDDED for name in EXPERIMENTS}
    assert {shipped_shapes()[path]["model_type"] for path in used} == FAMILIES


def test_the_example_of_a_sweep_lists_its_points(offline, capsys):
    words = ["train", "-m", "experiment=smollm2_1_7b_rates", "--dry-run", "cluster.ranks_per_node=1"]
    code, shown = run_command(words), capsys.readouterr()
    assert code == 0, shown.err
    assert len(re.findall(r"00\d_lr-\S+_r-\d+", shown.err)) >= 6, shown
