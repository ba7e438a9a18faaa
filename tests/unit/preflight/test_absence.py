"""Who did not come, and who hangs where."""

from trainer.preflight.absence import AWAITS, DONE, absent, judge_hang, judge_missing, judge_stuck
from trainer.preflight.facts import Check

EXPECTED = {"node1": 2, "node2": 2, "node3": 2}


def missing(*present, started=(), expected=EXPECTED, hosts=()):
    """Return the problems when of six ranks, two a node, these came."""
    nodes = {rank: f"node{1 + rank // 2}" for rank in present}
    return list(judge_missing(absent(nodes, 6, expected, hosts), started, "node1:29500", 25, is_slurm=True))


def test_every_node_that_did_not_come_is_named_with_what_is_known_of_it():
    (silent,) = missing(0, 1, 4, 5)
    assert silent.nodes == ("node2",) and "nothing was heard of it" in silent.sentence
    (begun,) = missing(0, 1, 4, 5, started=["node1", "node2", "node3"])
    assert "its Python began, and either still loads torch or does not reach node1:29500" in begun.sentence
    (half,) = missing(0, 1, 2, 4, 5)
    assert (
        "`rendezvous of node2` must be 2 process(es)" in half.sentence and "but is 1 instead" in half.sentence
    )
    assert [one.nodes for one in missing(0, 1)] == [("node2",), ("node3",)]


def test_without_slurm_the_hostfile_names_who_is_missing_else_the_ranks():
    """Hosts may call themselves otherwise than the hostfile calls them: only ranks tell who came."""
    addresses = [f"10.0.0.{1 + rank // 2}" for rank in range(6)]
    (half,) = missing(0, 1, 2, 4, 5, expected=None, hosts=addresses)
    assert (
        half.nodes == ("10.0.0.2",)
        and "must be 2 process(es)" in half.sentence
        and "is 1 instead" in half.sentence
    )
    (ranks,) = missing(0, 1, 2, expected=None)
    assert ranks.nodes == ("the node(s) of rank(s) 3, 4, 5",)
    (renamed,) = missing(0, 1, 2, 4, 5, expected={"node1": 1, "node2": 1, "node3": 1})
    assert renamed.nodes == ("the node(s) of rank(s) 3",), "somebody is missing, whatever SLURM said"


def hang(*phases):
    """Return the problems of two nodes with two processes each."""
    nodes = {0: "node1", 1: "node1", 2: "node2", 3: "node2"}
    return list(judge_hang(dict(enumerate(phases)), nodes, 50, is_slurm=True))


def test_the_one_that_is_behind_hangs_and_those_that_wait_do_not():
    matmul, folder = Check.matmul.value, Check.run_dir.value
    (problem,) = hang(folder, AWAITS, AWAITS, matmul)
    assert (problem.check, problem.nodes) == (Check.matmul, ("node2",))
    assert "but is unfinished on rank(s) 3 instead. Its GPU hangs" in problem.sentence
    assert hang(DONE, DONE, AWAITS, DONE) == []


def test_of_an_all_reduce_that_hangs_everywhere_nobody_is_named_alone():
    (problem,) = hang(*[Check.between.value] * 4)
    assert problem.nodes == ("node1", "node2") and "exclude" not in problem.sentence
    (problem,) = hang(Check.between.value, Check.between.value, Check.within.value, Check.within.value)
    assert (problem.check, problem.nodes) == (Check.within, ("node2",))


def test_a_process_of_which_nothing_is_known_never_came_further_than_the_start():
    (problem,) = judge_hang({}, {1: "node2"}, 50, is_slurm=False)
    assert problem.check is Check.rendezvous


def test_when_time_is_up_in_the_first_process_nodes_are_named_as_slurm_gave_them_out():
    phases = {0: AWAITS, 1: Check.run_dir.value}
    (problem,) = judge_stuck(phases, {"node1": 1, "node2": 1}, "node1", Check.run_dir, 50)
    assert problem.nodes == ("node2",)
    (problem,) = judge_stuck(phases, None, "node1", Check.run_dir, 50)
    assert problem.nodes == ("rank 1",)
    (alone,) = judge_stuck({}, None, "here", Check.matmul, 50)
    assert (alone.check, alone.nodes) == (Check.matmul, ("here",))
