"""DeepSpeed's hostfiles: read before the launcher reads them, so that a mistake is a sentence."""

import pytest

from trainer.dist.hosts import parse_hostfile
from trainer.errors import TopologyError


def test_hosts_and_their_ranks_are_read_in_order():
    text = "# two nodes\nnode1 slots=8\n\n  10.0.0.2   slots=8  # the second\n"
    assert parse_hostfile(text, "hosts") == {"node1": 8, "10.0.0.2": 8}
    assert list(parse_hostfile("b slots=1\na slots=1\n", "hosts")) == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("node1\n", "hosts:1 is 'node1' instead"),
        ("node1 slots=8\nnode2 slots=0\n", "hosts:2 is 'node2 slots=0' instead"),
        ("node1 slots=eight\n", "hosts:1 is 'node1 slots=eight' instead"),
        ("node1 slots=8 node2 slots=8\n", "hosts:1 is"),
        ("node1 slots=8\nnode1 slots=8\n", "hosts:2 names a host again"),
        (
            "node1 slots=8\nnode2 slots=4\n",
            "the same number of slots, but hosts has node1 8, node2 4 instead",
        ),
        (
            "n1 slots=8\nn1 slots=8\nn2\n",
            "hosts:2 names a host again, hosts:3 is 'n2' instead. Mend these lines.",
        ),
        ("# nothing\n", "has no host instead"),
    ],
)
def test_a_hostfile_that_cannot_be_used_names_its_line(text, sentence):
    with pytest.raises(TopologyError) as error:
        parse_hostfile(text, "hosts")
    assert sentence in str(error.value)
