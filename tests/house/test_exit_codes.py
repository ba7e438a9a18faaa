"""Exit codes are one enum: what Python code, the job's shell scripts and the documentation say of them is the same."""

import ast
import re

import pytest

from launch.attempts import FINAL_CODES
from tests.house.tree import ROOT, parse, python_files
from trainer.command.rank import EXITS
from trainer.errors import Exit
from trainer.run.parts import StopReason

TEMPLATES = sorted((ROOT / "launch").glob("*.tmpl"))
DOCS = ROOT / "docs"
KNOWN_TO_SHELLS = {Exit.died, Exit.interrupted}
"""A reader need not be told of them."""


def given_codes(template):
    """Return every number that a script ends with, passes on or sets as its code."""
    return {int(code) for code in re.findall(r"\b(?:exit|return|code=)\s*(\d+)", template.read_text())}


def test_every_reason_to_stop_has_an_exit_code():
    assert set(EXITS) == {reason.value for reason in StopReason}


@pytest.mark.parametrize("path", python_files("trainer", "launch"), ids=str)
def test_no_file_has_an_exit_code_of_its_own(path):
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            names = [
                ast.unparse(n) for n in (node.targets if isinstance(node, ast.Assign) else [node.target])
            ]
            assert not (isinstance(node.value.value, int) and any(n.startswith("EXIT_") for n in names)), (
                names
            )
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "os._exit", "SystemExit"):
            assert not any(isinstance(argument, ast.Constant) for argument in node.args), ast.unparse(node)


def test_the_scripts_of_a_job_give_codes_of_the_enum():
    parts = ["fewer.sh.tmpl", "go_on.sh.tmpl", "image.sh.tmpl", "job.sh.tmpl", "preflight.sh.tmpl"]
    assert [path.name for path in TEMPLATES] == parts
    for template in TEMPLATES:
        assert given_codes(template) <= set(Exit), template.name
    job = ROOT / "launch" / "job.sh.tmpl"
    assert given_codes(job) == {Exit.done, Exit.died, Exit.mendable, Exit.preempted}
    (asked,) = re.findall(r"if \[\[ \$stopping \]\]; then\s+code=(\d+)", job.read_text())
    assert int(asked) == Exit.preempted
    lost = re.findall(r"(?:code=|return )(\d+)", (ROOT / "launch" / "fewer.py").read_text())
    assert {int(code) for code in lost} == {Exit.preempted}


def test_the_script_of_a_job_ends_for_good_at_the_codes_that_status_takes_for_an_end():
    text = (ROOT / "launch" / "job.sh.tmpl").read_text()
    (body,) = re.findall(r"^case \$code in\n(.*?)^esac$", text, re.DOTALL | re.MULTILINE)
    arms = [
        {int(code) for code in re.findall(r"\d+", arm)}
        for arm in re.findall(r"^    ([\d |]+)\)$", body, re.M)
    ]
    assert arms == [{Exit.done}, {Exit.mendable, Exit.refused, Exit.non_finite}]
    assert set.union(*arms) == set(FINAL_CODES)


def words_of(page):
    return " ".join((DOCS / page).read_text(encoding="utf-8").split())


def test_the_documentation_names_the_codes_of_the_enum():
    (listed,) = re.findall(r"Exit codes: (.*?): start the same command again", words_of("commands.md"))
    named = {int(code) for code in re.findall(r"(?:^|, )(\d+) ", listed)}
    assert named <= set(Exit) and set(Exit) - named <= KNOWN_TO_SHELLS, named
    (for_good,) = re.findall(r"Exit codes ([\d, and]+) are not tried again", words_of("cluster.md"))
    assert {int(code) for code in re.findall(r"\d+", for_good)} == set(FINAL_CODES) - {Exit.done}
    table = re.findall(r"^\| (\d+) \|", (DOCS / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(map(int, table)) == sorted(Exit)
