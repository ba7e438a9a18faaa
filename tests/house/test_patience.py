"""Tests hold on slow and busy machines: they wait for a condition, and none is about how long something took."""

import ast
from pathlib import Path

import pytest

from tests.house.tree import parse, python_files

CLOCKS = {"monotonic", "perf_counter", "process_time", "time"}
PATIENCE = {"LIMIT_S", "deadline"}
"""Names of limits that only what hangs meets."""
FOREVER_S = 600
"""Whoever sleeps so long stands for somebody who never comes back, and is killed."""
SLOW = {
    ("tests/dist/outside.py", "bereave"),
    ("tests/dist/test_background.py", "slowly"),
    ("tests/dist/test_watchdog.py", "be_rank"),
    ("tests/dist/test_watchdog.py", "slow"),
    ("tests/helpers/samples.py", "sample"),
    ("tests/unit/runtime/test_lock.py", "work"),
    ("tests/unit/runtime/test_time_limit.py", "test_who_waits_is_not_ended"),
}
"""Who plays a slow one, or lets a random time pass before it strikes: nothing is asserted about the time."""


def called(node: ast.AST) -> set[str]:
    functions = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in functions}


def names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def timed_asserts(tree: ast.AST) -> list[int]:
    asserts = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    return [node.lineno for node in asserts if called(node) & CLOCKS and not names(node) & PATIENCE]


def bare_sleeps(tree: ast.AST) -> list[tuple[str, int]]:
    """Return function and line of every sleep that no loop repeats until something has come about."""
    found: list[tuple[str, int]] = []

    def look(node: ast.AST, function: str, in_loop: bool) -> None:
        if isinstance(node, ast.FunctionDef):
            function, in_loop = node.name, False
        in_loop = in_loop or isinstance(node, ast.While | ast.For)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep" and not in_loop:
            seconds = node.args[0]
            is_long = isinstance(seconds, ast.Constant) and seconds.value >= FOREVER_S
            if not is_long and not names(seconds) & PATIENCE:
                found.append((function, node.lineno))
        for child in ast.iter_child_nodes(node):
            look(child, function, in_loop)

    look(tree, "", False)
    return found


@pytest.mark.parametrize("file", python_files("tests"), ids=str)
def test_nobody_counts_on_the_speed_of_the_machine(file: Path):
    tree = parse(file)
    assert not timed_asserts(tree), "an assertion about a duration fails on a busy machine"
    sleeps = [(function, line) for function, line in bare_sleeps(tree) if (str(file), function) not in SLOW]
    assert not sleeps, "wait for a condition: tests/helpers/wait.py"


def test_what_counts_on_speed_would_be_told():
    assert timed_asserts(
        ast.parse("assert time.monotonic() - began < 2\nassert time.monotonic() < deadline")
    ) == [1]
    code = "def f():\n    time.sleep(1)\n    while not done():\n        time.sleep(1)\n    time.sleep(9999)\n"
    assert bare_sleeps(ast.parse(code)) == [("f", 2)]
