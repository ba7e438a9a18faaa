"""A base in 4 bits at every ZeRO stage: the steps of plain peft on bitsandbytes, a base that never moves and that
ZeRO-3 really shards, resume, export and merge.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, loader_of, make_inputs, session_of, take_steps
from tests.dist.test_adapters import losses, train_and_resume
from tests.dist.test_zero import FP32, NUM_STEPS, assert_close, documents_of, plain_steps
from trainer.checkpoint.layout import step_dir

QLORA = ["tune.method=lora", "tune.quantise=nf4", "tune.r=4"]
METHODS = {
    "lora": QLORA,
    "dora": [*QLORA, "tune.dora=true"],
    "ia3": ["tune.method=ia3", "tune.quantise=nf4", "tune.target=[k_proj,v_proj,down_proj]"],
}


@pytest.fixture(scope="module")
def workspace(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a workspace with rows of whole blocks: others plain bitsandbytes unpacks wrongly with AVX-512."""
    folder = str(tmp_path_factory.mktemp("workspace"))
    pool(1).run(make_inputs, folder=folder, hidden_size=64)
    return folder


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


def reference(mesh: Any, workspace: str, run_dir: str) -> Any:
    with session_of(config_of(workspace, run_dir)) as session:
        documents = documents_of(session, NUM_STEPS)
    return {method: plain_peft(workspace, method, documents) for method in METHODS}


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("reference"))
    return pool(1).run(reference, workspace=workspace, run_dir=run_dir)[0]


