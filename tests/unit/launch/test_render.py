"""Batch scripts as files, checked by bash and shellcheck; to renew them: PALIMPSEST_UPDATE_GOLDEN=1."""

import dataclasses
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from launch.render import render
from launch.words import Job
from tests.house.tree import ROOT
from trainer.config.store import compose_config

GOLDEN = ROOT / "tests" / "golden" / "sbatch"
JOB = Job(
    name="first",
    run_dir=Path("/shared/runs/first"),
    work_dir=Path("/shared/project"),
    cache_dir=Path("/shared/cache"),
    python="/shared/venv/bin/python",
    signal_lead_s=180,
)
CASES = {
    "srun": ["cluster=slurm", "cluster.num_nodes=4"],
    "deepspeed": ["cluster=slurm", "cluster.num_nodes=4", "cluster.launcher=deepspeed"],
    "torchrun": ["cluster=slurm", "cluster.num_nodes=4", "cluster.launcher=torchrun"],
    "apptainer": [
        *(
            "cluster=slurm_apptainer",
            "cluster.num_nodes=2",
            "cluster.container.image=/shared/images/first.sif",
        ),
        "cluster.container.mounts=[/datasets:/datasets:ro]",
    ],
    "pyxis": [
        *("cluster=slurm_pyxis", "cluster.num_nodes=2", "cluster.container.image=/shared/images/first.sqsh"),
        *("cluster.container.mounts=[/datasets]", "cluster.container.options=[--no-container-mount-home]"),
    ],
    "site": [
        *("cluster=slurm", "cluster.num_nodes=16", "cluster.partition=h100", "cluster.account=physics"),
        *("cluster.qos=long", "cluster.reservation=maintenance", "cluster.constraint='h100&nvlink'"),
        *("cluster.exclude='node[07,19]'", "cluster.gres=gpu:h100:8", "cluster.exclusive=true"),
        *("cluster.time_limit_min=2885", "cluster.sbatch_options=['--mail-type=END']"),
        *("cluster.modules=[cuda/12.8,nccl]", "cluster.setup=['ulimit -l unlimited']"),
        *("cluster.environment.HF_HOME=/shared/hf", "cluster.environment.NOTE='two words'"),
        *("cluster.nccl.NCCL_SOCKET_IFNAME=ib0", "cluster.scratch=/scratch", "cluster.master_port=29600"),
        "cluster.max_stuck_attempts=5",
    ],
    "fewer": ["cluster=slurm", "cluster.num_nodes=4", "cluster.min_nodes=2"],
    "cpu": ["cluster=slurm_cpu", "cluster.num_nodes=2"],
}


def script_of(*overrides, job=JOB):
    return render(compose_config(overrides).cluster, job)


@pytest.mark.parametrize("case", CASES)
def test_the_script_is_the_golden_one(case):
    made = script_of(*CASES[case])
    path = GOLDEN / f"{case}.sh"
    if os.environ.get("PALIMPSEST_UPDATE_GOLDEN"):
        path.write_text(made, encoding="utf-8")
    assert made == path.read_text(encoding="utf-8")


def test_there_is_a_golden_file_for_each_case_and_no_other():
    assert sorted(path.stem for path in GOLDEN.glob("*")) == sorted(CASES)


