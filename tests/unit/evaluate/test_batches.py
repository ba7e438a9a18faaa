"""Requests over ranks: as many batches everywhere, every request once."""

from hypothesis import given
from hypothesis import strategies as st

from trainer.dist.mesh import Axis
from trainer.evaluate.tasks.batches import make_batches, share


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 120), st.integers(1, 5))
def test_ranks_run_the_same_number_of_batches_and_count_every_request_once(lengths, batch_tokens, world_size):
    """A rank with a batch less leaves the others in a collective for ever."""
    batches = make_batches(lengths, batch_tokens)
    assert all(
        len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens for batch in batches
    )
    shares = [list(share(batches, Axis(rank, world_size))) for rank in range(world_size)]
    assert len({len(part) for part in shares}) == 1
    counted = [index for part in shares for batch, is_counted in part if is_counted for index in batch]
    assert sorted(counted) == list(range(len(lengths)))


def test_nothing_asked_is_nothing_to_do():
    assert make_batches([], 9) == [] and list(share([], Axis(1, 2))) == []
