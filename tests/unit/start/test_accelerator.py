"""What DeepSpeed is told that ranks compute on."""

import re

import pytest
import torch

from trainer.cli import run_command
from trainer.command.rank import run_rank
from trainer.errors import TopologyError
from trainer.start import accelerator
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


@pytest.mark.parametrize("command", ["train", "doctor"])
def test_the_processor_beside_a_gpu_is_refused_before_ranks_and_in_them(
    monkeypatch, tmp_path, capsys, command
):
    """On two H200 with DS_ACCELERATOR=cpu: "No backend type associated with device type cpu", in a broadcast."""
    (tmp_path / "driver").touch()
    monkeypatch.setattr(accelerator, "DRIVER", str(tmp_path / "driver"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    said = (
        "`DS_ACCELERATOR` must be unset where a GPU is seen, but is 'cpu' instead. Unset it, or hide all GPUs"
    )
    assert run_command([command, "model=tiny"]) == 2
    assert said in capsys.readouterr().err
    with pytest.raises(TopologyError, match=re.escape(said)):
        run_rank("train", None)
    assert [*accelerator_problems({"DS_ACCELERATOR": "cpu"}, is_here=False)] == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [*accelerator_problems({"DS_ACCELERATOR": "cpu"})] == [], "a driver alone leaves the processor"


def test_a_rank_of_a_launcher_says_it_too(monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "nonsense")
    with pytest.raises(TopologyError, match="is 'nonsense' instead"):
        run_rank("train", None)
