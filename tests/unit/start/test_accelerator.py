"""What DeepSpeed is told that ranks compute on."""

import pytest

from trainer.command.rank import run_rank
from trainer.errors import TopologyError
from trainer.start.accelerator import accelerator_problems

HIDDEN = {"CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("told", [{}, {"DS_ACCELERATOR": "cpu"}])
def test_nothing_and_the_processor_are_taken(told):
    assert [*accelerator_problems({**HIDDEN, **told})] == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("nonsense", "`DS_ACCELERATOR` must be cuda, cpu or unset, but is 'nonsense' instead. Unset it"),
        ("", "`DS_ACCELERATOR` must be cuda, cpu or unset, but is '' instead. Unset it"),
        (
            "cuda",
            "`DS_ACCELERATOR` must be cpu or unset where no GPU is seen, but is 'cuda' instead. Unset it",
        ),
    ],
)
def test_what_ranks_could_not_begin_with_is_a_sentence(value, sentence):
    (problem,) = accelerator_problems({**HIDDEN, "DS_ACCELERATOR": value})
    assert problem.sentence.startswith(sentence)


def test_a_gpu_is_looked_for_where_the_ranks_are():
    assert [*accelerator_problems({**HIDDEN, "DS_ACCELERATOR": "cuda"}, is_here=False)] == []


def test_a_rank_of_a_launcher_says_it_too(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "nonsense")
    with pytest.raises(TopologyError, match="is 'nonsense' instead"):
        run_rank("train", None)