def trained(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    """Train and return the steps, the counts, and the bytes of the frozen base on this rank before and after."""
    from trainer.evaluate.proofs.frozen import FrozenCheck, check_silent
    from trainer.model.tune.quantise import held_bytes

    results = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            assert check_silent(session.policy, torch.arange(40).numpy()) == 0
            frozen = FrozenCheck(session.policy)
            before = held_bytes(session.policy.engine.module)
            steps = take_steps(session, NUM_STEPS)
            frozen.check()
            assert held_bytes(session.policy.engine.module) == before
            results.append([steps, session.tuned.num_trainable, session.tuned.num_total, before])
    return results


@pytest.mark.parametrize(
    ("method", "num_ranks"),
    [
        ("lora", 2),
        pytest.param("lora", 1, marks=pytest.mark.slow),
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


def sharded(mesh: Any, workspace: str, run_dir: str) -> dict[str, Any]:
    """Return what this rank holds of the packed weights, and how many whole ones live between the passes."""
    from torch.multiprocessing.reductions import StorageWeakRef

    from trainer.model.tune.quantise import held_tensors, quantised_layers

    settings = ["zero.max_reuse_distance=0", "zero.max_live_parameters=1", "zero.persistence_threshold=0"]
    overrides = [*QLORA, "zero.stage=3", "model.checkpoint_layers=0", *settings]
    with session_of(config_of(workspace, run_dir, *overrides)) as session:
        layers = quantised_layers(session.policy.engine.module).values()
        loader = loader_of(session)
        micro = loader.read(2).micro_batches[0]
        loader.close()
        gathered: list[Any] = []

        def remember(layer: Any, *_: Any) -> None:
            gathered.append(StorageWeakRef(layer.weight.untyped_storage()))

        for layer in layers:
            layer.register_forward_pre_hook(remember)

        def living() -> list[int]:
            take_steps(session, 1)
            gathered.clear()
            losses = session.policy.nll(micro)
            assert losses.loss_sum.requires_grad  # and what backward needs is there
            return [len(gathered), sum(not one.expired() for one in gathered)]

        ours = living()
        for layer in layers:
            del layer.forward
            layer.support_avx512bf16_for_cpu = False
        theirs = living()
        weights = [list(held_tensors(layer.weight)) for layer in layers]
        return {
            "packed_bytes": sum(held[0].numel() * held[0].element_size() for held in weights),
            "weights": sum(layer.weight.quant_state.shape.numel() for layer in layers),
            "ours": ours,
            "theirs": theirs,
        }


def test_zero_3_shards_the_packed_base_and_lets_go_of_what_it_gathers(pool, workspace, tmp_path):
    """More bytes on a rank: the base is replicated after all. Whole weights that live: they are gathered from forward
    to backward, as they are with bitsandbytes' own forward.
    """
    for found in pool(2).run(sharded, workspace=workspace, run_dir=str(tmp_path)):
        print(found)
        assert found["packed_bytes"] == found["weights"] // 2 // 2, "half a byte a weight, half of them"
        assert found["ours"] == [14, 0]
        assert found["theirs"][1] > 7, "bitsandbytes lets go by itself now: use its own forward"


def exported(mesh: Any, run_dir: str, merge: bool) -> dict[str, Any]:
    """Export, and compare with what plain bitsandbytes and peft say: nothing of ours but the fingerprint."""
    import contextlib
    import io

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trainer.command.export import export_model
    from trainer.config.store import load_config
    from trainer.engine.consolidate import stream_parameters
    from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint

    path = Path(run_dir)
    folder = path / f"export-{merge}"
    overrides = [f"run_dir={run_dir}", f"export.output_dir={folder}", f"export.merge={merge}"]
    config = load_config(path / "config.yaml", [*overrides, "export.dtype=float32"])
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code = export_model(config)
    saved = read_fingerprint(step_dir(path, 6) / "fingerprint.safetensors")

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(model(saved.tokens_T[None]).logits[0, -len(saved.logits_KV) :]).float()

    base = Path(config.model.path)
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if merge:
        beside = logits(PeftModel.from_pretrained(whole, path / "export-False"))
        answer = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
        moved = difference(beside, answer)
    else:
        packed = base_in_4_bits(base, torch.bfloat16)
        # In training: see plain_peft. There is no dropout.
        answer = logits(PeftModel.from_pretrained(packed, folder, autocast_adapter_dtype=False).train())
        moved = difference(saved.logits_KV, answer)
    return {
        "code": code,
        "said": " ".join(said.getvalue().split()),
        "moved": moved,
        "packing": difference(saved.logits_KV, answer),
        "learnt": difference(logits(whole), saved.logits_KV),
        "names": [name for name, _ in stream_parameters(step_dir(path, 6))],
        "files": sorted(entry.name for entry in folder.iterdir()),
    }


def measured(mesh: Any, run_dir: str) -> dict[str, Any]:
    """Return what the base evaluation, the report, the gate and an interpolation say of a run."""
    from trainer.command.evaluate import gate_passes, run_evaluation
    from trainer.command.interpolate import interpolate
    from trainer.config.store import load_config

    path, at_run = Path(run_dir), f"run_dir={run_dir}"
    report = json.loads((path / "forgetting.json").read_text())
    allowed = ["gate.sets.target.min_drop_nats=0.0"]
    passed = gate_passes(load_config(path / "config.yaml", [at_run, *allowed]), "step-00000006")
    assert run_evaluation(load_config(path / "config.yaml", [at_run, "evaluate.checkpoint=base"]))
    base = json.loads((path / "evaluation.json").read_text())["losses"]
    assert interpolate(load_config(path / "config.yaml", [at_run, "export.interpolate=0.0:1.0:1.0"])) == 0
    points = json.loads((path / "interpolation.json").read_text())["points"]
    return {"report": report, "passed": passed, "base": base, "points": [p["losses"] for p in points]}


@pytest.mark.parametrize(
    ("stage", "model"),
    [
        (1, "model"),
        pytest.param(3, "tied", marks=pytest.mark.slow),
        pytest.param(0, "tied", marks=pytest.mark.slow),
        pytest.param(2, "tied", marks=pytest.mark.slow),
    ],
)
def test_what_a_base_in_4_bits_taught_resumes_bitwise_reloads_in_plain_peft_and_merges_into_the_whole_base(
    pool, workspace, tmp_path, stage, model
):
    """Resumed steps differ: the adapter was not restored, or the base was packed otherwise. Merged is off: it went into
    weights of 4 bits, or a tied output layer was counted twice.
    """
    overrides = [*QLORA, f"zero.stage={stage}", f"model.path={workspace}/{model}"]
    overrides += ["train.micro_batch_size=4"] if stage == 0 else []
    num_ranks = 1 if stage == 0 else 2
    pool(num_ranks).run(train_and_resume, workspace=workspace, folder=str(tmp_path), overrides=overrides)
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "resumed")
    assert sorted(resumed) == [4, 5, 6] and {step: whole[step] for step in resumed} == resumed
    for merge in (False, True):
        (found,) = pool(1).run(exported, run_dir=str(tmp_path / "resumed"), merge=merge)
        print({key: found[key] for key in ("moved", "packing", "learnt")}, found["said"])
        assert found["code"] == 0
        assert found["names"] and all(".lora_" in name for name in found["names"]), found["names"]
        if merge:
            assert found["moved"] < 1e-5 < found["packing"]
            assert (
                "into the base in full precision" in found["said"] and "its base is in NF4" in found["said"]
            )
        else:
            assert found["moved"] < 0.02 < found["learnt"]  # bf16 arithmetic in another order
            assert "adapter_config.json" in found["files"] and "bnb_4bit_quant_type='nf4'" in found["said"]
    (found,) = pool(1).run(measured, run_dir=str(tmp_path / "whole"))
    sets = {one["name"]: one for one in found["report"]["sets"]}
    assert found["passed"] and "base in nf4" in found["report"]["run"]["dtype"]
    for name, one in sets.items():
        assert found["base"][name] == pytest.approx(one["base_nats"], rel=1e-3), "another base is evaluated"
        # An interpolation goes through the base in full precision, which is near the packed one and not the same.
        before, after = (point[name] for point in found["points"])
        assert 0 < abs(before - one["base_nats"]) < 0.2 and 0 < abs(after - one["tuned_nats"]) < 0.2


def test_a_base_in_4_bits_is_not_resumed_in_full_precision(pool, workspace, tmp_path):
    """What an adapter learnt beside one base is wrong beside the other."""
    (said,) = pool(1).run(resume_otherwise, workspace=workspace, run_dir=str(tmp_path / "run"))
    assert "the weights of the base (`model.path`) have changed" in said


def resume_otherwise(mesh: Any, workspace: str, run_dir: str) -> str:
    from trainer.errors import DataError
    from trainer.run import training

    steps = ["train.max_steps=1", "evaluate.forgetting=false", "zero.stage=1"]
    assert training.run_training(config_of(workspace, run_dir, *QLORA, *steps)).value == "finished"
    with pytest.raises(DataError) as caught:
        training.run_training(config_of(workspace, run_dir, *QLORA, "tune.quantise=none", *steps))
    return str(caught.value)
