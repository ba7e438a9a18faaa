"""Write the tables of model families into docs/models.md, from what was measured.

    python docs/matrix.py

The rows are those of benchmarks/results/families.json, which `python -m tests.dist.test_families` writes; a test holds
the page to them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
RESULTS = ROOT / "benchmarks" / "results" / "families.json"
BEGIN, END = "<!-- written by docs/matrix.py -->\n", "<!-- to here -->\n"
TRAINED = ("family", "model_type", "kind", "packs", "LoRA covers", "exports to", "tested")
REFUSED = ("family", "model_type", "what the trainer says")


def main() -> None:
    """Put the tables between their marks in the page."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """Return the page with the tables that the results make: families that train, and those that are refused."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["results"]
    train = [row for row in rows if row["trains"] == "equal"]
    refused = [row for row in rows if row["trains"] != "equal"]
    tables = [
        f"These {len(train)} train as transformers does:\n\n{_table(TRAINED, map(_cells, train))}",
        f"These {len(refused)} are refused:\n\n{_table(REFUSED, map(_said, refused))}" if refused else "",
    ]
    return f"{before}{BEGIN}\n{chr(10).join(filter(None, tables))}\n{END}{after}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ("---",) * len(head), *rows))


def _said(row: dict[str, Any]) -> tuple[str, ...]:
    said = row["trains"].removeprefix("refused: ").replace("|", "/")
    return row["family"], f"`{row['model_type']}`", f"{said} (transformers {row['versions']['transformers']})"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    carried = row["carried"].removeprefix("layers of the kind ").removeprefix("the layers of ")
    packs = f"a row each ({carried})" if carried else "yes"
    return (
        row["family"],
        f"`{row['model_type']}`",
        row["kind"],
        packs,
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
