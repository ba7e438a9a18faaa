"""The README is a page, and what it claims is what the repository holds."""

import json
import re
from statistics import median

import pytest

from tests.house.test_tables import RESULTS, table_rows
from tests.house.tree import ROOT

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
RECOMPUTED = {"all layers recomputed": "_full", "half of them": "_half"}


def outside_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_is_short_and_its_paragraphs_too():
    assert len(TEXT.splitlines()) <= 150 and "@@" not in TEXT
    for paragraph in outside_blocks(TEXT).split("\n\n"):
        lines = [line for line in paragraph.strip().splitlines() if not line.startswith(("|", "*"))]
        assert len(lines) <= 4, paragraph


@pytest.mark.parametrize("page", PAGES)
def test_links_between_files_lead_to_files(page):
    """As they are read where the repository is hosted; docs/build.py looks at the links of the site."""
    for target in re.findall(r"\]\(([^)#\s]+)", outside_blocks((ROOT / page).read_text(encoding="utf-8"))):
        assert ":" in target or ((ROOT / page).parent / target).is_file(), target


def test_the_quickstarts_losses_come_from_its_measurement():
    sets = json.loads((RESULTS / "quickstart_2_cpu_ranks.forgetting.json").read_text(encoding="utf-8"))[
        "sets"
    ]
    assert {one["role"] for one in sets} == {"target", "replay"}
    for one in sets:
        assert f"{one['base_nats']:.4f} -> {one['tuned_nats']:.4f} ({one['change_nats']:+.4f})" in TEXT


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_quickstarts_speed_comes_from_its_measurement_and_no_other_time_is_told(page):
    """How long a machine takes to install and download is in no results file."""
    lines = (RESULTS / "quickstart_2_cpu_ranks.metrics.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [row["tokens_per_s"] for row in map(json.loads, lines) if "tokens_per_s" in row]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"speed            {median(speeds):,.0f} tokens/s (median of {len(speeds)} steps)" in text
    assert not re.findall(r"\d+ (?:min\b|minutes)", text)


def test_the_number_of_families_is_that_of_their_table():
    rows = json.loads((RESULTS / "families.json").read_text(encoding="utf-8"))["results"]
    number = sum(row["trains"] == "equal" for row in rows)
    assert f"[{number} tiny families train as transformers does](docs/models.md)" in TEXT


def test_the_number_of_runs_about_forgetting_is_that_of_their_file():
    runs = json.loads((RESULTS / "forgetting.json").read_text(encoding="utf-8"))["runs"]
    assert f"Part of {len(runs)} runs;" in TEXT


def test_the_forgetting_rows_are_those_of_the_whole_table():
    rows = table_rows("README.md", "shift")
    whole = table_rows("docs/forgetting.md", "shift")
    assert len(rows) >= 4
    for row in rows:
        assert any(row.items() <= one.items() for one in whole), row


def test_the_speeds_and_the_ratio_come_from_results_files():
    rows = table_rows("README.md", "case")
    assert len(rows) >= 4 and any(row["to a plain loop"] for row in rows)
    for row in rows:
        record = json.loads((RESULTS / row["file"]).read_text(encoding="utf-8"))
        used, gpus = record["environment"]["gpus_used"], record["environment"]["gpus"]
        assert row["GPUs"] == f"{used} x {gpus[0].split()[1]}"
        by_case = {result["case"]: result for result in record["results"]}
        found = [result for case, result in by_case.items() if "plain" not in case]
        wanted = next((end for words, end in RECOMPUTED.items() if words in row["case"]), "")
        found = [result for result in found if result["case"].endswith(wanted)] if wanted else found[:1]
        assert len(found) == 1, row
        assert row["tok/s/GPU"] == f"{found[0]['tokens_per_s_per_gpu']:,.0f}"
        assert row["causal MFU"] == f"{100 * found[0]['mfu']:.1f} %"
        assert row["peak GiB"] == f"{found[0]['memory_gib']:.1f}"
        plain = by_case.get(f"{found[0]['case']} (plain loop)")
        ratio = found[0]["tokens_per_s_per_gpu"] / plain["tokens_per_s_per_gpu"] if plain else None
        assert row["to a plain loop"] == (f"{ratio:.3f}" if ratio else "")
