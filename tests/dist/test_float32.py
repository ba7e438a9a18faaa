"""A machine without bf16, by the switch that hides it: every command of a run follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, session_of
from tests.dist.test_support_matrix import overrides_of, write_sources
from tests.helpers.benchmark_tasks import NAMES, write_tasks
from tests.helpers.ranks import run_apart
from trainer.config.snapshot import config_path
from trainer.config.store import load_config
from trainer.model.dtype import NO_BF16


def run(folder: Path, *processes: list[list[str]]) -> dict[str, str]:
    """Run the commands of each process, and return what each printed, by its first word and the last."""
    shown = {}
    for commands in processes:
        said = run_apart(commands, folder, **{NO_BF16: "1"})
        parts = [part.partition("\n") for part in said.split("$ ")[1:]]
        shown |= {f"{words.split()[0]} {words.split()[-1]}": text for words, _, text in parts}
    return shown


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float32")
    write_sources(folder)
    return folder


def words_of(folder: Path, recipe: str) -> list[str]:
    words = overrides_of(folder, recipe, 2)
    return [*words, "data.num_workers=1", "checkpoint.every_steps=0", "evaluate.kl_packs=2"]


def test_a_whole_model_is_trained_evaluated_and_exported_in_float32(sources: Path) -> None:
    run_dir = f"run_dir={sources}/full_finetune-2"
    shown = run(
        sources,
        [[command, *words_of(sources, "full_finetune"), run_dir] for command in ("prepare", "train")],
        [["evaluate", run_dir]],
        [
            ["export", run_dir, "export.output_dir=wide"],
            ["export", run_dir, "export.dtype=bfloat16", "export.output_dir=narrow"],
            ["export", run_dir, "interpolate=0:1:1"],
        ],
    )
    assert load_config(config_path(sources / "full_finetune-2")).zero.dtype == "fp32"
    trained = shown[f"train {run_dir}"]
    assert "Training in float32: PALIMPSEST_NO_BF16 hides bf16 (zero.dtype=fp32)." in trained
    assert "in float32, as it was trained" in shown["export export.output_dir=wide"]
    narrow = shown["export export.output_dir=narrow"]
    assert "It was trained in float32: bfloat16 weights move the logits by" in narrow
    assert "% are the base's again when rounded to bfloat16; export.dtype=float32 keeps them." in narrow
    assert not list(sources.glob(".narrow*")), "the unrounded copy is gone"
    forgetting = json.loads((sources / "full_finetune-2" / "forgetting.json").read_text())
    assert "fp32" in forgetting["run"]["dtype"]


@pytest.mark.parametrize(
    "recipe", [pytest.param(recipe, marks=pytest.mark.slow) for recipe in ("lora", "qlora")]
)
def test_an_adapter_is_trained_and_exported_in_float32(sources: Path, recipe: str) -> None:
    """Alone and merged, wide and narrow: what rounding does is told, and nothing that is right is refused."""
    run_dir = f"run_dir={sources}/{recipe}-2"
    commands = []
    for name, words in (("alone", []), ("merged", ["export.merge=true"])):
        for dtype in ("auto", "bfloat16"):
            words_here = [*words, f"export.dtype={dtype}", f"export.output_dir={recipe}-{name}-{dtype}"]
            commands.append(["export", run_dir, *words_here])
    first = [[command, *words_of(sources, recipe), run_dir] for command in ("prepare", "train")]
    shown = run(sources, first, commands)
    assert load_config(config_path(sources / f"{recipe}-2")).zero.dtype == "fp32"
    for name in ("alone", "merged"):
        assert "in float32, as it was trained" in shown[f"export export.output_dir={recipe}-{name}-auto"]
        assert (
            "bfloat16 weights move the logits" in shown[f"export export.output_dir={recipe}-{name}-bfloat16"]
        )
    assert "are the base's again" in shown[f"export export.output_dir={recipe}-merged-bfloat16"]
    assert "are the base's again" not in shown[f"export export.output_dir={recipe}-merged-auto"]


@pytest.mark.slow
def test_samples_and_benchmark_tasks_are_computed_in_float32(sources: Path) -> None:
    pytest.importorskip("lm_eval", reason="pip install 'palimpsest-trainer[eval]'")
    run_dir, names = f"run_dir={sources}/tasks", ",".join(NAMES)
    tasks = [f"evaluate.tasks.names=[{names}]", f"evaluate.tasks.include_path={write_tasks(sources)}"]
    words = [*words_of(sources, "full_finetune"), run_dir]
    few = [
        "prompts=text",
        "num_tokens=300",
        "max_new_tokens=24",
        "max_replacement=1",
        "max_repeated_ngrams=1",
    ]
    sample = [*(f"replay.generate.{one}" for one in few), "model=tiny", f"data.cache_dir={sources}/sampled"]
    shown = run(
        sources,
        [["prepare", *words], ["train", *words]],
        [["evaluate", *tasks, run_dir]],
        [["replay", "generate", *sample]],
    )
    frozen = load_config(config_path(sources / "tasks"))
    assert frozen.zero.dtype == "fp32"
    assert "local_choice acc:" in shown[f"evaluate {run_dir}"]
    (meta,) = (sources / "sampled" / "generated").glob("*/meta.json")
    assert json.loads(meta.read_text())["dtype"] == "fp32"


def dtypes(mesh: Any, workspace: str, run_dir: str) -> dict[str, Any]:
    """Open a session with what each rank would have chosen for itself."""
    mine = ["zero.dtype=fp32", "zero.dtype=bf16"][mesh.rank]
    with session_of(config_of(workspace, run_dir, mine, f"zero.stage={mesh.rank + 1}")) as session:
        parameter = next(session.policy.engine.module.parameters())
        return {
            "config": session.config.zero.dtype,
            "stage": session.policy.engine.stage,
            "held": str(parameter.dtype),
        }


def test_ranks_of_different_nodes_take_what_the_first_one_chose(
    pool: Any, workspace: str, tmp_path: Path
) -> None:
    found = pool(2).run(dtypes, workspace=workspace, run_dir=str(tmp_path / "run"))
    assert found == [{"config": "fp32", "stage": 1, "held": "torch.float32"}] * 2
