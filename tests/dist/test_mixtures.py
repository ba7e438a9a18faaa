"""Mixtures of experts: LoRA on experts as in plain peft at every stage, and experts that no token chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_adapters import exported, losses, train_twice
from tests.dist.test_zero import FP32, assert_close, documents_of, plain_steps

NUM_STEPS = 4
LORA = ["tune.method=lora", "tune.r=4", "tune.target=[all_linear,experts]"]
SHAPE = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.1,
    "tie_word_embeddings": False,
}
IDLE = 3
"""The expert that no token chooses."""


def save_mixture(mesh: Any, folder: str) -> None:
    """Save a dense layer and a mixture whose last expert is never chosen, under transformers' own names."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.model.tiny import build_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("glm4_moe", **SHAPE))
    gate = model.model.layers[1].mlp.gate
    with torch.no_grad():
        gate.weight.normal_(0, 0.5)
        gate.e_score_correction_bias[IDLE] = -1e3
    model.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, f"{folder}/model.safetensors", metadata={"format": "pt"})
    build_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def mixture(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("mixture"))
    pool(1).run(save_mixture, folder=folder)
    return f"model.path={folder}"


def trained(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    results = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            results.append(take_steps(session, NUM_STEPS))
    return results


def plain_peft(mesh: Any, workspace: str, run_dir: str, overrides: list[str]) -> Any:
    """Train with plain peft from the factors that a session begins with."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    with session_of(config_of(workspace, run_dir, *overrides)) as session:
        documents = documents_of(session, NUM_STEPS)
        described, source = session.tuned.peft_config, session.loaded.source
        named = session.policy.engine.module.named_parameters()
        factors = {
            "base_model.model." + n.removeprefix("lm."): p.detach().clone() for n, p in named if ".lora_" in n
        }
    plain: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    model = get_peft_model(plain, described)
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trains.keys() == factors.keys()
    with torch.no_grad():
        for name, parameter in trains.items():
            parameter.copy_(factors[name])
    return plain_steps(model, [{"params": list(trains.values()), "weight_decay": 0.1}], documents, NUM_STEPS)


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_lora_on_experts_takes_the_steps_of_plain_peft(pool, workspace, mixture, num_ranks, tmp_path):
    """One stage off: factors of experts are not gathered, or not reduced. All off: another scale, or other tensors."""
    words = [*LORA, mixture]
    arguments = {"workspace": workspace, "run_dir": str(tmp_path / "plain")}
    steps = pool(1).run(plain_peft, **arguments, overrides=words)[0]
    variants = [[*words, f"zero.stage={stage}"] for stage in (0, 1, 2, 3)]
    results = pool(num_ranks).run(
        trained, workspace=workspace, run_dir=str(tmp_path / "ours"), variants=variants
    )
    for records in results[0]:
        assert_close(records, steps, FP32, FP32 * 10)
    assert all(result == results[0] for result in results)


def test_experts_without_tokens_keep_no_rank_waiting_under_zero3(pool, workspace, mixture, tmp_path):
    """Whole weights, recomputed and not, against stage 1. A hang: a rank gathers what another does not."""
    variants = [
        [mixture, "zero.stage=1"],
        [mixture, "zero.stage=3"],
        [mixture, "zero.stage=3", "model.checkpoint_layers=-1"],
        [*LORA, mixture, "zero.stage=1"],
        [*LORA, mixture, "zero.stage=3", "model.checkpoint_layers=-1"],
    ]
    found = pool(2).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=variants)[0]
    whole, sharded, recomputed, adapter, sharded_adapter = found
    assert_close(sharded, whole, FP32, FP32 * 10)
    assert_close(recomputed, whole, FP32, FP32 * 10)
    assert_close(sharded_adapter, adapter, FP32, FP32 * 10)


def rounded_otherwise(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> list[Any]:
    """Return what is said of adapters that move logits by half of what rounding may, by ten times that, and by half
    with factors that are tiny and not 0."""
    from trainer.errors import SelfCheckError
    from trainer.evaluate.proofs.fingerprint import difference, take_fingerprint
    from trainer.evaluate.proofs.frozen import NOISE, check_silent
    from trainer.model.flow import shaking
    from trainer.model.tune.quantise import held_tensors

    tokens, said, share = torch.arange(40, 80).numpy(), [], 0.0
    with session_of(config_of(workspace, run_dir, *words)) as session:
        policy = session.policy

        def moved() -> float:
            return difference(plain, take_fingerprint(policy, tokens).logits_KV)

        def otherwise(module: Any, args: Any, output: Any) -> Any:
            return output if module._disable_adapters else output * (1 + share)

        next(m for m in policy.module.modules() if hasattr(m, "lora_A")).register_forward_hook(otherwise)
        assert check_silent(policy, tokens) == 0
        plain = take_fingerprint(policy, tokens).logits_KV
        with shaking(policy.module):
            allowed = NOISE * moved()
        share = 1e-3
        per_share = moved() / share
        for times, tiny in ((0.5, 0.0), (10.0, 0.0), (0.5, 1e-12)):
            share = times * allowed / per_share
            for name, parameter in policy.module.named_parameters():
                if ".experts." in name and ".lora_B." in name:
                    for held in held_tensors(parameter):
                        held += tiny
            try:
                said.append(check_silent(policy, tokens) / allowed)
            except SelfCheckError as error:
                said.append(str(error))
    return said


@pytest.mark.parametrize("target", ["all_linear,experts", "all_linear"])
def test_experts_made_anew_may_round_otherwise_and_nothing_else_may(
    pool, workspace, mixture, target, tmp_path
):
    """What is added to a linear layer's answer is exactly 0; a tensor of experts is made anew at another address."""
    words = [*LORA[:2], f"tune.target=[{target}]", mixture, "zero.stage=3"]
    half, ten, tiny = pool(2).run(rounded_otherwise, workspace=workspace, run_dir=str(tmp_path), words=words)[
        0
    ]
    assert "but moves them by" in ten
    if target == "all_linear":
        assert "(allowed: 0.0e+00)" in half and "(allowed: 0.0e+00)" in tiny
    else:
        assert 0.2 < half < 1 and "(allowed: 0.0e+00)" in tiny and "(allowed: 0.0e+00)" not in ten


@pytest.mark.parametrize("stage", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_experts_with_factors_resume_export_and_merge(pool, workspace, mixture, stage, tmp_path):
    words = [*LORA, mixture, f"zero.stage={stage}"]
    pool(2).run(train_twice, workspace=workspace, folder=str(tmp_path), overrides=words)
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "resumed")
    assert sorted(resumed) == [4, 5, 6] and {step: whole[step] for step in resumed} == resumed
    for merge in (False, True):
        code, moved, names, files, _ = pool(1).run(exported, run_dir=str(tmp_path / "resumed"), merge=merge)[
            0
        ]
        assert code == 0
        assert moved < 0.02, (merge, moved)  # bf16 arithmetic of training against float32
        assert any("experts.base_layer.lora_A" in name for name in names)
        assert ("adapter_config.json" in files) == (not merge)


def logged(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> str:
    """Open a session as a run does and return what its first rank wrote into its log."""
    with session_of(config_of(workspace, run_dir, *words)):
        (log,) = Path(run_dir).glob("logs/**/rank-0*.log")
    return log.read_text()


def test_a_run_says_what_of_a_quantised_mixture_stays_unpacked(pool, workspace, mixture, tmp_path):
    """Four experts of three matrices of 32 x 16 in one layer, in float32."""
    pytest.importorskip("bitsandbytes", reason="pip install 'palimpsest-trainer[qlora]'")
    words = [*LORA[:2], "tune.quantise=nf4", mixture]
    found = pool(1).run(logged, workspace=workspace, run_dir=str(tmp_path / "run"), words=words)[0]
    assert "a token goes to 2 of 4 experts of a layer; 6,144 parameters are experts" in found
    assert (
        "The experts are no linear layers and stay in fp32: 2.458e-05 GB in all, beside the base in NF4."
        in found
    )
