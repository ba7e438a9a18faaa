"""A base in 4 bits at every ZeRO stage: the steps of plain peft on bitsandbytes, a base that never moves, really sharded
under ZeRO-3, resume, export and merge.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_adapters import losses, train_and_resume
from tests.dist.test_zero import FP32, NUM_STEPS, assert_close, documents_of, plain_steps

QLORA = ["tune.method=lora", "tune.quantise=nf4", "tune.r=4"]
METHODS = {
    "lora": QLORA,
    "dora": [*QLORA, "tune.dora=true"],
    "ia3": ["tune.method=ia3", "tune.quantise=nf4", "tune.target=[k_proj,v_proj,down_proj]"],
}


def base_in_4_bits(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """Load as the documentation of transformers says; nothing of ours."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=options.get("compute", dtype),
    )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=config)


def plain_peft(workspace: str, method: str, documents: dict[str, Any]) -> list[dict[str, float]]:
    from peft import IA3Config, LoraConfig, get_peft_model

    # In training, because bitsandbytes repacks weights of a model in evaluation on some processors.
    model = base_in_4_bits(Path(workspace) / "model", torch.float32).train()
    linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    torch.manual_seed(0)
    scales = ["k_proj", "v_proj", "down_proj"]
    ia3 = IA3Config(target_modules=scales, feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    lora = LoraConfig(
        r=4, lora_alpha=8, target_modules=linear, use_dora=method == "dora", task_type="CAUSAL_LM"
    )
    chosen: Any = ia3 if method == "ia3" else lora
    trains = [p for p in get_peft_model(model, chosen).parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trains if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in trains if p.ndim < 2], "weight_decay": 0.0},
    ]
    return plain_steps(model, [group for group in groups if group["params"]], documents, NUM_STEPS)


def reference(group: Any, workspace: str, run_dir: str) -> Any:
    with session_of(config_of(workspace, run_dir)) as session:
        documents = documents_of(session, NUM_STEPS)
    return {method: plain_peft(workspace, method, documents) for method in METHODS}


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("reference"))
    return pool(1).run(reference, workspace=workspace, run_dir=run_dir)[0]


def trained(group: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    """Train and return the steps, the counts, and the bytes of the frozen base on this rank before and after."""
    from trainer.evaluate.frozen import FrozenCheck, check_silent
    from trainer.model.quantise import held_bytes

    results = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            assert check_silent(session.engine, torch.arange(40).numpy(), group, False) == 0
            frozen = FrozenCheck(session.engine)
            before = held_bytes(session.engine.module)
            steps = take_steps(session, NUM_STEPS)
            frozen.check(group)
            assert held_bytes(session.engine.module) == before
            results.append([steps, session.tuned.num_trainable, session.tuned.num_total, before])
    return results


@pytest.mark.parametrize(
    ("method", "num_ranks"),
    [
        ("lora", 2),
        ("lora", 1),
        pytest.param("dora", 2, marks=pytest.mark.slow),
        pytest.param("ia3", 2, marks=pytest.mark.slow),
    ],
)
def test_a_base_in_4_bits_takes_the_steps_of_plain_peft(
    pool, workspace, expected, method, num_ranks, tmp_path
):
    """One stage off: its packed weights are not gathered, or are gathered wrong. All off: not bitsandbytes' NF4."""
    stages = [0, 1, 2] if method == "dora" else [0, 1, 2, 3]
    variants = [[*METHODS[method], f"zero.stage={stage}"] for stage in stages]
    results = pool(num_ranks).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=variants)
    assert min(record["loss"] for record in expected[method]) < expected[method][0]["loss"]
    totals = set()
    for stage, (records, num_trainable, num_total, _) in zip(stages, results[0], strict=True):
        print(f"stage {stage}, {num_ranks} rank(s)")
        assert 0 < num_trainable < num_total
        totals.add(num_total)
        assert_close(records, expected[method], FP32, FP32 * 10)
    assert len(totals) == 1, "weights were counted packed or sharded"
    same = [[one[:3] for one in result] for result in results]
    assert all(one == same[0] for one in same), "ranks report different numbers"
