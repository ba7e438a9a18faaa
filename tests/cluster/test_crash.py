"""A crash of SLURM's own daemons: what ran meanwhile tells nothing of ours, and is run again."""

import pytest

from tests.helpers.slurm_cluster import DaemonCrashed

TRIES: list[str] = []


def test_a_test_is_repeated_with_a_new_cluster_where_a_daemon_crashed(slurm):
    TRIES.append(str(slurm.folder))
    if len(TRIES) == 1:
        slurm.crash("slurmd-node1")
        with pytest.raises(DaemonCrashed, match="slurmd-node1 crashed"):
            slurm.ask("sinfo")
        pytest.fail("the daemon is gone")
    assert TRIES[0] != TRIES[1] and slurm.node_state("node1").startswith("IDLE")
