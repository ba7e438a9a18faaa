"""The documents that lost most, and their tokens: ranks, rises and windows worked out by hand."""

import numpy as np
import pytest
import torch

from tests.helpers.tokenizers import make_tokenizer
from trainer.data.types import Pack, Unit
from trainer.dist.mesh import alone
from trainer.engine.policy import Policy
from trainer.errors import TrainerError
from trainer.evaluate.forgotten import (
    MOST_TOKENS,
    ForgottenDocument,
    HeldOutPiece,
    Rise,
    TextPart,
    counted_pieces,
    forgotten_text,
    most_lost,
    read_forgotten,
    rises,
    show,
)
from trainer.evaluate.forgotten_scores import MeasuredSets, forgotten_documents
from trainer.evaluate.held_out import HeldOut, PieceLosses, held_out_losses


def test_a_rise_is_that_of_a_whole_document_and_falls_are_left_out():
    """Document 4 has two pieces: (6 + 2 - 3 - 1) / (2 + 2) = 1 nat a token; document 7 fell."""
    base = PieceLosses(np.array([3.0, 5.0, 1.0]), np.array([2, 4, 2]))
    tuned = PieceLosses(np.array([6.0, 4.0, 2.0]), np.array([2, 4, 2]))
    (found,) = rises("s", np.array([4, 7, 4]), base, tuned)
    assert (found.document, found.num_targets) == (4, 4)
    assert (found.base_nats, found.tuned_nats, found.nats) == (1.0, 2.0, 1.0)


def test_a_few_words_do_not_come_before_a_document():
    found = [Rise("s", 0, 1.0, 9.0, 3), Rise("s", 1, 1.0, 1.5, 40), Rise("s", 2, 1.0, 2.0, 16)]
    assert [one.document for one in most_lost(found, 3)] == [2, 1, 0]
    assert [one.document for one in most_lost(found, 1)] == [2]


def letters(ids):
    return "".join(chr(97 + token) for token in ids)


def test_the_rise_of_a_token_stands_at_the_position_before_it():
    """A piece at 2 to 6 of a pack: tokens b c d e, of which c is not learnt; b has no loss."""
    pack = Pack(np.arange(7) - 1, np.array([1, 1, 1, 0, 1, 1, 1], bool), [2, 4, 1])
    base, tuned = np.zeros(8, np.float16), np.array([9, 9, 5, 0.5, -0.25, 9, 9, 9], np.float16)
    found = show(Rise("s", 3, 1.0, 2.0, 2), HeldOutPiece(0, 2, 4, 3), pack, base, tuned, letters)
    assert found.parts == (TextPart("bc", None), TextPart("d", 0.5), TextPart("e", -0.25))
    assert (found.first_token, found.num_tokens, found.is_cut) == (0, 4, False)


def test_of_a_long_document_the_part_that_lost_most_is_shown():
    """All of what rose is in the last ten tokens, so the window is the last one."""
    size = MOST_TOKENS + 50
    pack = Pack(np.arange(size) % 26, np.ones(size, bool), [size])
    tuned = np.zeros(size, np.float16)
    tuned[size - 11 : size - 1] = 1
    found = show(Rise("s", 0, 0.0, 1.0, 9), HeldOutPiece(0, 0, size, 0), pack, np.zeros(size), tuned, letters)
    assert found.first_token == 50 and not found.is_cut and len(found.parts) == MOST_TOKENS
    assert [part.rise for part in found.parts][-11:] == [0.0] + [1.0] * 10


def test_pieces_of_one_character_are_joined():
    """A byte tokenizer cuts the euro sign into three tokens; their rises add up."""
    tokenizer = make_tokenizer()
    ids = np.array(tokenizer.encode_fragments(["a\u20acb"])[0])
    assert len(ids) == 5
    pack = Pack(ids, np.ones(5, bool), [5])
    tuned = np.array([0.5, 0.25, 0.125, 2.0, 0], np.float16)
    found = show(
        Rise("s", 0, 0, 1, 4),
        HeldOutPiece(0, 0, 5, 0),
        pack,
        np.zeros(5, np.float16),
        tuned,
        tokenizer.decode,
    )
    assert [(part.text, part.rise) for part in found.parts] == [("a", None), ("\u20ac", 0.875), ("b", 2.0)]


class LetterStore:
    """Two packs of two documents of four tokens each; pack k holds the tokens 10 k to 10 k + 7."""

    seq_len, unit, num_packs = 8, Unit.document, 2

    def pack(self, index):
        return Pack(np.arange(8) + 10 * index, np.ones(8, bool), [4, 4])

    def documents_of(self, index):
        return np.array([2 * index, 2 * index + 1])


class PairsStore(LetterStore):
    unit = Unit.pair


def test_of_pairs_the_chosen_answers_are_counted():
    assert [(piece.pack, piece.start) for piece, _ in counted_pieces(PairsStore(), 9)] == [(0, 0), (1, 0)]
    found = [(piece.pack, piece.start, piece.document) for piece, _ in counted_pieces(LetterStore(), 1)]
    assert found == [(0, 0, 0), (0, 4, 1)]


class LabelEngine:
    """Answers every position with a factor times its label."""

    module = torch.nn.Identity()

    def __init__(self, factor):
        self.factor = factor

    def evaluating(self):
        return torch.no_grad()

    def forward(self, ask, **inputs):
        nll = self.factor * ask.labels_N.clamp(min=0).float()
        return nll.sum(), nll


def test_the_documents_of_all_sets_that_lost_most_are_read_once_more():
    """The loss doubles, so a document rises by the mean of its labels: 16, 12, 6 and 2 for documents 3, 2, 1, 0."""
    base, tuned = (Policy(LabelEngine(factor), alone(torch.device("cpu")), False) for factor in (1.0, 2.0))
    held_out = HeldOut(
        ["empty", "s"], [type("Empty", (LetterStore,), {"num_packs": 0})(), LetterStore()], 9, 1, 0
    )
    before = held_out_losses(base, held_out, keeps_tokens=True)
    assert before.tokens["s", 1].tolist() == [11, 12, 13, 0, 15, 16, 17, 0]
    sets = MeasuredSets(held_out, before.pieces, before.tokens, held_out_losses(tuned, held_out).pieces)
    found = forgotten_documents(tuned, [sets], 3, lambda ids: ",".join(map(str, ids)) + " ")
    assert [(one.set, one.document, one.tuned_nats - one.base_nats) for one in found] == [
        ("s", 3, 16.0),
        ("s", 2, 12.0),
        ("s", 1, 6.0),
    ]
    assert [(part.text, part.rise) for part in found[0].parts] == [
        ("14 ", None),
        ("15 ", 15.0),
        ("16 ", 16.0),
        ("17 ", 17.0),
    ]
    assert forgotten_documents(tuned, [sets], 0, str) == []


def test_the_file_makes_a_round_trip_and_a_broken_one_is_named(tmp_path):
    parts = (TextPart("<b>", 1.5), TextPart("x", None))
    one = ForgottenDocument("s|t", 2, 1.0, 2.0, 20, 30, 4, parts, True)
    path = tmp_path / "forgotten_documents.json"
    path.write_text(forgotten_text("step-1", [one]))
    assert read_forgotten(path, "step-1") == (one,)
    assert read_forgotten(path, "step-2") is None and read_forgotten(tmp_path / "none", "step-1") is None
    path.write_text(path.read_text().replace('"is_cut"', '"cut"'))
    with pytest.raises(TrainerError, match=r"forgotten_documents.json must be as a run writes it"):
        read_forgotten(path, "step-1")
