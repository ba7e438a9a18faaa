"""A run that goes on with an adapter of plain peft, or of a run of ours: what it begins as, its reference, its base."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.preferred import (
    config_for,
    make_data,
    objective_of,
    overrides_of,
    references_of,
    take_steps,
)
from tests.dist.session import config_of, held_out_losses, session_of
from tests.dist.session import take_steps as take_sft_steps
from tests.dist.test_zero import FP32, NUM_STEPS, assert_close, documents_of, plain_steps

LN_2 = 0.6931471805599453
CLOSE = 2e-5
"""Nats of an answer, in float32; as for other references."""
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 6, "target_modules": LINEAR},
    "dora": {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "rslora": {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, "use_rslora": True},
    "one layer": {"r": 3, "lora_alpha": 3, "target_modules": ["v_proj"], "layers_to_transform": [1]},
}


def save_adapters(mesh: Any, workspace: str, folder: str) -> None:
    """Write adapters of plain peft with factors of both sides random, and the model that each makes of the base."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = Path(workspace) / "model"
    for name, options in ADAPTERS.items():
        torch.manual_seed(3)
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        for parameter in (p for n, p in tuned.named_parameters() if ".lora_B." in n):
            torch.nn.init.normal_(parameter, std=0.2)
        tuned.save_pretrained(Path(folder) / name)
        tuned.merge_and_unload().save_pretrained(Path(folder) / f"{name} merged")


@pytest.fixture(scope="module")
def data(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("started"))
    pool(1).run(make_data, workspace=workspace, data=folder)
    pool(1).run(save_adapters, workspace=workspace, folder=folder)
    return folder


def started(config: Any) -> Any:
    """Return a configuration as the command line leaves it: with the adapter's own options."""
    from trainer.config.check import find_problems
    from trainer.config.start import with_start

    config = with_start(config, ())
    assert not [*find_problems(config, 1)]
    return config


def dpo(workspace: str, data: str, run_dir: str | Path, start: str | Path, *words: str) -> Any:
    own = ("tune.method=lora", f"tune.start={start}")
    return started(config_for(workspace, data, run_dir, *overrides_of("dpo"), *own, *words))


def begun(mesh: Any, workspace: str, data: str, run_dir: str, name: str, words: list[str]) -> Any:
    """Return how far the reference is from the merged model and from the base, and the first steps."""
    from trainer.data.pack.refs import PackRef
    from trainer.run.references import build_references

    with session_of(dpo(workspace, data, run_dir, f"{data}/{name}", *words)) as session:
        sums = build_references(session, session.mixing()).train
        refs = [PackRef(0, pack, 0) for pack in session.mixing().to_draw([0])[0].tolist()]
        ours = sums.of(refs)
        merged, base = (
            references_of(path, session)(refs) for path in (f"{data}/{name} merged", f"{workspace}/model")
        )
        steps = take_steps(session, objective_of(session))
        return {
            "from_merged": float(np.abs(ours - merged).max()),
            "from_base": float(np.abs(ours - base).max()),
            "reports": [step["all"] for step in steps],
            "options": [session.config.tune.r, session.config.tune.alpha, session.config.tune.dora],
            "modules": len(session.tuned.modules),
        }


