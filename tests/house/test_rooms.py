"""The rooms of the house: what lies in the root, who sees the whole configuration, what a name means."""

import ast
import collections

from tests.house.tree import parse, python_files

VIEWS = ("command", "config", "launch", "report")
"""Rooms that look at a noun of another one: its options, its verb, its job, its section of the report."""
FILES = [path for path in python_files("trainer", "launch") if path.stem != "__init__"]


def room_of(path) -> str:
    return path.parts[0] if path.parts[0] == "launch" else path.parts[1]


def test_the_root_holds_the_command_line_and_the_errors_and_nothing_else():
    loose = {path.name for path in python_files("trainer") if len(path.parts) == 2}
    assert loose == {"__init__.py", "__main__.py", "cli.py", "errors.py"}


def test_a_basename_means_one_thing():
    by_name = collections.defaultdict(list)
    for path in FILES:
        if room_of(path) not in VIEWS:
            by_name[path.stem].append(str(path))
    assert not {name: paths for name, paths in by_name.items() if len(paths) > 1}


def test_a_class_has_a_name_of_its_own():
    by_name = collections.defaultdict(list)
    for path in FILES:
        for node in parse(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                by_name[node.name].append(str(path))
    assert not {name: paths for name, paths in by_name.items() if len(paths) > 1}


def test_a_function_has_at_most_eight_parameters():
    nodes = [(path, node) for path in FILES for node in ast.walk(parse(path))]
    for path, node in nodes:
        if not isinstance(node, ast.FunctionDef) or any(
            "triton" in ast.unparse(d) for d in node.decorator_list
        ):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls", "ctx")]
        assert len(names) <= 8, f"{path}:{node.lineno} {node.name} takes {len(names)}: they belong together"


def test_launch_is_reached_from_the_command_line_alone():
    """import-linter cannot see it: `trainer.launch` exists only through the package map."""
    users = set()
    for path in python_files("trainer"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer.launch"):
                users.add(str(path))
    assert users == {"trainer/cli.py"}
