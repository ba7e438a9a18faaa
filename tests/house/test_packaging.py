"""The wheel holds what the checkout holds, and runs from any folder."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.helpers.wait import LIMIT_S
from tests.house.tree import ROOT
from trainer import __version__

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


@pytest.mark.parametrize(
    "extra", ["eval", "qlora", "sweep", "mlflow", "tensorboard", "trackio", "s3", "gs", "docs"]
)
def test_the_tests_install_what_they_try(extra):
    """Else the tests of these packages are skipped everywhere, also where CI runs."""
    extras = SETTINGS["project"]["optional-dependencies"]
    assert set(extras[extra]) <= set(extras["test"])


def test_every_folder_with_python_files_is_a_package():
    for folder in ("trainer", "launch"):
        for file in (ROOT / folder).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} has no __init__.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a wheel and an sdist from a copy, so that the checkout gets no build folder; and a wheel of the sdist."""
    source = tmp_path_factory.mktemp("source")
    for name in ("trainer", "conf", "launch"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("built")
    run_backend(source, f"b.build_wheel({str(out)!r}); b.build_sdist({str(out)!r})")
    (sdist,) = out.glob("palimpsest_trainer-*.tar.gz")
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (folder,) = unpacked.iterdir()
    again = tmp_path_factory.mktemp("again")
    run_backend(folder, f"b.build_wheel({str(again)!r})")
    (wheel,), (second,) = out.glob("*.whl"), again.glob("*.whl")
    return SimpleNamespace(wheel=wheel, sdist=folder, wheel_of_sdist=second)


def run_backend(source, calls):
    """Call the build backend as pip does, in the folder of the sources."""
    command = [sys.executable, "-c", f"import setuptools.build_meta as b; {calls}"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def content_of(wheel) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_every_file_that_is_read_and_no_stray_top_level_name(built):
    names = set(content_of(built.wheel))
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"trainer"}
    kinds = (
        ("conf", "*.yaml"),
        ("launch", "*.sh"),
        ("launch", "*.tmpl"),
        ("launch", "*.py"),
        ("trainer", "*.py"),
    )
    for folder, pattern in (*kinds, ("trainer", "*.json")):
        files = [file.relative_to(ROOT).as_posix() for file in (ROOT / folder).rglob(pattern)]
        assert files, f"no {pattern} in {folder}"
        missing = [
            file for file in files if f"trainer/{file}".replace("trainer/trainer/", "trainer/") not in names
        ]
        assert not missing, missing
    assert "trainer/py.typed" in names


def test_wheel_and_sdist_carry_the_licence_and_say_so(built):
    content = content_of(built.wheel)
    info = next(name.split("/")[0] for name in content if ".dist-info/" in name)
    licence = (ROOT / "LICENSE").read_bytes()
    assert content[f"{info}/licenses/LICENSE"] == licence == (built.sdist / "LICENSE").read_bytes()
    metadata = email.message_from_bytes(content[f"{info}/METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    assert metadata["Author"] == "The Palimpsest authors" and "# Palimpsest" in metadata.get_payload()


def test_the_sdist_builds_the_wheel_that_the_tree_builds(built):
    tree, sdist = content_of(built.wheel), content_of(built.wheel_of_sdist)
    assert sorted(tree) == sorted(sdist)
    assert not [name for name in tree if tree[name] != sdist[name]]


def test_the_citation_names_this_version_and_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__ and cited["license"] == SETTINGS["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["authors"] == SETTINGS["project"]["authors"]


def test_the_wheel_runs_the_quickstart_in_an_empty_environment_and_folder(built, tmp_path):
    """The wheel is all that is installed: the packages it requires are read where the tests have them."""
    environment, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python3*/site-packages")
    shelves = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "required.pth").write_text("\n".join(shelves))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    subprocess.run([*install, "--no-index", "--no-compile", built.wheel], check=True, timeout=LIMIT_S)
    palimpsest = environment / "bin" / "palimpsest"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    told = subprocess.run([palimpsest, "train", "--help"], cwd=empty, env=env, capture_output=True, text=True)
    assert "palimpsest" in told.stdout and not list(empty.iterdir()), "asking for help wrote files"
    words = ["model=tiny", "replay=none", "replay.ratio=null", "cluster.ranks_per_node=1", "zero=zero1"]
    words += ["train.max_steps=2", "optim.lr=1e-3", "data.sources.python_reference.max_documents=20"]
    done = subprocess.run(
        [palimpsest, "quickstart", *words],
        cwd=empty,
        env=env,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    parts = [line for line in done.stdout.splitlines() if re.match(r"\[\d/7 +\d+s\] ", line)]
    assert len(parts) == 7 and "palimpsest train experiment=quickstart" in parts[4]
    assert "exported model   runs/quickstart/export" in done.stdout and "Total time: " in done.stdout
    assert [path.name for path in empty.iterdir()] == ["runs"]
    assert list((empty / "runs/quickstart/export").glob("model*.safetensors"))
    assert (empty / "runs/quickstart/report.html").is_file()
    provenance = json.loads((empty / "runs/quickstart/provenance.json").read_text())
    assert provenance["palimpsest"] == __version__ and provenance["git"] is None
    where = "import trainer, trainer.conf; print(trainer.__file__, trainer.conf.__file__)"
    told = subprocess.run([python, "-P", "-c", where], cwd=empty, capture_output=True, text=True)
    assert told.stdout.count(str(site)) == 2, told.stdout + told.stderr
