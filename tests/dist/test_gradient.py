"""The proof of the gradient on two ranks: it passes at every stage, tells a wrong kernel, and changes no step."""

from __future__ import annotations

from typing import Any

import pytest

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_mixtures import mixture as mixture  # a fixture
from trainer.errors import SelfCheckError

LORA = ["tune.method=lora", "tune.r=4"]
RECOMPUTED = ["model.checkpoint_layers=-1"]
FEW = [["zero.stage=1", *RECOMPUTED], ["zero.stage=3", "zero.dtype=bf16", *LORA, *RECOMPUTED]]
WHOLE_STEP = ["train.micro_batch_size=2"]
"""One micro-step a step: stage 0 adds up none in bf16."""
ALL = [
    [f"zero.stage={stage}", f"zero.dtype={dtype}", *tune, *recomputed, *WHOLE_STEP * (stage == 0)]
    for stage in (0, 1, 2, 3)
    for dtype in ("fp32", "bf16")
    for tune in ([], LORA, [*LORA, "tune.quantise=nf4"])
    for recomputed in ([], RECOMPUTED)
]
FEW_EXPERTS = [["zero.stage=3", *RECOMPUTED], ["zero.stage=2", *LORA, "tune.target=[all_linear,experts]"]]


def proved_and_stepped(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    """Return of each variant how far its gradient is apart, and whether two steps are those without the proof."""
    from trainer.run.proofs import prove_gradient

    found = []
    for index, words in enumerate(variants):
        steps, apart = [], []
        for proves in (True, False):
            config = config_of(workspace, f"{run_dir}/{index}-{proves}", *words)
            with session_of(config) as session:
                apart += [prove_gradient(session)] if proves else []
                steps.append(take_steps(session, 2))
        found.append((apart[0], steps[0] == steps[1]))
    return found


def wrong(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> str:
    """Return what is said of a kernel that halves the gradient on its way through one MLP."""
    from tests.unit.evaluate.test_gradient import Times, patched
    from trainer.run.proofs import prove_gradient

    with session_of(config_of(workspace, run_dir, *words)) as session:
        mlp = session.loaded.model.get_submodule("model.layers.1.mlp")
        patched(mlp, lambda output: Times.apply(output, 0.5))
        with pytest.raises(SelfCheckError) as caught:
            prove_gradient(session)
    return str(caught.value)


def assert_proved(variants: list[list[str]], found: list[tuple[float, bool]]) -> None:
    for words, (apart, is_same) in zip(variants, found, strict=True):
        print(words, apart, is_same)
        assert is_same, words
        assert apart <= (2.0**-4 if "zero.dtype=bf16" in words else 1e-4), (words, apart)


@pytest.mark.parametrize("variants", [FEW, pytest.param(ALL, marks=pytest.mark.slow)])
def test_the_gradient_is_proved_at_every_stage_and_changes_no_step(pool, workspace, variants, tmp_path):
    arguments = {"workspace": workspace, "run_dir": str(tmp_path), "variants": variants}
    assert_proved(variants, pool(2).run(proved_and_stepped, **arguments)[0])


def save_known(mesh: Any, folder: str) -> None:
    """Save a mixture of a class whose layers DeepSpeed reduces as a whole under ZeRO-3."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from trainer.model.tiny import build_tokenizer

    sizes = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "head_dim": 8}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts": 4}
    config = Qwen3MoeConfig(vocab_size=264, num_experts_per_tok=2, decoder_sparse_step=1, **sizes, **counts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def test_the_gradient_of_a_mixture_that_deepspeed_knows_is_proved_under_zero3(pool, workspace, tmp_path):
    pool(1).run(save_known, folder=str(tmp_path / "known"))
    variants = [["zero.stage=3", f"model.path={tmp_path}/known"]]
    arguments = {"workspace": workspace, "run_dir": str(tmp_path), "variants": variants}
    assert_proved(variants, pool(2).run(proved_and_stepped, **arguments)[0])


@pytest.mark.slow
def test_the_gradient_of_a_mixture_is_proved(pool, workspace, mixture, tmp_path):
    variants = [[*words, mixture] for words in FEW_EXPERTS]
    arguments = {"workspace": workspace, "run_dir": str(tmp_path), "variants": variants}
    assert_proved(variants, pool(2).run(proved_and_stepped, **arguments)[0])


@pytest.mark.slow
def test_a_kernel_that_is_wrong_backward_stops_every_rank_under_zero3(pool, workspace, tmp_path):
    words = ["zero.stage=3", "zero.dtype=bf16", *RECOMPUTED]
    said = pool(2).run(wrong, workspace=workspace, run_dir=str(tmp_path), words=words)
    assert all("layer" in one and "layers.1" in one and "model.checkpoint_layers=0" in one for one in said)
