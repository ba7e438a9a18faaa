"""Jobs that may go on with fewer nodes, on a real SLURM, with a shell script in the place of Python.

test_training.py has one that trains and loses its second node.
"""

import contextlib
import subprocess

import psutil
import pytest

from tests.cluster.test_job_life import TWO_NODES, submitted

FEWER = (*TWO_NODES, "cluster.min_nodes=1")
pytestmark = pytest.mark.slow


@pytest.fixture
def lost(slurm):
    """Return what takes a node away; it comes back when the test ends."""
    gone = []

    def lose(node, is_noticed=True):
        gone.append(node)
        slurm.unplug(node)
        if is_noticed:
            slurm.lose(node)

    yield lose
    for node in gone:
        slurm.plug(node)
        if "DOWN" in slurm.node_state(node):
            slurm.find(node)


def test_the_loss_of_the_first_node_requeues_the_whole_job(slurm, tmp_path, monkeypatch, lost):
    """SLURM leaves such a job running with nobody in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainer.launch.fewer.KEEP_S", 2)
    run = submitted(slurm, tmp_path, '((attempt > 1)) && exit 0; echo "rank waits"; sleep 9999', *FEWER)
    run.wait_for_log("1: rank waits")
    lost("node1")
    run.wait(lambda: run.state == "PENDING", "the job to wait for its nodes")
    slurm.plug("node1")
    slurm.find("node1")
    assert run.finish() == "COMPLETED", run.log
    assert [line["nodes"] for line in run.lines("started")] == ["node[1-2]", "node[1-2]"]
    assert "Restarts=1" in slurm.ask("scontrol", "show", "job", str(run.job))


def test_a_job_on_what_is_left_asks_for_all_nodes_when_it_is_requeued(slurm, tmp_path, monkeypatch, lost):
    monkeypatch.chdir(tmp_path)
    script = """
case $attempt in
    1) echo "rank waits"; sleep 9999 ;;
    2) touch "$run_dir/alone-$SLURM_NTASKS"; until [[ -e $run_dir/go ]]; do sleep 0.2; done; exit 75 ;;
esac"""
    run = submitted(slurm, tmp_path, script, *FEWER)
    run.wait_for_log("1: rank waits")
    lost("node2")
    run.wait((run.run_dir / "alone-1").exists, "the rank that is left")
    slurm.plug("node2")
    slurm.find("node2")
    (run.run_dir / "go").touch()
    assert run.finish() == "COMPLETED", run.log
    assert [line["nodes"] for line in run.lines("started")] == ["node[1-2]", "node1", "node[1-2]"]
    assert [line["code"] for line in run.lines("ended")] == [75, 75, 0]


def test_a_node_that_slurm_has_not_given_up_yet_is_found_by_asking_it(slurm, tmp_path, monkeypatch, lost):
    """Its rank has ended, so that srun does not wait for it; that of the other node fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trainer.launch.fewer.ANSWER_S", 15)
    script = """
((attempt > 1 || SLURM_PROCID)) && exit 0
echo "rank waits"; until [[ -e $run_dir/go ]]; do sleep 0.2; done; exit 75"""
    run = submitted(slurm, tmp_path, script, *FEWER)
    run.wait_for_log("0: rank waits")

    def steps_on_node2():
        netns = subprocess.run(
            ["ip", "netns", "pids", f"plmp{slurm.number}-node2"], capture_output=True, text=True
        )
        shown = []
        for pid in netns.stdout.split():
            with contextlib.suppress(psutil.NoSuchProcess):
                shown += psutil.Process(int(pid)).cmdline()[:1]
        return [words for words in shown if words.startswith(f"slurmstepd: [{run.job}.")]

    run.wait(
        lambda: len(steps_on_node2()) == 1,
        "the end of the second rank; what looks after the first node stays",
    )
    lost("node2", is_noticed=False)
    (run.run_dir / "go").touch()
    run.wait(lambda: len(run.lines("ended")) == 2, "the end on one node")
    assert "DOWN" not in slurm.node_state("node2")
    assert [line["code"] for line in run.lines("ended")] == [75, 0] and "goes on with 1 of 2 nodes" in run.log
    # SLURM counts the job as completing until the other node says so too.
    slurm.plug("node2")
    assert run.finish() == "COMPLETED", run.log
