"""SLURM's node lists."""

import pytest

from trainer.dist.hosts import expand_hosts
from trainer.errors import TopologyError


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node1", ["node1"]),
        ("login,node7", ["login", "node7"]),
        ("node[1-3]", ["node1", "node2", "node3"]),
        ("node[08-11]", ["node08", "node09", "node10", "node11"]),
        ("gpu-a[1,3-4],cpu2", ["gpu-a1", "gpu-a3", "gpu-a4", "cpu2"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
        ("n[001].site.org,n[9-10].site.org", ["n001.site.org", "n9.site.org", "n10.site.org"]),
    ],
)
def test_a_list_is_expanded_in_its_order(text, names):
    assert expand_hosts(text) == names


@pytest.mark.parametrize("text", ["", " ", "node[", "node[1-]", "node[3-1]", "node[a-c]", "node]1["])
def test_what_is_no_list_is_refused_with_the_fix(text):
    with pytest.raises(TopologyError, match=r"must be a list of nodes .* Export MASTER_ADDR"):
        expand_hosts(text)
