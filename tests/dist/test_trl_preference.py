"""The same pairs, model and hyper-parameters through TRL, which was not written here."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dist.preferred import BETA, lone_pairs, objective_of, overrides_of, take_steps, write_rows
from tests.dist.session import config_of, session_of
from tests.dist.test_trl import by_trl, options_of_trl

NUM_STEPS = 20
LOSS, GRAD_NORM = 1e-5, 1e-5
"""Relative; of what is below 0.1 to 0.1, as some losses come down to 0. Both sides compute in float32 and sum in
another order (TRL sums tokens in float32 too, we in float64), and twenty steps of Adam carry the differences on."""
FLOOR = {"hinge": 1.0}
"""Other floors: the hinge is 1 minus what comes near to 1, and keeps the rounding of both."""
THEIRS = {
    "dpo": (["sigmoid"], {}),
    "rpo": (["sigmoid", "sft"], {"name": "dpo", "nll_weight": 0.5}),
    "robust": (["robust"], {"label_noise": 0.1}),
    "normalised": (["sigmoid_norm"], {}),
    "ipo": (["ipo"], {}),
    "hinge": (["hinge"], {}),
    "apo_zero": (["apo_zero"], {}),
    "apo_down": (["apo_down"], {}),
    # Of its experimental trainers.
    "simpo": ({"loss_type": "simpo", "simpo_gamma": 0.5, "cpo_alpha": 0.0}, {"gamma": 0.5}),
    "cpo": ({"loss_type": "sigmoid", "cpo_alpha": 1.0}, {}),
    "orpo": ({}, {"nll_over": "prompt_and_answer"}),
}
REPORTED = {
    "preference_accuracy": "rewards/accuracies",
    "reward_chosen": "rewards/chosen",
    "reward_rejected": "rewards/rejected",
}


def write_pairs(path: Path) -> None:
    """Write pairs of which no two fit a pack of 64 tokens, so that a step is four of them on both sides."""
    write_rows(path, lone_pairs(np.random.default_rng(11), 4 * NUM_STEPS))


def ours(mesh: Any, workspace: str, folder: str) -> dict[str, list[dict[str, float]]]:
    from trainer.command.prepare import ensure_inputs

    overrides = [
        "data.shuffle=false",
        "data.validation_frac=0",
        "data.values=[label]",
        f"data.cache_dir={folder}/cache",
        "~data.sources.text",
        "data.sources.chat.format=preference",
        "data.sources.chat.columns.loss_mask=null",
        f"data.sources.chat.path={folder}/pairs.jsonl",
        "objective.kind=preference",
        "train.micro_batch_size=2",
        f"train.max_steps={NUM_STEPS}",
        "schedule.name=constant",
        "schedule.warmup_steps=0",
        "optim.decay_embeddings=true",
        "zero.stage=2",
    ]
    found = {}
    for name, (_, options) in THEIRS.items():
        words = overrides_of(**({"name": name} | options))
        config = config_of(workspace, f"{folder}/{name}", *overrides, *words)
        ensure_inputs(config)
        with session_of(config) as session:
            assert session.stores["chat"].train.pack_units.tolist() == [1] * (4 * NUM_STEPS)
            found[name] = take_steps(session, objective_of(session), NUM_STEPS)
            for record in found[name]:
                record |= record.pop("all")
    return found


def train_with_trl(model: Path, pairs: Path, output: Path) -> None:
    """Train with TRL in this process and write what it reports of every step, for every loss."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    def loaded() -> Any:
        return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    dataset = Dataset.from_list([json.loads(line) for line in pairs.read_text().splitlines()])
    # Of micro-batches it takes a mean of means of the chosen tokens.
    common = options_of_trl(output, NUM_STEPS) | {"per_device_train_batch_size": 4, "beta": BETA}
    found = {}
    for name, (theirs, options) in THEIRS.items():
        given = {"train_dataset": dataset, "processing_class": AutoTokenizer.from_pretrained(model)}
        if isinstance(theirs, list):
            weights = [1.0, options.get("nll_weight", 0.0)][: len(theirs)]
            noise = options.get("label_noise", 0.0)
            own = dict(max_length=None, loss_type=theirs, loss_weights=weights, label_smoothing=noise)
            trainer = DPOTrainer(loaded(), loaded(), DPOConfig(**common, **own), **given)
        elif name == "orpo":
            trainer = ORPOTrainer(loaded(), ORPOConfig(**common, **theirs), **given)
        else:
            trainer = CPOTrainer(loaded(), CPOConfig(**common, **theirs), **given)
        trainer.train()
        history = [record for record in trainer.state.log_history if "loss" in record]
        found[name] = [{key: float(value) for key, value in record.items()} for record in history]
    output.write_text(json.dumps(found))


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed: extra `test`")
@pytest.mark.slow
def test_twenty_steps_of_every_loss_equal_those_of_trl_on_the_same_pairs(pool, workspace, tmp_path):
    """The first step differs: tokens, what is learnt of them, or a loss. Later ones only: optimizer or clipping."""
    pairs, output = tmp_path / "pairs.jsonl", tmp_path / "trl.json"
    write_pairs(pairs)
    expected = by_trl("test_trl_preference", workspace, pairs, output)
    actual = pool(1).run(ours, workspace=workspace, folder=str(tmp_path))[0]
    for name in THEIRS:
        a, e = actual[name], expected[name]
        assert len(a) == len(e) == NUM_STEPS
        losses, norms = (
            [abs(x[key] - y[key]) / max(abs(y[key]), FLOOR.get(name, 0.1)) for x, y in zip(a, e, strict=True)]
            for key in ("loss", "grad_norm")
        )
        print(f"{name}: largest difference: loss {max(losses):.2e}, gradient norm {max(norms):.2e}")
        assert max(losses) <= LOSS and max(norms) <= GRAD_NORM, name
        if name not in ("normalised", "ipo"):  # of means here, of sums there, whatever the loss compares
            for key, theirs in REPORTED.items():
                assert [x[key] for x in a] == pytest.approx([y[theirs] for y in e], abs=1e-3, rel=1e-4), (
                    name,
                    key,
                )
    assert actual["dpo"][0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
