"""What has one place stays there: folders appear through one function."""

import ast
from pathlib import Path

from tests.house.tree import parse, python_files

CODE = python_files("trainer", "launch")
RENAMES = {
    Path("trainer/runtime/publish.py"),
    Path("trainer/checkpoint/lineage.py"),  # sets whole folders aside under another name
    Path("trainer/export/weights.py"),  # shards get their names inside of what is published
}


def calls_of(path: Path, *names: str) -> list[str]:
    return [
        f"{path}:{node.lineno} {ast.unparse(node)}"
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names
    ]


def test_folders_appear_through_publish_folder_alone():
    found = {path: calls for path in CODE if (calls := calls_of(path, "rename", "move", "renames"))}
    assert set(found) == RENAMES, found
