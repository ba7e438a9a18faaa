"""The proof that answers which share a prompt are what they are alone, on models that have it right and wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.unit.evaluate.test_agreement import passes_of, policy_of
from trainer.engine import policy as policies
from trainer.errors import SelfCheckError
from trainer.evaluate.proofs.branching import ANSWER, check_sharing, sharing_work

WINDOW = {"sliding_window": 40}


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("mistral", WINDOW), ("gpt_neox", {}), ("gemma3_text", {"head_dim": 8})],
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_answers_of_a_model_that_is_right_are_what_they_are_alone(kind, options, attention):
    policy, config = policy_of(kind, attn_implementation=attention, **options)
    found = check_sharing(policy, config, 256)
    assert found.moved == 0.0 and found.apart < 1e-5


def test_packs_too_short_for_the_probe_are_proved_with_what_fits():
    policy, config = policy_of()
    for seq_len in (8, 9, 64):
        assert check_sharing(policy, config, seq_len).apart < 1e-5


def test_the_work_is_what_is_said():
    policy, config = policy_of("mistral", sliding_window=300)
    works = passes_of(check_sharing, policy, config, 1024)
    assert sum(works) == sharing_work(config, 1024) and works[0] > 300


def changed(monkeypatch: Any, **changes: Any) -> None:
    """Hand the model inputs that were changed where a pack shares prompts."""
    real = policies.model_inputs

    def inputs_of(batch: Any, *arguments: Any) -> dict[str, Any]:
        found = real(batch, *arguments)
        return found | {
            key: change(batch, found[key]) for key, change in changes.items() if batch.shares_prompts
        }

    monkeypatch.setattr(policies, "model_inputs", inputs_of)


def plain_causal(batch: Any, mask: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(mask).tril()


def without_prompt(batch: Any, mask: torch.Tensor) -> torch.Tensor:
    segments = torch.from_numpy(batch.segments_BT)
    return mask & (segments[:, None, :, None] == segments[:, None, None, :])


def one_token_short(batch: Any, mask: torch.Tensor) -> torch.Tensor:
    """The second answer does not see the first token of the prompt."""
    mask = mask.clone()
    mask[:, :, int(batch.cu_seq_lens[1]) :, 0] = False
    return mask


def along_the_row(batch: Any, positions: torch.Tensor) -> torch.Tensor:
    return torch.arange(positions.shape[1])[None]


@pytest.mark.parametrize(
    "change",
    [
        {"attention_mask": plain_causal},
        {"attention_mask": without_prompt},
        {"attention_mask": one_token_short},
        {"position_ids": along_the_row},
    ],
)
def test_a_wrong_mask_and_wrong_places_are_found(monkeypatch, change):
    policy, config = policy_of()
    changed(monkeypatch, **change)
    with pytest.raises(SelfCheckError, match=r"Set data\.share_prompts=false\."):
        check_sharing(policy, config, 256)


def test_an_answer_that_sees_a_little_of_the_other_is_found(monkeypatch):
    """One key too many, seen by the last tokens alone: most positions are what they are alone."""

    def leaking(batch: Any, mask: torch.Tensor) -> torch.Tensor:
        mask = mask.clone()
        mask[:, :, -3:, int(batch.cu_seq_lens[1]) - 5] = True
        return mask

    policy, config = policy_of()
    changed(monkeypatch, attention_mask=leaking)
    with pytest.raises(SelfCheckError, match="Answers that share a prompt must not see each other"):
        check_sharing(policy, config, 256)


def test_an_answer_whose_change_changes_nothing_proves_nothing(monkeypatch):
    """The first answer never comes to the model, so that the second cannot see it."""

    def deaf(batch: Any, ids: torch.Tensor) -> torch.Tensor:
        ids, end = ids.clone(), int(batch.cu_seq_lens[1])
        ids[:, end - ANSWER : end] = 3
        return ids

    policy, config = policy_of()
    changed(monkeypatch, input_ids=deaf)
    with pytest.raises(SelfCheckError, match="Answers that share a prompt must not see each other"):
        check_sharing(policy, config, 256)
