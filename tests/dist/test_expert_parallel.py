"""Experts spread over ranks: the steps, checkpoints and exports of a run without that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, loader_of, session_of
from tests.dist.test_adapters import exported, losses, train_twice
from tests.dist.test_mixtures import trained
from tests.dist.test_zero import BF16_LOSS, BF16_NORM, assert_close, documents_of, plain_steps
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.errors import ConfigError, SelfCheckError

NUM_STEPS = 4
CLOSE = 1e-5
"""Relative, of losses and gradient norms. Answers of experts are added up in another order; four steps of Adam on
top."""
OTHERS = [
    name for name in FAMILIES if name in ("DeepSeek-V2", "DeepSeek-V3 and R1", "Qwen1.5-MoE and Qwen2-MoE")
]


def save_mixture(mesh: Any, folder: str, family: str) -> None:
    """Save a small mixture whose routers choose, with the byte tokenizer."""
    from transformers import AutoModelForCausalLM

    from trainer.model.tiny import build_tokenizer

    config = tiny_config(FAMILIES[family])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.3 if "embed" in name else parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def mixture(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the word that names a family's tiny model, made once."""
    made: dict[str, str] = {}

    def get(family: str) -> str:
        if family not in made:
            folder = str(tmp_path_factory.mktemp("mixture"))
            pool(1).run(save_mixture, folder=folder, family=family)
            made[family] = f"model.path={folder}"
        return made[family]

    return get


def plain_torch(mesh: Any, workspace: str, run_dir: str, overrides: list[str]) -> Any:
    """Train with plain transformers and torch, every document alone."""
    from transformers import AutoModelForCausalLM

    with session_of(config_of(workspace, run_dir, *overrides)) as session:
        documents, source = documents_of(session, NUM_STEPS), session.loaded.source
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    decays = {n: p.ndim > 1 and "embed" not in n for n, p in model.named_parameters()}
    groups = [
        {"params": [p for n, p in model.named_parameters() if decays[n] is has], "weight_decay": decay}
        for has, decay in ((True, 0.1), (False, 0.0))
    ]
    return plain_steps(model, groups, documents, NUM_STEPS)


@pytest.mark.parametrize(
    "family",
    ["Qwen3-MoE", "Mixtral", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)],
)
def test_spread_experts_take_the_steps_of_plain_torch(pool, workspace, mixture, family, tmp_path):
    """Norms off and losses right: experts of a rank count twice, or not at all. Both off from the second step: a
    gradient is averaged over the wrong ranks. Both off at once: tokens meet the wrong experts.
    """
    base = mixture(family)
    arguments = {"workspace": workspace, "run_dir": str(tmp_path / "plain")}
    steps = pool(1).run(plain_torch, **arguments, overrides=[base])[0]
    spread = [base, "zero.expert_parallel=2"]
    variants = [
        [base, "zero.stage=1"],
        [*spread, "zero.stage=1"],
        [*spread, "zero.stage=2", "model.checkpoint_layers=-1"],
        [*spread, "zero.stage=3"],
    ]
    results = pool(2).run(trained, workspace=workspace, run_dir=str(tmp_path / "ours"), variants=variants)
    for records in results[0]:
        assert_close(records, steps, CLOSE, CLOSE)
    assert all(result == results[0] for result in results), "ranks report different numbers"


@pytest.mark.slow
def test_experts_that_several_groups_of_ranks_share_take_the_same_steps(pool, workspace, mixture, tmp_path):
    """Four ranks, of which two hold the same experts: a failure here alone is their reduction between groups."""
    base = mixture("Qwen3-MoE")
    variants = [
        [base, "zero.stage=1"],
        *([base, "zero.expert_parallel=2", f"zero.stage={s}"] for s in (1, 2, 3)),
    ]
    whole, *spread = pool(4).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=variants)[0]
    for records in spread:
        assert_close(records, whole, CLOSE, CLOSE)


@pytest.mark.slow
def test_spread_experts_in_bf16_are_within_its_rounding(pool, workspace, mixture, tmp_path):
    """With several micro-steps stage 1 is another optimizer of DeepSpeed's, with a norm of its own."""
    base = [mixture("Qwen3-MoE"), "zero.dtype=bf16"]
    variants = [[*base, "zero.stage=1"]]
    variants += [[*base, "zero.expert_parallel=2", f"zero.stage={stage}"] for stage in (1, 2, 3)]
    whole, *spread = pool(2).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=variants)[0]
    for records in spread:
        assert_close(records, whole, 4 * BF16_LOSS, 4 * BF16_NORM)


