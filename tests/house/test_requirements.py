"""What the package imports comes with what it requires, so that an empty environment that pip fills runs it."""

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version

import pytest
from packaging.requirements import Requirement

from tests.house.test_packaging import SETTINGS
from tests.house.tree import ROOT, python_files

OURS = {"trainer", "launch", "conf"}
EXTRAS = SETTINGS["project"]["optional-dependencies"]
WITH_AN_EXTRA = {
    "bitsandbytes": "qlora",
    "lm_eval": "eval",
    "mlflow": "mlflow",
    "optuna": "sweep",
    "py3langid": "language",
    "trackio": "trackio",
    "liger_kernel": "gpu",
    "pynvml": "gpu",
    "tensorboard": "tensorboard",
}
"""Imported where they are asked for; without them a sentence names the extra."""
WITH_A_GPU = {
    "triton": "torch for CUDA brings it",
    "vllm": "replay.generate.engine takes it where it is there",
}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def brought_by(requirements):
    """Return the distributions that pip installs for requirements, as the metadata of those that are here says."""
    todo, found = [Requirement(one) for one in requirements], set()
    while todo:
        one = todo.pop()
        if (plain(one.name), *sorted(one.extras)) in found:
            continue
        found.add((plain(one.name), *sorted(one.extras)))
        try:
            more = map(Requirement, requires(one.name) or [])
        except PackageNotFoundError:
            continue
        wanted = [{"extra": extra} for extra in ("", *one.extras)]
        todo += [next_ for next_ in more if next_.marker is None or any(map(next_.marker.evaluate, wanted))]
    return {name for name, *_ in found}


def imported():
    """Return every module of others that the shipped files import, by its first name, and a file that does."""
    found = {}
    for path in python_files("trainer", "launch", "conf"):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: path for name in names}
    return {name: path for name, path in found.items() if name not in {*sys.stdlib_module_names, *OURS}}


def test_what_is_imported_is_required_by_the_core_or_an_extra():
    core, distributions = brought_by(SETTINGS["project"]["dependencies"]), packages_distributions()
    modules = imported()
    assert len(modules) >= 20
    unknown = {
        name: path
        for name, path in modules.items()
        if not core & set(map(plain, distributions.get(name, [])))
        and name not in {*WITH_AN_EXTRA, *WITH_A_GPU}
    }
    assert not unknown


@pytest.mark.parametrize("name", WITH_AN_EXTRA)
def test_what_comes_with_an_extra_is_in_that_extra(name):
    found = packages_distributions().get(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    assert set(map(plain, found)) & brought_by(EXTRAS[WITH_AN_EXTRA[name]])


@pytest.mark.parametrize("requirement", SETTINGS["project"]["dependencies"])
def test_the_tests_run_with_what_is_required(requirement):
    """What pip chose when it resolved them together, with the extra `test`, for the environment of the tests."""
    one = Requirement(requirement)
    assert version(one.name) in one.specifier
