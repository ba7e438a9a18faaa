"""The same pairs, reward model and hyper-parameters through TRL's RewardTrainer, which was not written here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dist.preferred import lone_pairs, write_rows
from tests.dist.session import session_of
from tests.dist.test_preference import take_steps
from tests.dist.test_reward import config_for, objective_of, save_scorer
from tests.dist.test_trl import by_trl, options_of_trl

NUM_STEPS, LR = 20, 1e-3
SAME = 1e-5
"""Relative; of what is below 0.1 to 0.1. Both sides compute in float32 and sum in another order."""
VARIANTS = {"plain": (False, 0.0), "margin": (True, 0.0), "centred": (False, 0.01), "both": (True, 0.05)}
"""Whether rows say a margin, and the weight of the centring."""


def write_pairs(folder: Path) -> None:
    """Write pairs of which no two fit a pack of 64 tokens, so that a step is four of them on both sides."""
    rng = np.random.default_rng(13)
    rows = [row | {"margin": float(np.float32(rng.normal()))} for row in lone_pairs(rng, 4 * NUM_STEPS)]
    for name in ("with", "without"):
        kept = [row if name == "with" else {k: v for k, v in row.items() if k != "margin"} for row in rows]
        (folder / name).mkdir()
        write_rows(folder / name / "pairs.jsonl", kept)


def ours(mesh: Any, workspace: str, folder: str) -> dict[str, list[dict[str, float]]]:
    from trainer.command.prepare import ensure_inputs

    found = {}
    for name, (has_margin, centre) in VARIANTS.items():
        words = [
            f"model.path={folder}/scorer",
            f"objective.reward.centre={centre}",
            "data.share_prompts=false",  # as TRL has it, and no two pairs fit a pack
            "data.shuffle=false",
            "data.validation_frac=0",
            "train.micro_batch_size=2",
            f"train.max_steps={NUM_STEPS}",
            "schedule.name=constant",
            "schedule.warmup_steps=0",
            "optim.decay_embeddings=true",
            "zero.stage=2",
            f"optim.lr={LR}",
        ]
        data = f"{folder}/{'with' if has_margin else 'without'}"
        config = config_for(workspace, data, f"{folder}/{name}", *words)
        ensure_inputs(config)
        with session_of(config) as session:
            assert session.stores["chat"].train.pack_units.tolist() == [1] * (4 * NUM_STEPS)
            found[name] = take_steps(session, objective_of(session), NUM_STEPS)
            for record in found[name]:
                record |= record.pop("all")
    return found


def train_with_trl(model: Path, folder: Path, output: Path) -> None:
    """Train with TRL in this process and write what it reports of every step, for every variant."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    found = {}
    for name, (has_margin, centre) in VARIANTS.items():
        rows = (folder / ("with" if has_margin else "without") / "pairs.jsonl").read_text().splitlines()
        scorer = folder / "scorer"
        trainer = RewardTrainer(
            AutoModelForSequenceClassification.from_pretrained(scorer, num_labels=1, dtype=torch.float32),
            RewardConfig(
                **options_of_trl(output, NUM_STEPS) | {"learning_rate": LR},
                per_device_train_batch_size=4,
                max_length=None,
                center_rewards_coefficient=centre or None,
                disable_dropout=True,
            ),
            train_dataset=Dataset.from_list(list(map(json.loads, rows))),
            processing_class=AutoTokenizer.from_pretrained(scorer),
        )
        trainer.train()
        history = [record for record in trainer.state.log_history if "loss" in record]
        found[name] = [{key: float(value) for key, value in record.items()} for record in history]
    output.write_text(json.dumps(found))


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: extra `test`")
@pytest.mark.slow
def test_twenty_steps_of_a_reward_model_equal_those_of_trl_on_the_same_pairs(pool, workspace, tmp_path):
    """The first step differs: tokens, the one that is scored, a margin or the centring. Later ones only: optimizer."""
    write_pairs(tmp_path)
    save_scorer(workspace, tmp_path / "scorer")
    expected = by_trl("test_trl_reward", workspace, tmp_path, tmp_path / "trl.json")
    actual = pool(1).run(ours, workspace=workspace, folder=str(tmp_path))[0]
    first = {name: records[0]["loss"] for name, records in actual.items()}
    assert len(set(first.values())) == len(VARIANTS), "margins and centring are read"
    for name in VARIANTS:
        a, e = actual[name], expected[name]
        assert len(a) == len(e) == NUM_STEPS
        losses, norms = (
            [abs(x[key] - y[key]) / max(abs(y[key]), 0.1) for x, y in zip(a, e, strict=True)]
            for key in ("loss", "grad_norm")
        )
        print(f"{name}: largest difference: loss {max(losses):.2e}, gradient norm {max(norms):.2e}")
        assert max(losses) <= SAME and max(norms) <= SAME, name
        for key, theirs in (("preference_accuracy", "accuracy"), ("reward_margin", "margin")):
            assert [x[key] for x in a] == pytest.approx([y[theirs] for y in e], abs=1e-3, rel=1e-4), (
                name,
                key,
            )
