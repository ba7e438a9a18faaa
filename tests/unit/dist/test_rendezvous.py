"""What would make all ranks wait is found before they meet."""

import socket

import pytest

from trainer.dist.env import RankEnv
from trainer.dist.rendezvous import check_rendezvous
from trainer.errors import TopologyError


def test_a_name_that_does_not_resolve_is_refused_on_every_rank():
    for rank in (0, 1):
        with pytest.raises(TopologyError, match=r"`MASTER_ADDR` must be .* 'no-such-host.invalid'"):
            check_rendezvous(RankEnv(rank, 0, 2, "no-such-host.invalid", 29500))


def test_a_port_that_is_taken_is_refused_on_the_first_rank_only():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(TopologyError, match=rf"`MASTER_PORT` must be free .* listens on {port}"):
            check_rendezvous(RankEnv(0, 0, 2, "127.0.0.1", port))
        check_rendezvous(RankEnv(1, 1, 2, "127.0.0.1", port))
        # torchrun's agent listens there itself, and its ranks are clients.
        check_rendezvous(RankEnv(0, 0, 2, "127.0.0.1", port), store_is_open=True)


def test_a_free_port_is_left_free():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_rendezvous(RankEnv(0, 0, 2, "localhost", port))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_a_rank_alone_meets_nobody():
    check_rendezvous(RankEnv(0, 0, 1, "no-such-host.invalid", 29500))