@pytest.mark.parametrize(
    ("num_ranks", "name", "words"),
    [
        (2, "lora", ["zero.stage=3"]),
        (1, "dora", ["zero.stage=1"]),
        pytest.param(2, "dora", ["zero.stage=3"], marks=pytest.mark.slow),
        pytest.param(1, "rslora", ["zero.stage=0"], marks=pytest.mark.slow),
        pytest.param(2, "one layer", ["zero.stage=2"], marks=pytest.mark.slow),
        pytest.param(3, "lora", ["zero.stage=2", "train.global_batch_tokens=192"], marks=pytest.mark.slow),
    ],
)
def test_the_reference_is_the_model_with_the_adapter_and_the_loss_begins_at_ln_2(
    pool, workspace, data, num_ranks, name, words, tmp_path
):
    """From the base: the adapter was switched off, as for a fresh one. Not ln 2: policy and reference differ."""
    for found in pool(num_ranks).run(
        begun, workspace=workspace, data=data, run_dir=str(tmp_path), name=name, words=words
    ):
        own = ADAPTERS[name]
        assert found["options"] == [own["r"], own["lora_alpha"], own.get("use_dora", False)]
        assert found["modules"] == {"one layer": 1, "dora": 4}.get(name, 14)
        assert found["from_merged"] < CLOSE and found["from_base"] > 0.1
        first, last = found["reports"][0], found["reports"][-1]
        assert first["pair_loss"] == pytest.approx(LN_2, abs=1e-6)
        assert first["reward_chosen"] == pytest.approx(0, abs=1e-5)
        assert last["pair_loss"] < LN_2


def in_4_bits(mesh: Any, workspace: str, data: str, run_dir: str) -> list[float]:
    """Return the first loss, and how far the reference is from that of the packed base alone."""
    from trainer.data.pack.refs import PackRef
    from trainer.model.tune.adapters import adapter_off
    from trainer.run.references import build_references

    words = ("tune.quantise=nf4", "zero.stage=1")
    with session_of(dpo(workspace, data, run_dir, f"{data}/lora", *words)) as session:
        refs = [PackRef(0, pack, 0) for pack in session.mixing().to_draw([0])[0].tolist()]
        ours = build_references(session, session.mixing()).train.of(refs)
        loss = take_steps(session, objective_of(session), 1)[0]["all"]["pair_loss"]
        shutil.rmtree(f"{data}/cache/answer_sums")
        with adapter_off(session.policy.module):
            off = build_references(session, session.mixing()).train.of(refs)
    shutil.rmtree(f"{data}/cache/answer_sums")
    return [loss, float(np.abs(ours - off).max())]


def test_a_packed_base_takes_the_adapter_too(pool, workspace, data, tmp_path):
    pytest.importorskip("bitsandbytes")
    loss, apart = pool(1).run(in_4_bits, workspace=workspace, data=data, run_dir=str(tmp_path))[0]
    assert loss == pytest.approx(LN_2, abs=1e-6) and apart > 0.1


