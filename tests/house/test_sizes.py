"""A file is at most 350 lines, a function at most 60: more does not fit a head or a screen."""

import ast

import pytest

from tests.house.tree import ROOT, parse, python_files

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60


@pytest.mark.parametrize("path", python_files("trainer", "launch"), ids=str)
def test_file_and_its_functions_are_short(path):
    num_lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_FILE_LINES, f"{path} has {num_lines} lines: split it by nouns"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno} {node.name}: {length} lines"
