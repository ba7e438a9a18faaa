"""The parts of the benchmarks of preferences that could be wrong without anything failing."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from rich.console import Console

from tests.house.tree import ROOT
from trainer.config.check import find_problems
from trainer.config.store import compose_config
from trainer.forecast.memory import Parts, Peak, RunShape
from trainer.forecast.printed import memory_table


@pytest.fixture(autouse=True)
def _benchmarks_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


def test_hh_pairs_are_split_at_the_last_answer_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    from pair_rows import hh_pairs

    ask = "\n\nHuman: Hi?\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    rows = [
        {"chosen": f"{ask} So.", "rejected": f"{ask} Go."},
        {"chosen": f"{ask} So.", "rejected": f"{ask} So. "},
        {"chosen": f"{ask} So.", "rejected": f"{ask} "},
        {"chosen": f"{ask} So.", "rejected": f"{ask.replace('Why', 'Who')} Go."},
    ]
    path = tmp_path / "hh.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    found = hh_pairs(path)
    assert found.rows == [{"prompt": ask, "chosen": " So.", "rejected": " Go."}]
    assert found.dropped == {"equal answers": 1, "empty answers": 1, "different prompts": 1}


def test_long_pairs_are_of_the_seed_and_each_side_has_a_thousand_words() -> None:
    from pair_rows import long_pairs

    text = " ".join(f"w{number}" for number in range(5000))
    rows = long_pairs(text, 20, seed=3).rows
    assert rows == long_pairs(text, 20, seed=3).rows != long_pairs(text, 20, seed=4).rows
    for row in rows:
        words = {key: value.split() for key, value in row.items()}
        assert all(500 <= len(of) <= 1000 for of in words.values())
        last, first = (int(word[1:]) for word in (words["prompt"][-1], words["chosen"][0]))
        assert first == last + 1, "the chosen answer is what follows the prompt"


def test_tokens_of_a_pair_count_its_prompt_twice_or_once_and_both_ends() -> None:
    from pair_rows import mean_lengths, pair_tokens, word_tokenizer

    rows = [{"prompt": "a b c", "chosen": "d", "rejected": "e, f"}]
    lengths = mean_lengths(rows, word_tokenizer(rows, 100))
    assert lengths == {"prompt": 3, "chosen": 2, "rejected": 4}
    assert pair_tokens(lengths) == 12 and pair_tokens(lengths, is_shared=True) == 9


def test_the_forecast_is_read_from_the_column_of_the_run() -> None:
    from pairs import peak_of

    run = RunShape(1, 1, 2, 4096, 1, 0, 4096)
    peaks = {stage: Peak("loss head", Parts(activations=(10 + stage) * 1024**3)) for stage in range(4)}
    console = Console(width=120, record=True)
    console.print(memory_table(peaks, run, 4.0, 80.0))
    assert peak_of(console.export_text()) == 11.0
    assert peak_of("nothing was forecast") is None


def ranked_row(arm: str, **more: object) -> dict[str, object]:
    accuracy = {"eval_accuracy": 0.625, "eval_accuracy_low": 0.5, "eval_accuracy_high": 0.75}
    return {"arm": arm, "eval_margin": 0.1, "eval_accuracy_longer": 0.7, **accuracy, **more}


def test_the_tables_of_the_runs_have_every_arm_that_ended_and_what_it_forgot() -> None:
    from preference_runs import tables

    lost = {"name": "maths", "role": "probe", "change_nats": 0.02, "change_low": -0.01, "change_high": 0.05}
    ranked, forgot = tables(
        [
            ranked_row("base"),
            ranked_row("DPO, LoRA", sets=[lost]),
            ranked_row("DPO, full", sets=[lost | {"change_nats": 0.06}]),
            {"arm": "reward, LoRA", "failed": "1"},
        ]
    )
    assert ranked[2:4] == [
        "| base | 62.5 % (50.0 to 75.0) | +0.100 | 70.0 % |  |",
        "| DPO, LoRA | 62.5 % (50.0 to 75.0) | +0.100 | 70.0 % |  |",
    ]
    assert forgot == [
        "| arm | maths | gate |",
        "|---|---|---|",
        "| DPO, LoRA | +0.020 (-0.010 to +0.050) | passed |",
        "| DPO, full | +0.060 (-0.010 to +0.050) | refused: maths |",
    ]


def test_every_arm_is_a_configuration_that_is_not_refused(tmp_path: Path) -> None:
    """Two arms ended with exit code 2 on a GPU: the gate they had is not one of reward models."""
    from preference_runs import ARMS, overrides

    file = tmp_path / "rows.jsonl"
    file.write_text("{}")
    given = {"epochs": 3, "batch_tokens": 32768, "micro_batch": 8, "set": []}
    given |= {"hh": file, "general": file, "probe": [f"maths={file}"]}
    for arm in ARMS.values():
        config = compose_config([*overrides(arm, Namespace(**given), tmp_path), f"run_dir={tmp_path}"])
        assert list(find_problems(config, 1)) == []


@pytest.mark.parametrize(
    ("program", "record", "page"),
    [
        ("pairs", "pairs_1xH200.json", "docs/preferences.md"),
        ("preference_runs", "preference_runs.json", "docs/preferences.md"),
    ],
)
def test_the_page_has_the_table_that_the_command_prints(program: str, record: str, page: str) -> None:
    path = ROOT / "benchmarks" / "results" / record
    if not path.exists():
        pytest.skip(f"{record} was not measured yet")
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    made = importlib.import_module(program)
    tables = [made.table(results).splitlines()] if program == "pairs" else made.tables(results)
    rows = [row for table in tables for row in table]
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if row not in lines] == []


@pytest.mark.parametrize(("kind", "words"), [("hh", "{:.2f} x TRL's best"), ("long", "{:.2f} x")])
def test_the_front_page_has_the_ratio_that_was_measured(kind: str, words: str) -> None:
    record = json.loads((ROOT / "benchmarks/results/pairs_1xH200.json").read_text(encoding="utf-8"))
    rates = {row["case"]: row["pairs_per_s"] for row in record["results"] if row["data"] == kind}
    (best,) = (rate for case, rate in rates.items() if case.startswith(f"trl_{kind}_best"))
    link = f"[{words.format(rates[f'ours_{kind}_shared'] / best)}](docs/preferences.md#beside-trl)"
    assert link in (ROOT / "README.md").read_text(encoding="utf-8")