@pytest.mark.parametrize(
    ("family", "stage", "num_ranks"),
    [
        ("Qwen3-MoE", 2, 2),
        pytest.param("Qwen3-MoE", 3, 2, marks=pytest.mark.slow),
        pytest.param("Qwen3-MoE", 1, 2, marks=pytest.mark.slow),
        pytest.param("Qwen3-MoE", 2, 4, marks=pytest.mark.slow),
        pytest.param("Qwen3-MoE", 3, 4, marks=pytest.mark.slow),
        pytest.param("DeepSeek-V3 and R1", 2, 2, marks=pytest.mark.slow),
        pytest.param("Qwen1.5-MoE and Qwen2-MoE", 3, 2, marks=pytest.mark.slow),
    ],
)
def test_spread_experts_resume_bitwise_and_export_under_the_bases_names(
    pool, workspace, mixture, family, stage, num_ranks, tmp_path
):
    """A resumed run that differs: experts of other ranks were not restored. An export that is far off: they are in
    another order, or gate and up are.
    """
    words = [mixture(family), "zero.expert_parallel=2", f"zero.stage={stage}"]
    pool(num_ranks).run(train_twice, workspace=workspace, folder=str(tmp_path), overrides=words)
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "resumed")
    assert sorted(resumed) == [4, 5, 6] and {step: whole[step] for step in resumed} == resumed
    code, moved, names, files, _ = pool(1).run(exported, run_dir=str(tmp_path / "resumed"), merge=False)[0]
    assert code == 0 and "model.safetensors.index.json" in files
    assert moved < 0.02, moved  # bf16 arithmetic of training against float32
    base = words[0].removeprefix("model.path=")
    assert sorted(names) == pool(1).run(names_of, folder=base)[0]


def names_of(mesh: Any, folder: str) -> list[str]:
    """Return the names of a model's tensors as transformers has them in memory."""
    from transformers import AutoModelForCausalLM

    return sorted(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def loads(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.startswith("experts_")} for row in rows if "loss" in row]


def run_each(mesh: Any, workspace: str, folder: str, variants: dict[str, list[str]]) -> None:
    from trainer.run import training

    for name, overrides in variants.items():
        config = config_of(workspace, Path(folder) / name, *overrides)
        assert training.run_training(config).value == "finished"


def test_a_whole_run_counts_loads_and_flops_as_without_spread_experts(pool, workspace, mixture, tmp_path):
    """With its proofs, held-out losses and the comparison with the base."""
    base = [mixture("Qwen3-MoE"), "train.max_steps=2", "evaluate.every_steps=1", "zero.stage=1"]
    variants = {"whole": base, "spread": [*base, "zero.expert_parallel=2"]}
    pool(2).run(run_each, workspace=workspace, folder=str(tmp_path), variants=variants)
    whole, spread = (loads(tmp_path / name) for name in variants)
    assert whole == spread and all(whole)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in variants
    ]
    for ours, other in zip(*rows, strict=True):
        assert ours.keys() == other.keys()


def count_weights_of(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> list[Any]:
    from trainer.run.sizes import model_shape

    found = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            shape = model_shape(session.loaded.model, session.loaded.num_parameters)
            loader_of(session).close()
            found.append([shape.num_matmul_params, shape.num_params] if shape else None)
    return found


def test_the_products_of_a_token_are_those_of_all_experts(pool, workspace, mixture, tmp_path):
    base = mixture("Qwen3-MoE")
    variants = [[base], [base, "zero.expert_parallel=2"]]
    whole, spread = pool(2).run(
        count_weights_of, workspace=workspace, run_dir=str(tmp_path), variants=variants
    )[0]
    assert whole == spread and whole is not None


def refused(mesh: Any, workspace: str, run_dir: str, overrides: list[str]) -> str:
    try:
        with session_of(config_of(workspace, run_dir, *overrides)):
            return ""
    except (ConfigError, SelfCheckError) as error:
        return str(error)


def test_a_model_without_known_experts_is_refused(pool, workspace, tmp_path):
    found = pool(2).run(
        refused, workspace=workspace, run_dir=str(tmp_path), overrides=["zero.expert_parallel=2"]
    )
    assert all(
        text.startswith("`zero.expert_parallel` must be 1 for llama, but is 2 instead") for text in found
    )


def changed(mesh: Any, folder: str, **values: Any) -> None:
    path = Path(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_spread_layers_leave_out_is_refused(pool, workspace, tmp_path):
    """The loss of routers, and a number of experts that cannot be shared out."""
    folder = str(tmp_path / "base")
    pool(1).run(save_mixture, folder=folder, family="Qwen3-MoE")
    words = [f"model.path={folder}", "zero.expert_parallel=2"]
    arguments = {"workspace": workspace, "run_dir": str(tmp_path)}
    pool(1).run(changed, folder=folder, output_router_logits=True)
    found = pool(2).run(refused, **arguments, overrides=words)
    assert all(text.startswith("`output_router_logits` must be false") for text in found)
    pool(1).run(changed, folder=folder, output_router_logits=False, num_local_experts=5)
    found = pool(2).run(refused, **arguments, overrides=words)
    assert all(text.startswith("`zero.expert_parallel` must be a divisor of the 5 experts") for text in found)


def with_other_routing(mesh: Any, folder: str) -> str:
    """Spread a model whose configuration came to say another normalisation than its blocks were made with."""
    from transformers import AutoModelForCausalLM

    from trainer.engine.spread import spread_experts

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.norm_topk_prob = not model.config.norm_topk_prob
    try:
        spread_experts(model, 2, mesh, on_gpu=False)
    except SelfCheckError as error:
        return str(error)
    return ""


def test_a_spread_layer_that_answers_otherwise_stops_the_run(pool, mixture):
    folder = mixture("Qwen3-MoE").removeprefix("model.path=")
    found = pool(2).run(with_other_routing, folder=folder)
    assert all("must answer as before when its experts are spread over ranks" in text for text in found)