@pytest.mark.parametrize("case", CASES)
def test_bash_reads_the_script(case):
    done = subprocess.run(["bash", "-n", str(GOLDEN / f"{case}.sh")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not on the PATH")
def test_shellcheck_finds_nothing_in_any_script():
    files = [str(GOLDEN / f"{case}.sh") for case in CASES]
    done = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("case", CASES)
def test_every_directive_is_explained_and_stands_before_the_first_command(case):
    lines = (GOLDEN / f"{case}.sh").read_text(encoding="utf-8").splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    directives = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert max(directives) < first_command, "sbatch reads no directive after a command"
    for index in directives:
        before = lines[index - 1]
        assert before.startswith("# ") or before.startswith("#SBATCH"), lines[index]
    assert not any("$" in lines[index] for index in directives), "sbatch expands no variables there"


@pytest.mark.parametrize("case", ["deepspeed", "torchrun"])
def test_the_number_of_a_node_is_expanded_on_that_node(case):
    """In the batch shell SLURM_NODEID is 0, and every node would be node 0."""
    lines = (GOLDEN / f"{case}.sh").read_text(encoding="utf-8").splitlines()
    naming = [line for line in lines if "$SLURM_NODEID" in line]
    assert naming and all(line.startswith("on_node='") and line.endswith("'") for line in naming)


def test_paths_and_values_with_spaces_and_quotes_stay_one_word(tmp_path):
    job = Job("a b", tmp_path / "it's $HOME", tmp_path / "x y", tmp_path, "/p q/python", 120)
    text = script_of("cluster=slurm_cpu", "cluster.environment.A='1; rm -rf *'", job=job)
    path = tmp_path / "job.sh"
    path.write_text(text)
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
    line = next(line for line in text.splitlines() if line.startswith("run_dir="))
    shown = subprocess.run(["bash", "-c", f'{line}; printf %s "$run_dir"'], capture_output=True, text=True)
    assert shown.stdout == str(job.run_dir)
    assert "export A='1; rm -rf *'" in text and "'/p q/python' -m trainer" in text
    assert '#SBATCH --chdir="' in text


def test_two_renderings_of_the_same_section_are_equal():
    assert script_of(*CASES["site"]) == script_of(*CASES["site"])


@pytest.mark.parametrize(("minutes", "shown"), [(1, "0-00:01:00"), (1440, "1-00:00:00"), (90, "0-01:30:00")])
def test_the_time_limit_is_written_so_that_it_can_be_read_in_one_way_only(minutes, shown):
    assert f"#SBATCH --time={shown}\n" in script_of("cluster=slurm", f"cluster.time_limit_min={minutes}")


def test_nodes_are_checked_before_the_ranks_start_when_there_are_several():
    script = script_of("cluster=slurm", "cluster.num_nodes=2")
    assert script.index("-m trainer doctor") < script.index("watch inputs") < script.index("watch ranks")
    assert "timeout --kill-after=2 57 srun --nodes=2 --ntasks=16" in script
    assert "doctor" not in script_of("cluster=slurm", "cluster.num_nodes=1").replace(
        "`palimpsest doctor`", ""
    )
    off = script_of("cluster=slurm", "cluster.num_nodes=2", "cluster.preflight.enabled=false")
    assert "trainer doctor" not in off and "cluster.preflight.enabled is false" in off


@pytest.mark.parametrize("launcher", ["srun", "torchrun", "deepspeed"])
def test_the_checks_start_one_process_a_rank_whatever_starts_the_ranks(launcher):
    words = ("cluster=slurm", "cluster.num_nodes=4", f"cluster.launcher={launcher}")
    check = next(line for line in script_of(*words).splitlines() if "timeout --kill-after" in line)
    assert "srun --nodes=4 --ntasks=32 --ntasks-per-node=8 --cpus-per-task=8" in check
    bare = script_of(*words, "cluster.cpus_per_rank=null")
    assert ("--overcommit" in bare) == (launcher != "srun"), "the job has one core a node there"


def test_an_image_is_fetched_on_all_nodes_before_time_is_taken():
    script = script_of(*CASES["pyxis"])
    assert script.index('mkdir -p "$logs/image"') < script.index("timeout --kill-after")


@pytest.fixture
def job_step(tmp_path):
    """Return a function that runs a function of the script with stand-ins for SLURM's commands."""
    tools = {"scontrol": "printf 'node1\\nnode2\\n'", "srun": 'eval "$SRUN"', "timeout": 'shift 2; exec "$@"'}
    tools["squeue"] = f"cat {tmp_path}/state 2>/dev/null || echo RUNNING"
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def run(script, step, srun):
        lines = script.splitlines()
        # The script's functions, without what calls them.
        bodies, is_inside = [], False
        for line in lines:
            is_inside = is_inside or line in ("nodes_without() {", f"{step}() {{")
            if is_inside:
                bodies.append(line)
                is_inside = line != "}"
        env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SRUN": srun, "SLURM_JOB_ID": "7"}
        setup = (
            f'logs={tmp_path}; config=c; SLURM_JOB_NODELIST=x; SLURMD_NODENAME=node1; say() {{ echo "$1"; }}'
        )
        text = "\n".join([setup, *bodies, step])
        done = subprocess.run(["bash", "-c", text], env=env, capture_output=True, text=True)
        return done.returncode, done.stdout

    return run


def test_a_failed_check_of_nodes_ends_the_job_as_what_a_person_must_mend(tmp_path, job_step):
    """What is not known is named, and hanging ends."""
    script = script_of("cluster=slurm", "cluster.num_nodes=2", "cluster.preflight.timeout_s=15")
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes/node1").touch()

    def run(srun):
        return job_step(script, "preflight", srun)

    assert run("exit 0") == (0, "")
    code, said = run("exit 233")
    assert code == 2 and said.startswith(
        "Error: `preflight` must begin on every node, but did not on node2 (exit code 233)"
    )
    # The job was cancelled, and the step of its checks with it.
    (tmp_path / "state").write_text("COMPLETING\n")
    assert run("exit 1") == (1, "")
    (tmp_path / "state").unlink()
    (tmp_path / "nodes/node2").touch()
    assert run("exit 1") == (1, ""), "a crash is tried again"
    code, said = run("exit 124")
    assert code == 2 and said.startswith("Error: `preflight` must end within 22 s, but hangs instead.")
    assert run(f"echo 2 >{tmp_path}/exit-code; exit 143") == (2, "")


@pytest.mark.parametrize("case", ["apptainer", "pyxis"])
def test_an_image_that_does_not_start_is_told_with_the_nodes_and_not_tried_again(tmp_path, job_step, case):
    script = script_of(*CASES[case])
    code, said = job_step(script, "package", "exit 255")
    program = "apptainer" if case == "apptainer" else "srun"
    assert code == 2 and "must be an image that starts, but with /shared/images/first.s" in said
    assert f"{program} ends with exit code 255 instead" in said
    assert job_step(script, "package", "exit 0") == (0, "")
    code, said = job_step(script, "package", "exit 42")
    assert code == 2 and "must hold the package palimpsest-trainer" in said
    # It starts on the first node alone.
    code, said = job_step(script, "preflight", f"touch {tmp_path}/image/node1; exit 255")
    assert code == 2 and said.startswith(
        "Error: `cluster.container.image` must start on every node, but does not on node2 (exit code 255) instead."
    )


def test_an_environment_whose_python_fails_otherwise_is_for_the_checks_to_name(job_step):
    script = script_of("cluster=slurm", "cluster.num_nodes=2")
    assert job_step(script, "package", "exit 137") == (0, "")
    assert job_step(script, "package", "exit 42")[0] == 2


def test_the_folders_of_a_run_are_made_before_an_image_mounts_them():
    """Apptainer refuses to start with a folder that is not there, such as a new user's cache."""
    script = script_of(*CASES["apptainer"])
    assert script.index("\nmkdir -p /shared/runs/first /shared/project /shared/cache\n") < script.index(
        "apptainer exec"
    )
    assert "\nmkdir -p /shared" not in script_of("cluster=slurm")


@pytest.mark.parametrize("case", ["apptainer", "pyxis"])
def test_an_image_sees_the_scratch_folder_that_temporary_files_go_to(case):
    script = script_of(*CASES[case], "cluster.scratch=/scratch")
    ranks = script[script.index("ranks() {") :]
    assert 'export TMPDIR=/scratch/palimpsest-"$SLURM_JOB_ID"' in script
    assert ("--bind=/scratch" if case == "apptainer" else "/scratch:/scratch") in ranks


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["cluster.gres='nvme:1'"], "#SBATCH --gres=gpu:8,nvme:1\n"),
        (["cluster.gres='gpu:h100:8,nvme:1'"], "#SBATCH --gres=gpu:h100:8,nvme:1\n"),
        (["cluster.gres='nvme:1'", "cluster.gpus_per_node=0"], "#SBATCH --gres=nvme:1\n"),
    ],
)
def test_other_resources_do_not_take_the_place_of_the_gpus(overrides, line):
    assert line in script_of("cluster=slurm", *overrides)


