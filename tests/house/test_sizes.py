"""A file is at most 350 lines, a function at most 60: more does not fit a head or a screen."""

import ast

from tests.house.tree import ROOT, parse, python_files

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60


def test_files_and_their_functions_are_short():
    found = []
    for path in python_files("trainer", "launch"):
        num_lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        if num_lines > MAX_FILE_LINES:
            found.append(f"{path} has {num_lines} lines: split it by nouns")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    found.append(f"{path}:{node.lineno} {node.name}: {length} lines")
    assert not found, found
