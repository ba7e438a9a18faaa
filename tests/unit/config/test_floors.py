"""Packages with holes through which weights run as code are refused, and are not asked for."""

import tomllib

import pytest

from tests.house.tree import ROOT
from trainer.cli import run_command
from trainer.config import floors
from trainer.config.floors import FLOORS, check_floors
from trainer.errors import ConfigError


def test_what_is_installed_here_is_new_enough():
    check_floors()


@pytest.mark.parametrize(
    ("package", "version"), [("torch", "2.9.1+cu128"), ("torch", "1.13"), ("transformers", "5.2.0")]
)
def test_an_older_one_is_refused_with_its_holes(package, version):
    with pytest.raises(
        ConfigError, match=rf"`{package}` must be .* or newer \(CVE-.* but is {version[:3]}.* instead"
    ):
        check_floors(lambda name: version if name == package else None)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0a0+git", "5.17", "11.0", None, "unknown"])
def test_newer_ones_and_those_that_are_not_there_are_not(version):
    check_floors(lambda name: version if name == "torch" or version in (None, "unknown", "11.0") else "5.3.0")


def test_no_command_runs_with_an_older_one(monkeypatch, capsys):
    monkeypatch.setattr(floors, "FLOORS", {"torch": ((99, 0), "a hole")})
    assert run_command(["train", "model=tiny"]) == 2
    assert "`torch` must be 99.0 or newer (a hole)" in capsys.readouterr().err


def test_the_package_asks_for_no_older_ones():
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for package, (floor, _) in FLOORS.items():
        (line,) = [one for one in asked if one.startswith(f"{package}>=")]
        found = tuple(int(part) for part in line.partition(">=")[2].split(",")[0].split(".")[:2])
        assert found >= floor
