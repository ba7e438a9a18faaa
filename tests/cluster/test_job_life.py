"""The life of a job on a real SLURM: what the batch script does, with a shell script in the place of Python.

The ranks do what each test says, so that an attempt takes a second; test_training.py has real ones.
"""

import contextlib
import functools
import json
import signal
import subprocess
import sys

import pytest

from launch.status import run_status
from tests.helpers.submitted import ANY_FILE, Submitted
from trainer.cli import run_command
from trainer.dist.env import job_port
from trainer.dist.hosts import expand_hosts

# The look for the package, the checks of the nodes and the inputs succeed; ranks read what to do. COMMIT makes a
# checkpoint as a rank would.
PYTHON = """\
#!/bin/bash
case "$*" in *find_spec* | *"trainer doctor"* | *trainer.launch.inputs*) exit 0 ;; esac
run_dir=${PALIMPSEST_LOG_DIR%/logs/*}
attempt=${PALIMPSEST_LOG_DIR##*-}
commit() { mkdir -p "$run_dir/checkpoints/step-$(printf %08d "$1")"; }
"""
RUN = (
    "cluster=slurm_cpu",
    "cluster.cpus_per_rank=1",
    "model=tiny",
    "data=text",
    f"data.sources.corpus.path={ANY_FILE}",
    "train.max_steps=9",
)
TWO_NODES = (*RUN, "cluster.num_nodes=2")
# Python, as ranks are: a shell cannot trap what was ignored when it started, and one that starts itself anew with the
# signal's default is ended by one that comes before its trap. As ranks of ours all stop together, and none is ended by
# srun because another one was a little faster. SIGTERM, which SLURM sends at the time limit, does not make them save.
SAVE_ON_SIGNAL = f"""
exec {sys.executable} -S - "$run_dir" "$attempt" <<'END'
import os, signal, sys, time
from pathlib import Path

run_dir, attempt, rank = Path(sys.argv[1]), int(sys.argv[2]), int(os.environ["SLURM_PROCID"])

def wait(condition):
    while not condition():
        time.sleep(0.1)

def stop(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if rank == 0:
        (run_dir / f"checkpoints/step-{{attempt:08d}}").mkdir(parents=True)
    (run_dir / f"stops-{{attempt}}-{{rank}}").touch()
    wait(lambda: len([*run_dir.glob(f"stops-{{attempt}}-*")]) == int(os.environ["SLURM_NTASKS"]))
    os._exit(75)

print("loading", flush=True)
wait(Path(os.environ.get("LOADS_UNTIL", "/")).exists)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, stop)
if attempt > 1:
    os._exit(0)
print("rank", rank, "listens", flush=True)
wait(lambda: False)
END
"""


def submitted(slurm, folder, script, *overrides, name="run"):
    """Submit a run whose ranks run a shell script."""
    python = folder / f"python-{name}"
    python.write_text(PYTHON + script)
    python.chmod(0o755)
    return Submitted(slurm, folder / name, f"cluster.python={python}", *(overrides or TWO_NODES))


@pytest.fixture
def start(slurm, tmp_path, monkeypatch):
    """Return `submitted` in the folder of the test."""
    monkeypatch.chdir(tmp_path)
    return functools.partial(submitted, slurm, tmp_path)


@pytest.fixture(scope="module", autouse=True)
def beside(slurm, tmp_path_factory):
    """Start the jobs that go through the queue several times, or meet a time limit, beside the others."""
    folder = tmp_path_factory.mktemp("beside")
    # SLURM asks for a save after half a minute, and a busy machine has a minute and a half for it.
    limit = ("cluster.time_limit_min=2", "cluster.signal_lead_s=90")
    with contextlib.chdir(folder):
        return {
            "limit": submitted(slurm, folder, SAVE_ON_SIGNAL, *RUN, *limit, name="limit"),
            "stuck": submitted(
                slurm, folder, 'echo "ValueError: shapes differ" >&2; exit 1', *RUN, name="stuck"
            ),
            "moves": submitted(
                slurm, folder, '((attempt > 4)) && exit 0; commit "$attempt"; exit 75', *RUN, name="moves"
            ),
        }


def codes(run):
    return [line["code"] for line in run.lines("ended")]


def test_ranks_find_themselves_on_two_nodes_that_have_their_own_names(start):
    seen = 'echo "$SLURM_PROCID $(hostname) $MASTER_ADDR $MASTER_PORT" >"$run_dir/rank-$SLURM_PROCID"'
    run = start(seen)
    assert run.finish() == "COMPLETED"
    port = str(job_port(run.job))
    assert [(run.run_dir / f"rank-{rank}").read_text().split() for rank in (0, 1)] == [
        ["0", "node1", "node1", port],
        ["1", "node2", "node1", port],
    ]
    assert codes(run) == [0]
    assert run_status(run.run_dir).state == "finished"


