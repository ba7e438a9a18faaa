"""The wheel holds what the checkout holds, and runs from any folder."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from tests.helpers.wait import LIMIT_S
from tests.house.tree import ROOT

MAPPED = {"conf": "trainer.conf", "launch": "trainer.launch"}
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tree_packages() -> list[str]:
    found = set()
    for folder in ("trainer", *MAPPED):
        for file in (ROOT / folder).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT).parts
            found.add(".".join((MAPPED.get(parts[0], parts[0]), *parts[1:])))
    return sorted(found)


def test_pyproject_lists_the_packages_of_the_tree():
    assert SETTINGS["tool"]["setuptools"]["packages"] == tree_packages()


def test_every_folder_with_python_files_is_a_package():
    for folder in ("trainer", "launch"):
        for file in (ROOT / folder).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a copy, so that the checkout gets no build folder."""
    source = tmp_path_factory.mktemp("source")
    for name in ("trainer", "conf", "launch"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(out.glob("palimpsest_trainer-*.whl"))


def test_wheel_holds_every_config_and_script_and_no_stray_top_level_name(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"trainer"}
    for folder, pattern in (("conf", "*.yaml"), ("launch", "*.sh"), ("launch", "*.py")):
        files = [file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob(pattern)]
        assert files, f"no {pattern} in {folder}"
        missing = [file for file in files if f"trainer/{file}" not in names]
        assert not missing, missing
    assert "trainer/py.typed" in names


def test_wheel_shows_its_help_and_composes_a_config_from_another_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import pathlib, sys, trainer, trainer.conf\n"
        "for module in (trainer, trainer.conf):\n"
        "    assert pathlib.Path(sys.path[1]) in pathlib.Path(module.__file__).parents, module\n"
        "from trainer.cli import main\n"
        "sys.argv[0] = 'palimpsest'\n"
        "sys.exit(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments in (["--help"], ["train", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=empty,
            env=env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        assert done.returncode == 0, done.stderr
        assert "palimpsest" in done.stdout
    assert not list(empty.iterdir()), "asking for help wrote files"
