"""What a rank loads before it trains: each module more is read by every rank from a shared disk, at every start."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.ranks import FOREIGN, ROOT, held_port
from tests.helpers.wait import LIMIT_S
from trainer.metrics.jsonl import read

CODE = """
import sys
from trainer.cli import run_command
assert run_command(sys.argv[1:]) == 0
unneeded = {"scipy", "torch._inductor.compile_fx", "pandas", "datasets", "wandb"}
loaded = sorted(unneeded & set(sys.modules))
assert not loaded, f"a rank loads {loaded}"
"""


def test_a_rank_loads_no_compiler_and_no_package_that_its_run_does_not_need(workspace, tmp_path):
    """A failure points at an import that a newer transformers or DeepSpeed makes: see `python -X importtime`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    rank |= {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    words = ["train", "--config", f"{workspace}/config.yaml", f"run_dir={tmp_path}/run", "train.max_steps=1"]
    words += ["tune.method=lora"]  # all that a run of whole weights loads, and peft
    with held_port() as port:
        done = subprocess.run(
            [sys.executable, "-c", CODE, *words],
            env=environment | rank | {"MASTER_PORT": str(port)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_ranks_are_of_this_package_whatever_lies_in_the_working_directory(workspace, tmp_path):
    """`python -m trainer` looks there first: a trainer.py of somebody's own was run instead, and ended with 0."""
    (tmp_path / "trainer.py").write_text("raise SystemExit('not Palimpsest')\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    words = ["train", "--config", f"{workspace}/config.yaml", f"run_dir={tmp_path}/run", "train.max_steps=1"]
    command = [Path(sys.executable).with_name("palimpsest"), *words, "cluster.ranks_per_node=2"]
    done = subprocess.run(
        command,
        env=environment | {"DS_ACCELERATOR": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert [row["step"] for row in read(tmp_path / "run" / "metrics.jsonl") if "loss" in row] == [1]
