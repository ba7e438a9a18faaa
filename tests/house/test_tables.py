"""Tables and figures of the documentation are what the repository holds."""

import functools
import importlib
import json
import re
from typing import Any

import pytest

from tests.house.tree import ROOT
from trainer.config.check import find_problems
from trainer.config.model import Attention
from trainer.config.options import group_options
from trainer.config.schema import RunConfig
from trainer.config.snapshot import with_fitted
from trainer.config.store import compose_config
from trainer.errors import ModelError
from trainer.model.attention import choose_attention

BOTH = ("continued_pretrain", "full_finetune")
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def table_rows(page: str, first_header: str) -> list[dict[str, str]]:
    lines = iter((ROOT / page).read_text(encoding="utf-8").splitlines())
    header = next(line for line in lines if line.startswith(f"| {first_header} |"))
    names = [cell.strip() for cell in header.strip("|").split("|")]
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.append(dict(zip(names, cells, strict=True)))
    return rows


MATRIX = table_rows("docs/models.md", "recipe")
METHODS = table_rows("docs/models.md", "tune")


def method_cells() -> list[tuple[str, str, int, str]]:
    """Return (method, recipe, ZeRO stage, what the table says)."""
    return [(row["tune"], row["with"], stage, row[f"ZeRO-{stage}"]) for row in METHODS for stage in range(4)]


def test_every_figure_in_the_speed_table_comes_from_a_results_file():
    rows = table_rows("docs/performance.md", "case")
    assert len(rows) >= 5
    for row in rows:
        results = json.loads((RESULTS / row["file"]).read_text(encoding="utf-8"))["results"]
        found = next(result for result in results if result["case"] == row["case"])
        assert row["tok/s/GPU"] == f"{found['tokens_per_s_per_gpu']:,.0f}"
        assert row["causal MFU"] == f"{100 * found['mfu']:.1f} %"
        assert row["peak GiB"] == f"{found['memory_gib']:.1f}"


