"""What has one place stays there: how folders appear, and how a broken rule is said."""

import ast
from pathlib import Path

from tests.house.tree import parse, python_files
from trainer.config.rule import must, problem

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


def test_a_problem_is_built_from_its_key_in_one_place():
    """So every sentence begins with its key, and nobody reads the key out of a sentence."""
    built = {
        path
        for path in CODE
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Problem"
    }
    assert built == {Path("trainer/config/rule.py")}
    for found in (must("a.b", "1", "x", "Set 1."), problem("a.b", "must have one.")):
        assert found.key == "a.b" and found.sentence.startswith("`a.b` must ")
