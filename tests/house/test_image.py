"""The image: versions stand in one file and fit pyproject.toml, and what the files in docker/ name is there."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from tests.helpers.wait import LIMIT_S
from tests.house.tree import ROOT

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("eval", "gpu", "qlora")
# What a package is installed with, and no requirement of the trainer.
TOOLS = {"PYPI_SETUPTOOLS", "PYPI_WHEEL"}
# Three numbers, or two after `==` or after the name of an image.
VERSION = re.compile(r"\d+\.\d+\.\d+|\w==\s*\d|[a-z]:\d+\.\d+")


def versions() -> dict[str, str]:
    lines = (DOCKER / "versions.env").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    assert len(dict(pairs)) == len(pairs), "a version is written twice"
    return dict(pairs)


def requirements() -> list[Requirement]:
    lines = PROJECT["dependencies"] + [
        line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]
    ]
    return [Requirement(line) for line in lines]


def key_of(package: str) -> str:
    return "PYPI_" + package.upper().replace("-", "_")


def instructions() -> list[str]:
    """Return the Dockerfile's instructions, each as one line."""
    code = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    return [" ".join(part.split()) for part in code.replace("\\\n", " ").splitlines() if part.strip()]


def build(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", DOCKER / "build.sh", *words], capture_output=True, text=True, timeout=LIMIT_S
    )


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_the_image_has_a_version_in_the_range_of_every_requirement(requirement):
    version = versions().get(key_of(requirement.name))
    assert version, f"docker/versions.env lacks {key_of(requirement.name)}"
    assert requirement.specifier.contains(version), f"{requirement.name} {version}: {requirement.specifier}"


def test_the_image_has_no_version_that_nothing_requires():
    packages = {key for key in versions() if key.startswith("PYPI_")}
    assert packages - TOOLS == {key_of(requirement.name) for requirement in requirements()}


@pytest.mark.parametrize(
    "name",
    sorted(path.name for path in DOCKER.iterdir() if path.suffix != ".md" and path.name != "versions.env"),
)
def test_no_version_is_written_beside_the_file_of_versions(name):
    if name == "__pycache__":
        return
    found = [
        line for line in (DOCKER / name).read_text(encoding="utf-8").splitlines() if VERSION.search(line)
    ]
    assert not found, f"docker/{name}: {found}"


def test_the_search_for_versions_finds_them():
    found = ["torch==2", "FROM debian:12.1", "pip install x==1.2", "nvidia/cuda:13.0.1-devel"]
    assert all(map(VERSION.search, found))
    assert not any(map(VERSION.search, ["user: 10001:10001", "sleep 0.2", "optim.lr=0.1"]))


@pytest.mark.parametrize("words", [(), ("--cpu",)], ids=["gpu", "cpu"])
def test_the_dockerfile_declares_every_argument_that_the_build_hands_in(words):
    done = build("--engine", "docker", "--dry-run", *words)
    assert done.returncode == 0, done.stderr
    handed = set(re.findall(r"--build-arg '?(\w+)=", done.stdout.replace("\\", "")))
    declared = {match.group(1) for line in instructions() if (match := re.match(r"ARG (\w+)", line))}
    assert {"BASE", "ACCELERATOR", "PYPI_TORCH", "VERSION"} <= handed <= declared
    extras = re.search(r"EXTRAS=([\w,]*)", done.stdout.replace("\\", ""))
    assert extras and set(extras.group(1).split(",")) <= set(PROJECT["optional-dependencies"])


def test_the_last_stage_runs_as_a_user_that_is_not_root_and_starts_no_shell():
    stage = instructions()[max(i for i, line in enumerate(instructions()) if line.startswith("FROM")) :]
    users = [line.split()[1] for line in stage if line.startswith("USER")]
    assert users and re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]), users
    after = stage[stage.index(f"USER {users[-1]}") :]
    assert not [line for line in after if line.startswith(("RUN", "COPY"))], "files would not be root's"
    assert [line for line in stage if line.startswith(("CMD", "ENTRYPOINT"))] == [
        'CMD ["palimpsest", "--help"]'
    ], "a shell or an entry point would stand between an engine's signals and the trainer"


def test_the_image_has_the_labels_of_the_open_container_initiative():
    (labels,) = [line for line in instructions() if line.startswith("LABEL")]
    named = set(re.findall(r"org\.opencontainers\.image\.([\w.]+)=", labels))
    assert {"title", "description", "version", "revision", "source", "licenses", "created"} <= named


def test_only_what_the_dockerfile_copies_is_sent_to_the_engine():
    lines = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    admitted = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    copied = set()
    for line in instructions():
        words = line.split()
        if words[0] == "COPY" and not words[1].startswith("--from"):
            copied |= {word.rstrip("/") for word in words[1:-1]}
        if built := re.search(r"cp -r (.*?) /tmp/src", line):
            copied |= {word.removeprefix("/src/") for word in built.group(1).split()}
    assert admitted == copied
    assert all((ROOT / name).exists() for name in admitted)
    assert "**/__pycache__" in rules


def test_pips_settings_are_a_secret_wherever_pip_asks_an_index():
    runs = [line for line in instructions() if line.startswith("RUN") and "install.sh" in line]
    asking = [
        line for line in runs if not re.search(r"install\.sh compile", line) or "install.sh rest" in line
    ]
    assert len(asking) == 4
    for line in asking:
        assert "type=secret,id=pip.conf" in line and "type=secret,id=ca.crt" in line, line


def test_the_compose_file_reserves_gpus_and_keeps_what_a_run_needs():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = compose["services"].values()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"] and device["count"] == "all"
    assert service["shm_size"] and service["ulimits"]["memlock"] == -1 and service["stop_grace_period"]
    assert re.fullmatch(r"\$\{\w+:-[1-9]\d*:[1-9]\d*\}", service["user"])
    home = re.search(r"HOME=(\S+)", DOCKERFILE)
    named = [volume for volume in service["volumes"] if isinstance(volume, str)]
    assert home and named == [f"cache:{home.group(1)}/.cache"] and "cache" in compose["volumes"]
    assert f"{home.group(1)}/.cache" in DOCKERFILE.replace(home.group(), ""), "the volume would be root's"
    for volume in service["volumes"]:
        if isinstance(volume, dict):
            assert volume["bind"] == {"create_host_path": False}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--engine", "kaniko"], "--engine must be docker, podman or buildah, but is kaniko instead."),
        (["--pip-conf", "/nowhere/pip.conf"], "--pip-conf must name a file, but /nowhere/pip.conf is none."),
        (["--packages", "/nowhere"], "--packages must name a folder, but /nowhere is none."),
        (["--tag"], "--tag needs a value."),
    ],
)
def test_a_wrong_word_to_the_build_is_named(words, sentence):
    done = build(*words)
    assert (done.returncode, done.stderr) == (2, f"Error: {sentence}\n")


def test_an_extra_that_is_not_there_is_named():
    command = [sys.executable, str(DOCKER / "requirements.py"), "--extras", "gpus"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 1 and "EXTRAS must name extras of pyproject.toml" in done.stderr
