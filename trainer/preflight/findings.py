"""Rows and problems as they are found, so that what was found before a check hangs is told as well."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.config.many import many
from trainer.config.snapshot import write_atomic
from trainer.preflight.facts import Check, NodeProblem, Row
from trainer.runtime.say import say

RECORD = "preflight.json"
"""In the folder of logs of an attempt."""
_WIDTH = 110


class Findings:
    """What the first process knows so far."""

    def __init__(self) -> None:
        self._rows: dict[Check, Row] = {}
        self.problems: list[NodeProblem] = []
        self.at = Check.rendezvous
        """The check that runs."""
        self.is_final = False
        """Nothing more will be found."""

    def add(self, row: Row, problems: Iterable[NodeProblem] = ()) -> None:
        """Take the result of a check."""
        self._rows[row.check] = row
        self.problems += problems

    @property
    def has_failed(self) -> bool:
        """Tell whether there is anything to mend."""
        return bool(self.problems)

    def rows(self) -> list[Row]:
        """Return a row for every check, in their order."""
        failed = {problem.check: problem for problem in self.problems}
        rows = []
        for check in Check:
            row = self._rows.get(check, Row(check, 0, "not checked", check in failed))
            rows.append(dataclasses.replace(row, has_failed=row.has_failed or check in failed))
        return rows


def show(findings: Findings, seconds: float) -> None:
    """Print one table, and below it what to mend; a problem stands on one line, for those who search logs."""
    console = Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("check", "nodes", "result"):
        table.add_column(
            heading, no_wrap=heading != "result", justify="right" if heading == "nodes" else "left"
        )
    for row in findings.rows():
        nodes = failed_nodes(findings.problems, row.check)
        result = f"FAILED on {', '.join(nodes)}; {row.result}" if row.has_failed else row.result
        style = "bold red" if row.has_failed else None
        table.add_row(row.check.value, str(row.nodes or "-"), result, style=style)
    print_table(console, table)
    for problem in findings.problems:
        say(console, f"Error: {problem.sentence}")
    end = many(len(findings.problems), "problem") if findings.problems else "all well"
    say(console, f"Preflight: {end}, {seconds:.1f} s.")
    console.file.flush()


def print_table(console: Console, table: Table) -> None:
    """Print a table; in a file, at a fixed width and without blanks at the ends of lines."""
    if console.is_terminal:
        console.print(table, markup=False, highlight=False)
        return
    drawn = Console(file=io.StringIO(), width=_WIDTH)
    with drawn.capture() as text:
        drawn.print(table, markup=False, highlight=False)
    for line in text.get().splitlines():
        say(console, line.rstrip())


def failed_nodes(problems: Sequence[NodeProblem], check: Check) -> list[str]:
    """Return the nodes that a check has something against."""
    return list(dict.fromkeys(node for one in problems if one.check is check for node in one.nodes))


def write_record(folder: Path, findings: Findings, seconds: float) -> None:
    """Write the result where `palimpsest status` looks for it; a run directory that takes none is a problem already."""
    record = {
        "seconds": round(seconds, 1),
        "rows": [dataclasses.asdict(row) | {"check": row.check.value} for row in findings.rows()],
        "problems": [
            {"check": one.check.value, "nodes": list(one.nodes), "sentence": one.sentence}
            for one in findings.problems
        ],
    }
    try:
        write_atomic(folder / RECORD, json.dumps(record, indent=2) + "\n")
    except OSError:
        return
