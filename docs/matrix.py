"""Write the table of model families into docs/models.md, from what was measured.

    python docs/matrix.py

The rows are those of benchmarks/results/families.json, which `python -m tests.dist.test_families` writes; a test holds
the page to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
BEGIN, END = "<!-- written by docs/matrix.py -->\n", "<!-- to here -->\n"
COLUMNS = ("family", "model_type", "kind", "trains", "packs", "LoRA covers", "exports to", "tested")


def main() -> None:
    """Put the table between its marks in the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """Return the page with the table that the results make."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(row) for row in rows)]
    table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    trains = row["trains"]
    begins = (row["family"], f"`{row['model_type']}`", row["kind"])
    if trains != "equal":
        return (
            *begins,
            trains.replace("|", "/"),
            "",
            "",
            "",
            f"transformers {row['versions']['transformers']}",
        )
    carried = row["carried"].removeprefix("layers of the kind ").removeprefix("the layers of ")
    return (
        *begins,
        "yes",
        f"a row each ({carried})" if carried else "yes",
        _lora(row),
        _exports(row),
        _tested(row),
    )


def _lora(row: dict[str, Any]) -> str:
    if row.get("lora") != "equal":
        return str(row.get("lora", "")).replace("|", "/")
    rest, asked = set(row["left_out"]), row.get("lora_with_experts")
    experts = rest - set(row.get("left_out_with_experts", rest))
    said = "linear layers" + (", experts on request" if experts else "")
    if asked not in (None, "equal"):
        said += f"; with experts: {asked}".replace("|", "/")
    return said + (
        f"; not {', '.join(f'`{kind}`' for kind in sorted(rest - experts))}" if rest - experts else ""
    )


def _exports(row: dict[str, Any]) -> str:
    whole = row["exports"]
    said = "transformers" if whole == "equal" else whole.replace("|", "/")
    return said + (", peft" if row.get("lora") == "equal" else "")


def _tested(row: dict[str, Any]) -> str:
    sharded = row["sharded"]
    apart = max(row["loss"], row["gradient"])
    return f"{apart:.0e}; ZeRO-3 on two ranks" + ("" if sharded == "equal" else f": {sharded}").replace(
        "|", "/"
    )


if __name__ == "__main__":
    main()