def test_what_other_trainers_did_is_what_was_measured():
    def measured(file: str) -> dict[tuple[str, str, str], dict[str, Any]]:
        rows = json.loads((RESULTS / file).read_text(encoding="utf-8"))["results"]
        return {(row["method"], str(row["num_micros"]), row["trainer"]): row for row in rows}

    rows = table_rows("docs/performance.md", "method")
    for file in {row["file"] for row in rows}:
        told = {(row["method"], row["micro-batches"], row["trainer"]) for row in rows if row["file"] == file}
        assert told == set(measured(file)), "all that a file holds is told, and no more"
    for row in rows:
        by_case = measured(row["file"])
        found = by_case[row["method"], row["micro-batches"], row["trainer"]]
        base = by_case.get((row["method"], row["micro-batches"], "unsloth"))
        assert row["tok/s"] == f"{found['tokens_per_s']:,.0f}"
        assert row["of Unsloth's"] == (f"{found['tokens_per_s'] / base['tokens_per_s']:.3f}" if base else "")
        assert row["peak GiB"] == f"{found['memory_gib']:.1f}"
    by_case = measured("peers_1xH200.json")
    ours, unsloth, trl = (by_case["lora", "1", name]["tokens_per_s"] for name in ("ours", "unsloth", "trl"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"[{ours / unsloth:.3f} x Unsloth, {ours / trl:.3f} x TRL]" in text


def recorded(file: str) -> Any:
    return json.loads((RESULTS / file).read_text(encoding="utf-8"))


def test_what_a_run_survives_comes_from_the_records():
    rows = {row["file"]: row for row in table_rows("README.md", "done to a run")}
    assert len(rows) == 5
    chaos = recorded("chaos.json")
    hit = chaos["counts"]["went on, same bits"]
    assert set(chaos["counts"]) <= {"went on, same bits", "over before"} and hit >= 200
    most, every = chaos["most_lost_steps"], chaos["steps_between_saves"]
    told = f"{hit} of {hit} came to the same bits; at most {most} steps taken again, saved every {every}"
    assert rows["chaos.json"]["seen"] == told
    soak = recorded("soak.json")
    good = [run for run in soak["runs"] if run["problem"] is None]
    told = f"{len(good)} of {len(soak['runs'])} runs came to the same bits; {100 * soak['ettr']:.0f} % of the time in"
    assert rows["soak.json"]["seen"].startswith(told)
    disk = recorded("full_disk.json")
    good = [file for file in disk["files"] if file["problem"] is None]
    assert rows["full_disk.json"]["done to a run"].endswith(f"each of {len(disk['files'])} files on")
    assert rows["full_disk.json"]["seen"].startswith(
        f"{len(good)} of {len(disk['files'])} ended in a sentence"
    )
    flips = recorded("flips.json")["files"]
    unread = [flip for flip in flips if flip["outcome"] == "not read"]
    assert rows["flips.json"]["done to a run"].endswith(f"each of {len(flips)} files")
    assert rows["flips.json"]["seen"].startswith(
        f"{len(flips) - len(unread)} named or made again; {len(unread)} are"
    )
    fuzz = recorded("fuzz.json")["kinds"]
    assert sorted(fuzz) == [
        "data files",
        "ledgers",
        "manifests",
        "overrides of a source",
        "overrides of any keys",
    ]
    num_tried = sum(kind["tried"] for kind in fuzz.values())
    num_good = sum(sum(kind["outcomes"].values()) for kind in fuzz.values())
    assert rows["fuzz.json"]["seen"].startswith(f"{num_good:,} of {num_tried:,} taken for what they are or")


COLUMNS = {"new text": "target", "Wikipedia": "wikipedia"} | {
    name: name for name in ("maths", "medicine", "KL on chats")
}


@pytest.mark.parametrize(
    ("heading", "key", "label"), [("shift", "summary", "arm"), ("method", "equal_target_loss", "method")]
)
def test_every_figure_in_the_forgetting_tables_comes_from_the_results_file(heading, key, label):
    measured = json.loads((RESULTS / "forgetting.json").read_text(encoding="utf-8"))[key]
    rows = table_rows("docs/forgetting.md", heading)
    assert len(rows) == len(measured) >= 4
    for row in rows:
        (found,) = [m for m in measured if (m["shift"], m[label]) == (row["shift"], row[label])]
        for shown, name in COLUMNS.items():
            mean, deviation = found["changes"][name]
            assert row[shown] == f"{mean:+.3f} ± {deviation:.3f}"


def test_tables_and_figure_of_the_arms_are_those_of_their_record(monkeypatch):
    path = RESULTS / "forgetting_arms.json"
    if not path.exists():
        pytest.skip("benchmarks/forgetting/experiment.py has not been run yet")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "forgetting"))
    judge, pareto = (importlib.import_module(name) for name in ("judge", "pareto"))
    record = json.loads(path.read_text(encoding="utf-8"))
    points = judge.points_of(record["runs"])
    assert record["equal_loss"] == json.loads(json.dumps(judge.equal_loss(points)))
    assert record["chosen"] == json.loads(json.dumps(judge.chosen_and_judged(points)))
    told = (DOCS / "forgetting.md").read_text(encoding="utf-8").splitlines()
    for table in (judge.equal_table(record["equal_loss"]), judge.judged_table(record["chosen"])):
        assert not [line for line in table.splitlines() if line not in told]
    drawn = (DOCS / "img" / "forgetting_arms.svg").read_text(encoding="utf-8")
    assert drawn == f"{pareto.figure(record)}\n"


def test_the_losses_on_gsm8k_come_from_their_measurement():
    path = RESULTS / "gsm8k_adapters_1xH100.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    rows = {row["adapter"]: row for row in table_rows("docs/adapters.md", "adapter")}
    assert set(rows) == {result["recipe"] for result in results}
    for result in results:
        row = rows[result["recipe"]]
        assert row["gate"] == result["gate"] and all(result["answers"].values())
        for one in result["sets"]:
            assert row[one["name"]] == f"{one['base_nats']:.4f} -> {one['tuned_nats']:.4f}"