def plain_peft(mesh: Any, workspace: str, data: str, run_dir: str) -> list[dict[str, float]]:
    """Go on with the adapter in plain peft and torch."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with session_of(config_of(workspace, run_dir)) as session:
        documents = documents_of(session, NUM_STEPS)
    base = AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, Path(data) / "lora", is_trainable=True)
    trains = [p for p in model.parameters() if p.requires_grad]
    return plain_steps(model, [{"params": trains, "weight_decay": 0.1}], documents, NUM_STEPS)


def sft(mesh: Any, workspace: str, data: str, run_dir: str, stages: list[int]) -> Any:
    found = []
    for stage in stages:
        words = ["tune.method=lora", f"tune.start={data}/lora", f"zero.stage={stage}"]
        with session_of(started(config_of(workspace, f"{run_dir}/{stage}", *words))) as session:
            found.append(take_sft_steps(session, NUM_STEPS))
    return found


def test_fine_tuning_goes_on_with_the_steps_of_plain_peft(pool, workspace, data, tmp_path):
    expected = pool(1).run(plain_peft, workspace=workspace, data=data, run_dir=str(tmp_path / "plain"))[0]
    run_dir = str(tmp_path / "ours")
    for records in pool(2).run(sft, workspace=workspace, data=data, run_dir=run_dir, stages=[1, 3])[0]:
        assert_close(records, expected, FP32, FP32 * 10)


def whole_runs(mesh: Any, workspace: str, data: str, folder: str) -> None:
    """Fine-tune with a fresh adapter, go on with that run in two parts, and lose the first run between them."""
    from trainer.config.snapshot import freeze
    from trainer.run import training
    from trainer.run.sharing import with_sharing

    def train(config: Any) -> None:
        config = with_sharing(config, says=False)
        if mesh.is_first:
            freeze(config, Path(config.run_dir))
        mesh.barrier()
        assert training.run_training(config).value == "finished"

    sft_dir = Path(folder) / "sft"
    train(config_of(workspace, sft_dir, "tune.method=lora", "tune.r=4", "train.max_steps=3", "optim.lr=0.02"))
    words = ("train.max_steps=4", "checkpoint.every_steps=2", "zero.stage=1")
    train(dpo(workspace, data, Path(folder) / "whole", sft_dir, *words))
    part = Path(folder) / "part"
    if mesh.is_first:
        part.mkdir()
        shutil.copytree(Path(folder) / "whole" / "start_adapter", part / "start_adapter")
        shutil.copytree(
            Path(folder) / "whole" / "checkpoints" / "step-00000002", part / "checkpoints" / "step-00000002"
        )
        sft_dir.rename(Path(folder) / "gone")
    mesh.barrier()
    train(dpo(workspace, data, part, sft_dir, *words))


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def exported(mesh: Any, workspace: str, run_dir: str) -> Any:
    """Export a run and return what its folder says, and how far its logits in plain peft are from the checkpoint's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trainer.checkpoint.layout import FINGERPRINT, find_checkpoints
    from trainer.command.export import export
    from trainer.config.store import load_config
    from trainer.evaluate.proofs.fingerprint import read_fingerprint

    assert export(load_config(Path(run_dir) / "config.yaml")) == 0
    folder = Path(run_dir) / "export"
    base = AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, folder)
    saved = read_fingerprint(find_checkpoints(Path(run_dir))[0] / FINGERPRINT)
    with torch.no_grad():
        logits = model(input_ids=saved.tokens_T[None]).logits[0][-len(saved.logits_KV) :]
    described = json.loads((folder / "adapter_config.json").read_text())
    return described, float((logits - saved.logits_KV).abs().max())


def test_a_run_goes_on_with_a_run_of_ours_also_when_that_is_gone_and_writes_one_adapter(
    pool, workspace, data, tmp_path
):
    pool(1).run(whole_runs, workspace=workspace, data=data, folder=str(tmp_path))
    whole, part = losses(tmp_path / "whole"), losses(tmp_path / "part")
    assert sorted(whole) == [1, 2, 3, 4] and part == {step: whole[step] for step in (3, 4)}
    first = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 0 or first["pair_loss"] == pytest.approx(LN_2, abs=1e-6)
    described, apart = pool(1).run(exported, workspace=workspace, run_dir=str(tmp_path / "whole"))[0]
    assert described["base_model_name_or_path"] == f"{workspace}/model" and described["r"] == 4
    assert apart < 1e-4
    sets = json.loads((tmp_path / "whole" / "forgetting.json").read_text())
    assert sets["run"]["base"].endswith(f"/model with the adapter {tmp_path}/sft")


def compared(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, Any]:
    """Return what a run compares itself with, and its KL to that on replay before a step is taken."""
    from trainer.run.evaluator import build_evaluator
    from trainer.run.teaching import build_teacher
    from trainer.teacher.cached import CachedBase

    start = ["tune.method=lora", f"tune.start={data}/lora"]
    words = ["data.sources.text.role=replay", "replay.kl.beta=0.5", "zero.stage=1"]
    config = started(config_of(workspace, run_dir, *start, *words))
    with session_of(config) as session:
        teacher = build_teacher(session, session.mixing(), ExitStack())
        is_cached = isinstance(teacher, CachedBase)
        from trainer.checkpoint.state import TrainState

        base = build_evaluator(session, session.mixing(), session.heed).evaluate(TrainState())
        begun, frozen = session.begun_digest(), session.base_digest()
    words = [f"model.path={data}/lora merged", f"model.tokenizer={workspace}/model"]
    with session_of(config_of(workspace, f"{run_dir}/merged", *words)) as session:
        merged = held_out_losses(session.policy, session.held_out())
    return {"base": base, "merged": merged, "is_cached": is_cached, "differ": begun != frozen}


