"""Losses and gradients of pairs are the same whether a pack holds their prompt once or twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dist.preferred import made_pairs, objective_of, overrides_of, take_steps, write_rows
from tests.dist.session import config_of, session_of

NUM_STEPS = 3
FP32 = 1e-5
"""Relative: keys are summed in another order, and three steps of Adam carry that on."""
LOSSES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "robust": {"label_noise": 0.1},
    "conservative": {"label_noise": 0.1},
    "normalised": {},
    "ipo": {"nll_weight": 0.5, "nll_mean": "answers"},
    "ipo_sum": {"beta": 0.05},
    "hinge": {},
    "apo_zero": {},
    "apo_down": {},
    "simpo": {"gamma": 0.5},
    "cpo": {},
    "orpo": {"nll_over": "prompt_and_answer"},
}
SOME = ("dpo", "orpo")
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8, "attention_bias": True},
    "mistral": {"sliding_window": 6},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
}


def words_of(data: str, share: str, *words: str) -> list[str]:
    return [
        "data.sources.chat.format=preference",
        "data.sources.chat.columns.loss_mask=null",
        f"data.sources.chat.path={data}/pairs.jsonl",
        "~data.sources.text",
        "objective.kind=preference",
        "data.values=[label]",
        "data.shuffle=false",
        "data.validation_frac=0",
        f"data.cache_dir={data}/cache",
        f"data.share_prompts={share}",
        "train.max_steps=8",
        *words,
    ]


def write_pairs(folder: Path) -> None:
    """Write pairs of which no two fit a pack with their prompts once, so that steps have the same ones both ways."""
    rows = made_pairs(np.random.default_rng(5))
    for row in rows:
        row["prompt"] = (row["prompt"] * 20)[:14]
        for side in ("chosen", "rejected"):
            row[side] = (row[side][:-1] * 30)[: 10 + len(row[side]) % 5] + row[side][-1]
    write_rows(folder / "pairs.jsonl", rows)


def save_model(folder: Path, kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.helpers.tiny import SHAPE
    from trainer.model.tiny import build_tokenizer

    common = {"vocab_size": 264, "max_position_embeddings": 512, "initializer_range": 0.1, **SHAPE}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = AutoConfig.for_model(kind, **{**common, **ends, **MODELS[kind]})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def steps_of(mesh: Any, workspace: str, data: str, run_dir: str, variants: list[Any]) -> Any:
    """Return the steps of each variant (loss, options, words) with a prompt once and twice."""
    from trainer.command.prepare import ensure_inputs

    found = []
    for index, (name, options, words) in enumerate(variants):
        both = []
        for share in ("true", "false"):
            loss = overrides_of(**{"name": name} | options)
            where = f"{run_dir}/{index}_{share}"
            config = config_of(workspace, where, *words_of(data, share, *loss, *words))
            if mesh.is_first:
                ensure_inputs(config)
            mesh.barrier()
            with session_of(config) as session:
                train = session.stores["chat"].train
                assert train.pack_units.tolist() == [1] * train.num_packs, "steps have other pairs"
                assert session.shares_prompts == (share == "true")
                records = take_steps(session, objective_of(session), NUM_STEPS)
                both.append((int(train.pack_tokens.sum()), records))
        found.append(both)
    return found


def assert_same(both: Any) -> None:
    (few, shared), (many, whole) = both
    assert few < 0.9 * many
    for record, wanted in zip(shared, whole, strict=True):
        assert record.pop("all") == pytest.approx(wanted.pop("all"), rel=FP32, abs=FP32)
        assert record == pytest.approx(wanted, rel=FP32, abs=FP32 / 10)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("shared")
    write_pairs(folder)
    for kind in MODELS:
        save_model(folder / kind, kind)
    return str(folder)


@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_steps_of_every_loss_are_those_of_two_documents_a_pair(pool, workspace, data, tmp_path, attention):
    names = LOSSES if attention == "eager" else SOME
    variants = [(name, LOSSES[name], [f"model.attention={attention}"]) for name in names]
    (found,) = pool(1).run(steps_of, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants)
    for both in found:
        assert_same(both)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_steps_are_the_same_on_any_ranks_stages_models_and_tunings(
    pool, workspace, data, tmp_path, num_ranks
):
    size = ["train.global_batch_tokens=768"]
    variants = [("dpo", {}, [*size, f"zero.stage={stage}"]) for stage in range(4)]
    variants += [("dpo", {}, [*size, f"model.path={data}/{kind}", "zero.stage=1"]) for kind in MODELS]
    variants += [
        ("dpo", {}, [*size, "tune.method=lora", "tune.r=4", "zero.stage=2"]),
        ("orpo", LOSSES["orpo"], [*size, "model.checkpoint_layers=-1", "zero.stage=2"]),
        ("dpo", {}, [*size, "model.checkpoint_layers=1", "zero.stage=3"]),
    ]
    answers = pool(num_ranks).run(
        steps_of, workspace=workspace, data=data, run_dir=str(tmp_path), variants=variants
    )
    for (_, _, words), both in zip(variants, answers[0], strict=True):
        print(words)
        assert_same(both)
