"""Which prompts a round answers, and what is made of their answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from trainer.data.pack.refs import PackRef
from trainer.data.types import Pack, Unit
from trainer.errors import DataError
from trainer.rounds.asked_pieces import answer_begins, check_prompts, find_prompts, is_drawn, with_answer

TOKENS = np.arange(10, 22)
MARKS = np.array([0, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
"""Four documents: two turns are learnt; all of it is; nothing is; the last token is."""


def split_of(*packs):
    return SimpleNamespace(
        seq_len=16, num_packs=len(packs), pack=lambda index: packs[index], unit=Unit.document, values=()
    )


STORE = split_of(Pack(TOKENS, MARKS, [5, 2, 2, 3]))


def test_the_last_learnt_run_of_a_document_is_answered_anew_and_what_stands_before_it_is_the_prompt():
    assert answer_begins(np.array([0, 1, 0, 1, 1], dtype=bool)) == 3
    assert answer_begins(np.array([1, 1], dtype=bool)) == 0
    assert answer_begins(np.zeros(2, dtype=bool)) is None
    found = find_prompts([PackRef(0, 0, 3)], [STORE], ["chat"], {0}, 1.0, 0)
    assert [one.prompt for one in found.prompts] == [[10, 11, 12], [19, 20]]
    assert [one.place for one in found.prompts] == [(0, 0, 3, 0), (0, 0, 3, 3)]
    assert (found.num_given, found.num_without) == (0, 1)
    assert found.prompts[1].place.key("chat") == "chat:0:3:3"
    assert not find_prompts([PackRef(0, 0, 0)], [STORE], ["chat"], {1}, 1.0, 0).prompts


def test_a_prompt_without_room_for_an_answer_stays_as_it_is():
    full = split_of(Pack(np.arange(17), np.arange(17) >= 16, [17]))
    found = find_prompts([PackRef(0, 0, 0)], [full], ["chat"], {0}, 1.0, 0)
    assert (found.prompts, found.num_without) == ([], 1)


def test_a_share_of_prompts_is_drawn_by_their_places():
    keys = [f"chat:{number}:0:0" for number in range(4000)]
    drawn = [is_drawn(0.3, 7, key) for key in keys]
    assert abs(sum(drawn) / len(keys) - 0.3) < 0.03
    assert drawn == [is_drawn(0.3, 7, key) for key in keys] != [is_drawn(0.3, 8, key) for key in keys]
    assert all(is_drawn(1.0, 7, key) for key in keys)
    assert all(
        not was or is_ for was, is_ in zip(drawn, (is_drawn(0.6, 7, key) for key in keys), strict=True)
    )
    nobody = find_prompts([PackRef(0, 0, 0)], [STORE], ["chat"], {0}, 0.0, 0)
    assert (nobody.prompts, nobody.num_given, nobody.num_without) == ([], 2, 1)


def test_the_answer_alone_is_learnt():
    piece = with_answer([5, 6], [7, 8, 1])
    assert piece.tokens.tolist() == [5, 6, 7, 8, 1]
    assert piece.supervised.tolist() == [False, False, True, True, True]


def test_a_source_without_prompts_is_a_sentence():
    check_prompts([STORE], ["chat"], {0})
    whole = split_of(Pack(np.arange(6), np.ones(6, dtype=bool), [6]))
    with pytest.raises(
        DataError, match=r"`data\.sources\.books` must hold documents with a prompt .* holds none"
    ):
        check_prompts([STORE, whole], ["chat", "books"], {0, 1})