def test_an_image_keeps_to_its_own_packages_unless_the_site_says_otherwise():
    script = script_of(
        *CASES["apptainer"], "cluster.environment.PYTHONPATH=/extra", "cluster.modules=[python]"
    )
    module, unset = script.index("for module in python; do"), script.index("\nunset PYTHONPATH PYTHONHOME\n")
    assert module < unset < script.index("export PYTHONPATH=/extra")
    assert "unset PYTHONPATH" not in script_of("cluster=slurm")


def test_a_module_that_cannot_be_loaded_ends_the_attempt_with_a_sentence(tmp_path):
    """A renamed one would let the job go on without it."""
    text = script_of("cluster=slurm_cpu", "cluster.modules=[gcc/13,cuda/12.8]")
    begin = text.index("for module in")
    part = text[begin : text.index("done\n", begin) + 5]
    stubs = (
        'say() { echo "$*"; }; note() { echo "note $1 $2"; }; newest=; '
        'module() { echo "$*"; [[ $2 == gcc/13 ]]; }\n'
    )
    done = subprocess.run(["bash", "-uc", f"{stubs}{part}echo went on"], capture_output=True, text=True)
    assert done.returncode == 2 and "went on" not in done.stdout
    loads, failed, said, noted = done.stdout.splitlines()
    assert (loads, failed) == ("load gcc/13", "load cuda/12.8")
    assert said.startswith(
        "Error: `cluster.modules` must name modules of this site, but cuda/12.8 cannot be loaded on"
    )
    assert noted == 'note ended "code":2,"newest":""'


def test_an_image_sees_what_the_run_reads_and_the_home_of_the_hub():
    job = dataclasses.replace(JOB, reads=("/shared/data",), hub_folders=(Path("/shared/a b/hf"),))
    script = script_of(*CASES["pyxis"], job=job)
    assert "/shared/data:/shared/data" in script and "/shared/a b/hf:/shared/a b/hf" in script
    assert "mkdir -p /shared/runs/first /shared/project /shared/cache '/shared/a b/hf'\n" in script
    assert "export HF_HOME=${HF_HOME:-'/shared/a b/hf'}\n" in script
    script = script_of(*CASES["apptainer"], "cluster.environment.HF_HOME=/shared/hf", job=job)
    assert "--bind=/shared/data " in script and "HF_HOME:-" not in script
