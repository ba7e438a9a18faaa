"""What must not stand in a committed file."""

import ast
import re

from tests.house.tree import ROOT, parse, python_files, shipped_files

# Written so that this file does not match itself. Docker's cache mounts name /root rightly.
SOMEBODYS_PATH = re.compile(r"(?<![\w.~}$*-])/(?:home|Users|root|work)/[\w.]+|/\.lib[r]ary\b")
CONTAINER_FOLDERS = ("docker", ".github")


def test_no_file_names_a_path_of_somebodys_machine():
    found = []
    for path in shipped_files():
        if path.parts[0] in CONTAINER_FOLDERS:
            continue
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), start=1):
            if match := SOMEBODYS_PATH.search(line):
                found.append(f"{path}:{number}: {match.group()}")
    assert not found, found


def test_code_of_strangers_runs_only_when_a_person_asks_for_it():
    for path in python_files("trainer", "launch"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                is_true = isinstance(node.value, ast.Constant) and node.value.value is True
                assert not is_true, f"{path}:{node.value.lineno}"
