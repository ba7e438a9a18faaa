"""Fingerprints: what they keep, and when two are the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import DamagedError, DataError, SelfCheckError
from trainer.evaluate.proofs.fingerprint import (
    OTHER_DEVICE_LIMIT,
    Fingerprint,
    check_same,
    difference,
    probe_tokens,
    read_fingerprint,
    write_fingerprint,
)

TOKENS = torch.arange(20) % 12
LOGITS = torch.linspace(-3, 4, 48).reshape(4, 12)
SAVED = Fingerprint(TOKENS, LOGITS)


SPREAD = float((LOGITS - LOGITS.mean(dim=-1, keepdim=True)).square().mean().sqrt())


def moved_by(share):
    """Return the fingerprint with every logit moved by a share of their spread."""
    return Fingerprint(TOKENS, LOGITS + share * SPREAD)


def test_a_fingerprint_makes_a_round_trip(tmp_path):
    write_fingerprint(tmp_path / "f.safetensors", SAVED)
    read = read_fingerprint(tmp_path / "f.safetensors")
    assert torch.equal(read.tokens_T, TOKENS) and torch.equal(read.logits_KV, LOGITS)


@pytest.mark.parametrize(
    "tensors",
    [
        {"tokens": TOKENS},
        {"tokens": TOKENS, "logits": LOGITS, "more": TOKENS + 1},
        {"tokens": TOKENS + 1, "logits": LOGITS},
        {"tokens": TOKENS - 1, "logits": LOGITS},
        {"tokens": TOKENS.float(), "logits": LOGITS},
        {"tokens": TOKENS[:3], "logits": LOGITS},
        {"tokens": TOKENS[:, None], "logits": LOGITS},
        {"tokens": TOKENS, "logits": LOGITS[0]},
        {"tokens": TOKENS[:0], "logits": LOGITS[:0]},
    ],
)
def test_a_fingerprint_that_no_run_writes_is_a_sentence(tmp_path, tensors):
    """A token that the model does not have ended a resume in a traceback."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "f.safetensors")
    with pytest.raises(DamagedError, match=r"f\.safetensors must hold tokens and what a model answered"):
        read_fingerprint(tmp_path / "f.safetensors")


def test_answers_of_another_shape_are_not_the_models():
    with pytest.raises(SelfCheckError, match="moved by inf"):
        check_same(Fingerprint(TOKENS, LOGITS[:, :7]), SAVED, True)


def store(*packs):
    """Return a store whose held-out part is empty."""
    split = SimpleNamespace(num_packs=len(packs), pack=lambda index: SimpleNamespace(tokens=packs[index]))
    return SimpleNamespace(validation=SimpleNamespace(num_packs=0), train=split)


def test_the_probe_is_the_beginning_of_the_first_pack_there_is():
    first, second = np.arange(100, dtype=np.int32), np.arange(3, dtype=np.int32)
    assert probe_tokens([store(), store(first, second)]).tolist() == list(range(64))
    assert probe_tokens([store(second)]).dtype == np.int64
    with pytest.raises(DataError, match="at least one document"):
        probe_tokens([store()])


def test_differences_are_a_share_of_the_spread_of_logits():
    assert difference(LOGITS, LOGITS) == 0.0
    assert difference(LOGITS, moved_by(0.25).logits_KV) == pytest.approx(0.25)
    far = difference(LOGITS + 100, moved_by(0.25).logits_KV + 100)
    assert far == pytest.approx(0.25, rel=1e-4), "a constant added to all logits must not hide a difference"
    assert difference(torch.zeros(4, 12), torch.zeros(4, 12)) == 0.0


def test_the_same_device_must_answer_exactly_and_another_nearly():
    assert check_same(SAVED, SAVED, True) == 0.0
    with pytest.raises(SelfCheckError, match="must answer as the saved one did"):
        check_same(SAVED, moved_by(1e-6), True)
    assert check_same(SAVED, moved_by(0.9 * OTHER_DEVICE_LIMIT), False) > 0
    with pytest.raises(SelfCheckError, match=r"allowed: 1\.5e-01"):
        check_same(SAVED, moved_by(1.1 * OTHER_DEVICE_LIMIT), False)


@pytest.mark.parametrize("is_same_device", [True, False])
def test_a_model_that_answers_nan_is_refused(is_same_device):
    """NaN compares false with everything, so `moved > allowed` would let it pass."""
    broken = Fingerprint(TOKENS, torch.full_like(LOGITS, torch.nan))
    with pytest.raises(SelfCheckError):
        check_same(SAVED, broken, is_same_device)
