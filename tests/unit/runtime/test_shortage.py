"""Memory that runs out is a sentence that names what to change."""

import pytest
import torch

from trainer.errors import TrainerError
from trainer.runtime.shortage import shortage_explained

CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.18 GiB."


def sentence_of(*settings):
    with pytest.raises(TrainerError) as found, shortage_explained("train.micro_batch_size", *settings):
        raise torch.OutOfMemoryError(CUDA)
    return str(found.value)


def test_the_sentence_names_what_is_not_yet_at_its_least():
    said = sentence_of(8, 0)
    assert (
        "2.50 GiB more" in said
        and "model.checkpoint_layers=-1" in said
        and "train.micro_batch_size=4" in said
    )
    said = sentence_of(1, -1)
    assert "checkpoint_layers" not in said and "micro_batch_size" not in said and "zero.stage" in said


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), shortage_explained("train.micro_batch_size", 1, None):
        raise RuntimeError("shapes differ")