def test_the_base_of_such_a_run_is_the_model_with_the_adapter(pool, workspace, data, tmp_path):
    """Forgetting, KL and replay.kl look at one base: what training began with."""
    found = pool(1).run(compared, workspace=workspace, data=data, run_dir=str(tmp_path))[0]
    assert found["base"] == pytest.approx(found["merged"], rel=1e-5)
    assert found["is_cached"], "asked with its adapter off, it would be the base without the adapter"
    assert found["differ"], "what is known of the base would be taken for that of the model with the adapter"


def refused(mesh: Any, workspace: str, data: str, run_dir: str) -> dict[str, str]:
    """Return what is said of adapters that are not of the model, or not what their description says."""
    from safetensors.torch import load_file, save_file

    from trainer.errors import TrainerError

    def variant(name: str, change: Any, of: str = "lora", **described: Any) -> str:
        folder = Path(run_dir) / name
        shutil.copytree(Path(data) / of, folder)
        tensors = load_file(str(folder / "adapter_model.safetensors"))
        changed = change(tensors)
        save_file({k: v.contiguous() for k, v in changed.items()}, str(folder / "adapter_model.safetensors"))
        config = json.loads((folder / "adapter_config.json").read_text()) | described
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return str(folder)

    def same(tensors: Any) -> Any:
        return tensors

    def larger(tensors: Any) -> Any:
        return {n: torch.cat([t, t], 1) if "q_proj.lora_A" in n else t for n, t in tensors.items()}

    places = {
        "other name": variant("other-name", same, base_model_name_or_path="somewhere/llama"),
        "other layers": variant(
            "other-layers", lambda ts: {n.replace("layers.1.", "layers.7."): t for n, t in ts.items()}
        ),
        "other sizes": variant("other-sizes", larger),
        "dora as plain": variant("dora-as-plain", same, of="dora", use_dora=False),
        "plain as dora": variant("plain-as-dora", same, use_dora=True),
        "other rank": variant("other-rank", same, r=5),
        "not finite": variant("not-finite", lambda ts: {n: t * float("nan") for n, t in ts.items()}),
    }
    (Path(run_dir) / "torn").mkdir()
    shutil.copytree(f"{data}/lora", f"{run_dir}/torn", dirs_exist_ok=True)
    whole = Path(f"{data}/lora/adapter_model.safetensors").read_bytes()
    Path(f"{run_dir}/torn/adapter_model.safetensors").write_bytes(whole[:-100])
    found = {}
    for name, place in {**places, "torn": f"{run_dir}/torn"}.items():
        words = ["tune.method=lora", f"tune.start={place}"]
        try:
            with session_of(started(config_of(workspace, f"{run_dir}/run {name}", *words))):
                found[name] = "taken"
        except TrainerError as error:
            found[name] = str(error)
    return found


def test_an_adapter_of_another_model_is_refused_by_name(pool, workspace, data, tmp_path):
    logging.getLogger("trainer").setLevel(logging.WARNING)
    found = pool(1).run(refused, workspace=workspace, data=data, run_dir=str(tmp_path))[0]
    says = {
        "other name": "names somewhere/llama as its base",
        "other layers": "sits on model.layers.7.",
        "other sizes": "is for 64 inputs and 32 outputs of model.layers.0.self_attn.q_proj, which has 32 and 32",
        "dora as plain": "must be plain LoRA as its adapter_config.json says",
        "plain as dora": "must be DoRA as its adapter_config.json says",
        "other rank": "must be of rank 5 as its adapter_config.json says",
        "not finite": "must be of finite numbers",
        "torn": "cannot be read",
    }
    assert found.keys() == says.keys()
    for name, sentence in found.items():
        assert sentence.startswith("`tune.start` must be ") and says[name] in sentence, (name, sentence)
