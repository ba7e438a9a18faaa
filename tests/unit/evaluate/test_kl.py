"""KL to the base: equal to the whole sum on a small vocabulary, a close lower bound on a large one."""

import contextlib

import numpy as np
import pytest
import torch

from trainer.data.types import Pack
from trainer.dist.mesh import alone
from trainer.engine.policy import Policy
from trainer.evaluate.held_out import HeldOut
from trainer.evaluate.kl import TOP, divergence_by_document, take_references
from trainer.model.head.ask import Output

SEQ_LEN = 12
ALONE = alone(torch.device("cpu"))


class Packs:
    """Two documents a pack; of the second one only the end is supervised."""

    seq_len = SEQ_LEN

    def __init__(self, num_packs, vocab_size, documents=None):
        rng = np.random.default_rng(0)
        self.documents = documents or list(range(2 * num_packs))
        self.num_packs = num_packs
        marks = np.array([True] * 5 + [False] * 3 + [True] * 2)
        self._packs = [Pack(rng.integers(0, vocab_size, 10), marks, [5, 5]) for _ in range(num_packs)]

    def pack(self, index):
        return self._packs[index]

    def documents_of(self, index):
        return np.array(self.documents[2 * index : 2 * index + 2])


class TableEngine:
    """Answers with a row of logits for each token id."""

    module = torch.nn.Identity()

    def __init__(self, table_VV):
        self._table_VV = table_VV

    def evaluating(self):
        return contextlib.nullcontext()

    def forward(self, ask, input_ids, **others):
        one_hot = torch.nn.functional.one_hot(input_ids, len(self._table_VV)).to(self._table_VV.dtype)
        return ask.answer(one_hot, Output(self._table_VV.t(), None, 4096))


def measured(vocab_size, moved, documents=None):
    """Return (KL by document, positions by document, the whole sum by piece) of two tables of logits."""
    torch.manual_seed(0)
    base = 2.0 * torch.randn(vocab_size, vocab_size)
    tuned = base + moved * torch.randn(vocab_size, vocab_size)
    packs = Packs(3, vocab_size, documents)
    layout = HeldOut(["a"], [packs], 9, 1, 0)
    references = take_references(Policy(TableEngine(base), ALONE, False), layout)
    sums, counts = divergence_by_document(Policy(TableEngine(tuned), ALONE, False), layout, references)["a"]
    p, q = (torch.log_softmax(table.double(), dim=-1) for table in (base, tuned))
    whole_V = (p.exp() * (p - q)).sum(dim=-1)
    expected = []
    for index in range(3):
        tokens = packs.pack(index).tokens
        # A position is supervised when the token after it, in its document, is.
        expected += [whole_V[tokens[:4]].sum().item(), whole_V[tokens[7:9]].sum().item()]
    return np.array(sums), counts, np.array(expected)


def test_with_a_small_vocabulary_it_is_the_whole_sum():
    found, counts, whole = measured(TOP, 1.0)
    assert counts == [4, 2] * 3
    assert found == pytest.approx(whole, rel=1e-4)


def test_parts_of_a_document_in_several_packs_are_one():
    """They would make the interval narrower than it is."""
    found, counts, whole = measured(TOP, 1.0, documents=[0, 1, 1, 2, 2, 1])
    assert counts == [4, 2 + 4 + 2, 2 + 4]
    assert found == pytest.approx([whole[0], whole[1] + whole[2] + whole[5], whole[3] + whole[4]], rel=1e-4)


def test_the_tail_as_one_makes_it_a_close_lower_bound():
    found, _, whole = measured(2000, 0.3)
    assert np.all(found <= whole + 1e-9) and np.all(found > 0.02 * whole)


def test_the_same_model_has_no_divergence_from_itself():
    found, _, _ = measured(300, 0.0)
    assert np.abs(found).max() < 1e-6
