"""Whatever text the configuration takes is a text in the batch script: bash reads the script and runs none of it."""

import contextlib
import dataclasses
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.render import render
from launch.words import Job
from trainer.config.check_cluster import cluster_problems, submit_problems
from trainer.config.check_text import check_texts
from trainer.config.cluster import ClusterConfig, ContainerConfig, ContainerRuntime, Launcher, Scheduler
from trainer.errors import ConfigError

PIECES = (
    *("$(touch $CANARY)", "`touch $CANARY`", "; touch $CANARY;", "&& touch $CANARY #", "<(touch $CANARY)"),
    *(
        "'",
        '"',
        "\\",
        "\n",
        "\r",
        "\x1b[2J",
        "\u2028",
        "#",
        " ",
        "%j",
        "${IFS}",
        "!",
        "|",
        "é",
        "word",
        "--x",
        "@@{name}",
    ),
)
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join)
SINGLE = ("partition", "account", "qos", "reservation", "constraint", "exclude", "gres", "mem")
STUB = """#!/bin/bash
# Stands for srun and others: runs what it is given, as a node would.
while [[ ${1-} == --* ]]; do shift; done
[[ $# == 0 ]] || exec "$@"
"""


@st.composite
def clusters(draw):
    """Return a cluster section whose texts are hostile."""
    contained = draw(st.booleans())
    image = (
        {"runtime": ContainerRuntime.apptainer, "image": draw(TEXTS), "python": "python"} if contained else {}
    )
    return ClusterConfig(
        scheduler=Scheduler.slurm,
        launcher=draw(st.sampled_from(Launcher)),
        num_nodes=1,
        ranks_per_node=1,
        gpus_per_node=0,
        modules=draw(st.lists(TEXTS, max_size=1)),
        sbatch_options=[f"--comment={draw(TEXTS)}"],
        environment={"VALUE": draw(TEXTS)},
        nccl={"NCCL_IB_HCA": draw(TEXTS)},
        container=ContainerConfig(**image, options=[draw(TEXTS)] if contained else []),
        **{name: draw(st.none() | TEXTS) for name in SINGLE},
    )


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Return a folder of programs that a job calls, none of which does anything but what it is given."""
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "srun").write_text(STUB)
    for name in ("squeue", "scontrol", "scancel", "apptainer", "python", "module"):
        (folder / name).write_text("#!/bin/bash\nexit 0\n")
    for program in folder.iterdir():
        program.chmod(0o755)
    return folder


def run_script(text, folder, stubs):
    """Run a script as a job's shell would, and return whether anything touched the canary."""
    canary = folder / "canary"
    canary.unlink(missing_ok=True)
    script = folder / "job.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node1",
        "SLURMD_NODENAME": "node1",
        "SLURM_NODEID": "0",
    }
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "CANARY": str(canary),
        "MASTER_ADDR": "node1",
        **job,
    }
    subprocess.run(["bash", str(script)], env=environment, cwd=folder, capture_output=True, timeout=60)
    return canary.exists()


@settings(max_examples=60)
@given(cluster=clusters(), name=TEXTS, scratch=TEXTS)
def test_no_text_of_the_configuration_runs(tmp_path_factory, stubs, cluster, name, scratch):
    folder = tmp_path_factory.mktemp("run")
    cluster = dataclasses.replace(cluster, scratch=str(folder / scratch), master_port=29600)
    run_dir = folder / name.replace("\0", "")
    job = Job(name, run_dir, folder, folder / "cache", str(stubs / "python"), 60)
    is_refused = False
    try:
        check_texts(cluster)
        check_texts(name)
    except ConfigError:
        is_refused = True
    has_control = any(mark in text for text in _texts(cluster, name) for mark in "\n\r\x1b\u2028")
    assert is_refused == has_control
    if is_refused:
        with pytest.raises(ConfigError, match="control characters"):
            render(cluster, job)
        return
    assert not [
        *cluster_problems(cluster),
        *submit_problems(dataclasses.replace(cluster, gres=None), "/shared"),
    ]
    run_dir.mkdir()
    text = render(cluster, job)
    assert not run_script(text, folder, stubs)
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(" #" not in line.replace("\\#", "") for line in directives if "--comment" not in line)


def _texts(cluster, name):
    yield name
    yield from (cluster.scratch, cluster.container.image or "", *cluster.container.options, *cluster.modules)
    yield from (*cluster.sbatch_options, *cluster.environment.values(), *cluster.nccl.values())
    yield from (getattr(cluster, one) or "" for one in SINGLE)


def test_the_canary_sings_where_something_runs(tmp_path, stubs):
    """Lines of cluster.setup are shell on purpose: were they not run, no test here would find anything."""
    cluster = ClusterConfig(ranks_per_node=1, gpus_per_node=0, setup=["touch $CANARY"], master_port=29600)
    job = Job("run", tmp_path, tmp_path, tmp_path, str(stubs / "python"), 60)
    assert run_script(render(cluster, job), tmp_path, stubs)


def _on_node(cluster):
    """Return what the shell of a node does, with a command in the place of the rank."""
    job = Job("run", Path("/run"), Path("/run"), Path("/run"), "python", 60)
    line = next(line for line in render(cluster, job).splitlines() if line.startswith("on_node="))
    return f'{line}\nbash -c "$on_node" rank bash -c \'echo "$TMPDIR"; stat -c %a "$TMPDIR"\''


def _scratch_of(scratch, prepare=""):
    cluster = ClusterConfig(ranks_per_node=1, gpus_per_node=0, scratch=str(scratch))
    script = f"SLURM_JOB_ID=7; export SLURM_JOB_ID; {prepare}\n{_on_node(cluster)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path, mode = done.stdout.splitlines()
    return path, mode, done.stderr


def test_a_folder_of_the_job_on_a_node_is_its_owners_alone(tmp_path):
    path, mode, said = _scratch_of(tmp_path / "new")
    assert (path, mode, said) == (f"{tmp_path}/new/palimpsest-7", "700", "")
    assert _scratch_of(tmp_path / "new")[:2] == (path, "700"), "another rank of the node takes the same"
    os.chmod(path, 0o777)
    assert _scratch_of(tmp_path / "new")[1] == "700"


@pytest.mark.parametrize("planted", ["link", "file", "other"])
def test_a_folder_that_somebody_else_made_for_the_job_is_not_taken(tmp_path, planted):
    place = tmp_path / "palimpsest-7"
    if planted == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif planted == "file":
        place.touch()
    else:
        place.mkdir()
        with contextlib.suppress(PermissionError):
            os.chown(place, 12345, 12345)
        if place.stat().st_uid == os.geteuid():
            pytest.skip("only root can give a folder away")
    path, mode, said = _scratch_of(tmp_path)
    assert path.startswith(f"{place}.") and mode == "700"
    assert f"{place} is not a folder of this user" in said
