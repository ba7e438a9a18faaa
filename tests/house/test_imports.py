"""What must be quick to import loads no torch: a login node, --help, and the batch scripts need none."""

import subprocess
import sys

import pytest

from tests.house.tree import python_files

HEAVY = ("torch", "transformers", "deepspeed", "datasets", "peft", "wandb")
LAUNCH = [
    "trainer.launch" if path.stem == "__init__" else f"trainer.launch.{path.stem}"
    for path in python_files("launch")
]
CONFIG = [f"trainer.config.{path.stem}" for path in python_files("trainer/config")]
LIGHT = ["trainer", "trainer.errors", "trainer.cli", *LAUNCH, *CONFIG]


def test_importing_the_light_modules_loads_no_torch():
    for name in ("trainer.cli", " ".join(LIGHT)):
        code = (
            "import importlib, sys\n"
            f"for name in {name.split()!r}:\n"
            "    importlib.import_module(name.removesuffix('.__init__'))\n"
            f"    loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
            "    assert not loaded, f'{name} loads {loaded}'\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("word", ["utils", "util", "helpers", "misc", "callbacks", "registry"])
def test_no_module_is_named_for_what_it_is_not(word):
    named = [p for p in python_files("trainer", "launch") if p.stem == word or word in p.parts]
    assert not named
