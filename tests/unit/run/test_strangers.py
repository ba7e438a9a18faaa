"""What KTO's point of reference is measured on, and what helps where there is nothing."""

import numpy as np
import pytest

from tests.unit.data.test_mismatched import pack_of
from trainer.data.pack.mismatched import MismatchedSplit, is_strange, prompts_of
from trainer.errors import DataError
from trainer.run.references import _say_how_strange


class Packs(MismatchedSplit):
    """Packs in memory instead of on disk."""

    def __init__(self, *packs):
        self.held = packs

    def is_strange(self, index):
        return is_strange(self.held[index])

    def prompts(self, index):
        return set(prompts_of(self.held[index]))


def splits(*stores):
    return [(store, np.arange(len(store.held))) for store in stores]


ONE = ([1, 2], [11])
AGAIN = ([1, 2], [12, 13])
OTHER = ([3], [14])


@pytest.mark.parametrize(
    "held", [[Packs(pack_of(ONE, AGAIN), pack_of(ONE))], [Packs(pack_of(ONE)), Packs(pack_of(OTHER))]]
)
def test_answers_to_one_prompt_are_not_told_to_take_longer_packs(held):
    """No length of a pack brings another prompt into it: packs are of one source."""
    with pytest.raises(DataError) as error:
        _say_how_strange(splits(*held), [])
    assert str(error.value) == (
        "`data.sources` must have answers to different prompts in a source, on which KTO measures its point of "
        f"reference, but the {sum(len(p.lengths) for s in held for p in s.held)} answers to train on are to one prompt "
        "by source instead. Set objective=apo_zero_unpaired, which needs no such point, or add rows with other prompts."
    )


@pytest.mark.parametrize("packs", [[pack_of(ONE), pack_of(OTHER)], [pack_of(ONE, AGAIN), pack_of(OTHER)]])
def test_answers_to_two_prompts_that_never_meet_are(packs):
    with pytest.raises(DataError, match=r"`data.seq_len` must leave room .* Raise data.seq_len, or set"):
        _say_how_strange(splits(Packs(*packs)), [])


def test_how_many_there_are_is_said(monkeypatch):
    said = []  # not by caplog: a command that ran before in this process keeps messages from the root logger
    monkeypatch.setattr("trainer.run.references._LOG.info", lambda text, *of: said.append(text % of))
    _say_how_strange(splits(Packs(pack_of(ONE, AGAIN, OTHER))), splits(Packs(pack_of(ONE))))
    assert len(said) == 1 and "on 2 of 3 answers, and on 0 of 1 held out" in said[0]
