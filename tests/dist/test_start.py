"""What a rank loads before it trains: each module more is read by every rank from a shared disk, at every start."""

import gc
import os
import subprocess
import sys
import weakref
from contextlib import ExitStack
from pathlib import Path

from tests.dist.session import config_of, take_steps
from tests.helpers.ranks import FOREIGN, ROOT, Ranks, held_port
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


def imported_at_the_end(mesh, workspace, run_dir):
    """Take a step, and return what is imported when the engine is taken apart, and whether it was."""
    from trainer.run.session import open_session

    gc.disable()
    with ExitStack() as stack:
        words = ("zero.stage=2", "zero.dtype=bf16", "train.micro_batch_size=4")
        session = open_session(config_of(workspace, run_dir, *words), stack)
        take_steps(session, 1)
    engine, before = weakref.ref(session.policy.engine._ds), {*sys.modules}
    del session
    gc.collect()
    gc.enable()
    return [sorted({*sys.modules} - before), engine() is None]


def test_an_engine_imports_nothing_when_it_is_taken_apart(workspace, tmp_path):
    """The garbage collector does it at any instant, also within an import, which then failed with a KeyError."""
    ranks = Ranks(1, tmp_path)  # in which no engine was
    try:
        answers = ranks.run(imported_at_the_end, workspace=workspace, run_dir=str(tmp_path))
    finally:
        ranks.close()
    assert answers == [[[], True]]