@pytest.mark.parametrize(
    ("launcher", "option"), [("torchrun", "--node-rank="), ("deepspeed", "--node_rank=")]
)
def test_every_node_gets_its_own_number(start, launcher, option):
    run = start('echo "$*" >"$run_dir/on-$(hostname)"', *TWO_NODES, f"cluster.launcher={launcher}")
    assert run.finish() == "COMPLETED"
    for number, node in enumerate(("node1", "node2")):
        words = (run.run_dir / f"on-{node}").read_text().split()
        assert f"{option}{number}" in words
    if launcher == "deepspeed":
        hostfile = next((run.run_dir / "logs").glob("attempt-1/hostfile"))
        assert hostfile.read_text() == "node1 slots=1\nnode2 slots=1\n"


def test_a_port_that_somebody_listens_on_is_passed_over(start, slurm):
    seen = 'echo "$MASTER_PORT" >"$run_dir/port"'
    first = start(seen, name="first")
    first.finish()
    taken = job_port(first.job + 1)
    code = f"import socket; s = socket.create_server(('0.0.0.0', {taken})); print('up', flush=True); input()"
    listen = slurm.in_node("node1", "python3", "-c", code)
    listener = subprocess.Popen(listen, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert listener.stdout.readline() == b"up\n"
        second = start(seen, name="second")
        assert second.finish() == "COMPLETED" and second.job == first.job + 1
        assert (second.run_dir / "port").read_text().strip() == str(taken + 1)
    finally:
        listener.kill()
        listener.communicate()


def test_slurms_warning_reaches_ranks_that_are_still_loading_and_the_job_goes_on_by_itself(start, tmp_path):
    """The signal comes to the batch shell, once; until a rank listens it is ignored, so it is sent again."""
    loaded = tmp_path / "loaded"
    run = start(SAVE_ON_SIGNAL, *TWO_NODES, f"cluster.environment.LOADS_UNTIL={loaded}")
    run.wait_for_log("loading")
    run.signal("USR1", "--batch")
    run.wait_for_log("telling the ranks to save")
    loaded.touch()
    assert run.finish() == "COMPLETED"
    assert codes(run) == [75, 0]
    assert [line["newest"] for line in run.lines("started")] == ["", "step-00000001"]
    assert "telling the ranks to save" in run.log and "the job requeues itself" in run.log


@pytest.mark.parametrize("is_done", [True, False])
def test_a_job_that_is_put_back_into_the_queue_after_its_last_step_starts_no_rank(start, is_done):
    """As by a node that fails before the script could say how it ended."""
    answer = f'case "$*" in *trainer.launch.done*) exit {0 if is_done else 1} ;; esac'
    rank = (
        f'{answer}; echo "$attempt" >>"$run_dir/starts"; ((attempt > 1)) && exit 0; commit 9; '
        """echo '{"event":"concluded","step":9}' >"$run_dir/ledger.jsonl"; exit 75"""
    )
    run = start(rank, *RUN)
    assert run.finish() == "COMPLETED"
    assert codes(run) == [75, 0] and run_status(run.run_dir).state == "finished"
    assert (run.run_dir / "starts").read_text().split() == (["1"] if is_done else ["1", "2"])
    assert ("Done: nothing was left to train." in run.log) == is_done


def test_a_signal_to_the_ranks_ends_in_a_requeue_too(start):
    run = start(SAVE_ON_SIGNAL)
    run.wait_for_log("rank 0 listens")
    run.wait_for_log("rank 1 listens")
    run.signal("USR1")
    assert run.finish() == "COMPLETED" and codes(run) == [75, 0]


def test_a_rank_that_dies_takes_the_others_along_and_the_job_tries_again(start):
    run = start("((attempt > 1)) && exit 0; ((SLURM_PROCID)) && kill -KILL $$; sleep 9999")
    assert run.finish() == "COMPLETED"
    # srun tells the highest code: that of the rank that died, or of the other one, which SIGTERM or SIGKILL ended.
    first, second = codes(run)
    assert first in (128 + signal.SIGKILL, 128 + signal.SIGTERM) and second == 0


@pytest.mark.parametrize(
    "script",
    ["exit 2", 'echo 2 >"$PALIMPSEST_LOG_DIR/exit-code"; exit 1'],
    ids=["srun", "lost by a launcher"],
)
def test_what_a_person_must_mend_is_not_tried_again(start, script):
    run = start(script, *RUN)
    assert run.finish() == "FAILED" and codes(run) == [2]
    assert run_status(run.run_dir).state == "must be mended"


def test_a_job_that_a_person_cancels_does_not_come_back(start, slurm):
    run = start(SAVE_ON_SIGNAL.replace("USR1", "TERM"))
    run.wait_for_log("rank 0 listens")
    slurm.ask("scancel", str(run.job))
    run.wait(lambda: run.lines("ended") != [], "the end of the attempt")
    assert run.finish() == "CANCELLED"
    assert len(codes(run)) == 1 and "requeues itself" not in run.log


def test_an_environment_without_the_package_is_a_sentence_on_the_first_node(slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "python"
    # The interpreter below this environment has none of its packages.
    python.write_text(f'#!/bin/bash\nexec {sys.base_prefix}/bin/python3 -I "$@"\n')
    python.chmod(0o755)
    run = Submitted(slurm, tmp_path / "run", *RUN, f"cluster.python={python}")
    assert run.finish() == "FAILED" and codes(run) == [2]
    assert f"`cluster.python` must hold the package palimpsest-trainer, but is {python}" in run.log


def test_a_run_directory_takes_one_job_at_a_time(start, tmp_path, capsys):
    run = start("sleep 9999", *RUN)
    arguments = ["submit", *RUN, f"run_dir={run.run_dir}", "cluster.node_local_paths=[/nowhere]"]
    assert run_command([*arguments, "cluster.time_limit_min=60"]) == 2
    assert f"job {run.job} of {run.run_dir} is" in capsys.readouterr().err
    run.slurm.ask("scancel", str(run.job))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("cluster.partition=gpu", "`cluster.partition` must be one of main, but is 'gpu' instead."),
        (
            "cluster.gpus_per_node=8",
            "`cluster.gpus_per_node` must be at most the 0 GPUs of a node of partition main",
        ),
        ("cluster.num_nodes=4", "`cluster.num_nodes` must be at most the 2 such nodes of partition main"),
        ("cluster.time_limit_min=240", "`cluster.time_limit_min` must be at most the 120 minutes"),
        ("cluster.cpus_per_rank=64", "`cluster.cpus_per_rank` must be at most 4"),
    ],
)
def test_what_the_site_cannot_give_is_refused_before_submission(slurm, tmp_path, capsys, override, sentence):
    before = slurm.ask("scontrol", "show", "job", "--oneliner").count("JobId=")
    shared = [f"run_dir={tmp_path}/run", "cluster.node_local_paths=[/nowhere]", "cluster.time_limit_min=60"]
    assert run_command(["submit", *RUN, *shared, override]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert slurm.ask("scontrol", "show", "job", "--oneliner").count("JobId=") == before


@pytest.mark.parametrize("text", ["node[1-3]", "a[08-11],b", "r[1-2]n[1-2]"])
def test_node_lists_are_expanded_as_slurm_does(slurm, text):
    assert expand_hosts(text) == slurm.ask("scontrol", "show", "hostnames", text).split()


def test_three_attempts_without_a_checkpoint_stop_with_a_diagnosis(beside, slurm, monkeypatch):
    run = beside["stuck"]
    assert run.finish() == "FAILED"
    assert codes(run) == [1, 1, 1] and len(run.lines("gave_up")) == 1
    end = run.log[run.log.index("Stopped: the last 3 attempts committed no checkpoint") :]
    assert "ValueError: shapes differ" in end and "submit again" in end
    status = run_status(run.run_dir)
    assert (status.state, status.last_error) == ("gave up", "ValueError: shapes differ")
    # A person who mended the cause gets three attempts again.
    monkeypatch.chdir(run.run_dir.parent)
    again = submitted(slurm, run.run_dir.parent, "exit 0", *RUN, name="stuck")
    assert again.run_dir == run.run_dir and again.finish() == "COMPLETED"


def test_attempts_that_commit_checkpoints_are_not_counted_as_stuck(beside):
    assert beside["moves"].finish() == "COMPLETED"
    assert codes(beside["moves"]) == [75] * 4 + [0]


def test_a_job_at_its_time_limit_saves_and_goes_on_by_itself(beside):
    out_of_time = beside["limit"]
    assert out_of_time.finish() == "COMPLETED"
    assert codes(out_of_time) == [75, 0], "it was killed at the limit"
    assert "telling the ranks to save" in out_of_time.log
    record = (out_of_time.run_dir / "attempts.jsonl").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in record)