def test_the_size_of_a_lora_checkpoint_comes_from_its_measurement():
    path = RESULTS / "llama3_8b_1xH100_lora_checkpoint.json"
    (found,) = json.loads(path.read_text(encoding="utf-8"))["results"]
    size = found["checkpoint_bytes"]
    page = (DOCS / "adapters.md").read_text(encoding="utf-8")
    assert size < 600e6 and f"{size / 1e6:.0f} MB for r = 16 of an 8B model" in page


def test_the_matrix_has_every_recipe_and_stage_once():
    recipes = [name for name in group_options()["recipe"] if name != "none"]
    expected = {(recipe, str(stage)) for recipe in recipes for stage in range(4)}
    assert {(row["recipe"], row["ZeRO"]) for row in MATRIX} == expected
    assert len(MATRIX) == len(expected)


def test_the_table_of_methods_has_every_method_with_both_recipes_once():
    options = set(group_options()["tune"]) - {"full", "qlora", "rslora", "lora_plus"}
    named = [(row["tune"], row["with"]) for row in METHODS]
    assert len(named) == len(set(named))
    assert set(named) == {(name, recipe) for name in options for recipe in BOTH}


@functools.cache
def composed(method: str, recipe: str) -> RunConfig:
    words = [
        f"recipe={recipe}",
        f"tune={method}",
        "model=tiny",
        "data=text",
        "data.sources.corpus.path=x.txt",
    ]
    return compose_config(words)


@pytest.mark.parametrize(("method", "recipe", "stage", "said"), method_cells())
def test_a_method_is_refused_in_the_config_check_where_the_table_says_so(method, recipe, stage, said):
    config = with_fitted(composed(method, recipe), stage, 0, "auto")
    problems = [p for p in find_problems(config, 1) if p.is_in(("tune", "zero"))]
    assert said in ("tested", "refused") and bool(problems) == (said == "refused"), problems


@pytest.mark.parametrize("attention", [a for a in Attention if a.value.startswith("flash")])
def test_flash_attention_without_a_gpu_is_refused_as_the_matrix_says(attention):
    assert {row["any flash, no GPU"] for row in MATRIX} == {"refused"}
    with pytest.raises(ModelError, match="Install it with"):
        choose_attention(attention, None)


def test_what_the_matrix_calls_measured_has_a_result_on_gpus():
    measured = {row["ZeRO"] for row in MATRIX if row["flash_attention_2"] == "measured"}
    ran = set()
    for path in RESULTS.glob("llama3_8b_*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["environment"]["versions"]["flash-attn"]:
            for result in record["results"]:
                stage = re.search(r"zero=zero(\d)", " ".join(result["overrides"]))
                if "failed" not in result and stage:
                    ran.add(stage.group(1))
    assert measured and measured <= ran


GROWING = ("model", "experiment")


def test_every_experiment_and_model_is_in_the_page_of_help():
    page = (ROOT / "docs" / "help.md").read_text(encoding="utf-8")
    for group in GROWING:
        missing = [name for name in group_options()[group] if name != "none" and f"`{name}`" not in page]
        assert not missing, (group, missing)


def test_held_out_losses_agree_between_gpu_and_cpu():
    losses = []
    page = (DOCS / "performance.md").read_text(encoding="utf-8")
    for name in ("smollm2_135m_1_H200", "smollm2_135m_2_cpu_ranks"):
        lines = (RESULTS / f"{name}.metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([row["eval_mean"] for row in map(json.loads, lines) if "eval_mean" in row])
        assert ", ".join(f"{loss:.4f}" for loss in losses[-1]) in page
    assert losses[0] == pytest.approx(losses[1], abs=0.005)
