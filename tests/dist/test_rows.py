"""Documents as rows of their own: models that carry something along a row train as plain transformers has it.

On one rank and on two with ZeRO-3, several packs at once, and a resumed run is the run that never stopped.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import held_out_losses, session_of, take_steps
from tests.dist.test_resume import assert_bitwise
from trainer.errors import SelfCheckError

SHAPE = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.1,
}
MODELS = {
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16, "expand": 2},
    "llama": {},
}
NUM_STEPS = 3


def config_for(folder: str, model: str, run_dir: str | Path, *overrides: str) -> Any:
    from trainer.config.store import load_config

    own = [f"model.path={folder}/{model}", "data.sources.chat.packing=null", f"run_dir={run_dir}"]
    return load_config(Path(folder) / "config.yaml", [*own, *overrides])


def make(mesh: Any, folder: str) -> None:
    """Write the models, ragged documents of two sources, and the stores."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.helpers.tiny import tiny_config, write_documents
    from trainer.command.prepare import prepare_data
    from trainer.config.snapshot import write_atomic
    from trainer.config.store import to_yaml
    from trainer.model.tiny import build_tokenizer

    for name, options in MODELS.items():
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **SHAPE, **options)
        AutoModelForCausalLM.from_config(config, attn_implementation="eager").save_pretrained(
            Path(folder) / name
        )
        build_tokenizer().save_pretrained(Path(folder) / name)
    write_documents(Path(folder) / "chat.jsonl", 60, seed=1, ragged=True)
    write_documents(Path(folder) / "text.jsonl", 30, seed=2, ragged=False)
    write_atomic(Path(folder) / "config.yaml", to_yaml(tiny_config(Path(folder))))
    for packing in ("none", "packed"):
        prepare_data(config_for(folder, "lfm2", f"{folder}/unused", f"data.packing={packing}"))


@pytest.fixture(scope="module")
def made(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("rows"))
    pool(1).run(make, folder=folder)
    return folder


def steps(mesh: Any, folder: str, model: str, run_dir: str, overrides: list[str]) -> dict[str, Any]:
    """Return the steps, the held-out losses before them, and the padding of what is trained on."""
    with session_of(config_for(folder, model, run_dir, *overrides)) as session:
        held_out = held_out_losses(session.policy, session.held_out())
        records = take_steps(session, NUM_STEPS)
        stores = [store.train for store in session.stores.values()]
        tokens, computed = (sum(int(a.sum()) for a in found) for found in zip(
            *((store.pack_tokens, store.pack_positions) for store in stores), strict=True
        ))  # fmt: skip
        return {
            "held_out": held_out,
            "records": records,
            "in_rows": session.policy.in_rows,
            "padding": 1 - tokens / computed,
        }


def plain(mesh: Any, folder: str, model: str, run_dir: str) -> dict[str, Any]:
    """Return loss and gradient norm of the first step and held-out losses by transformers, a document at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(Path(folder) / model, dtype=torch.float32)

    def loss_of(pack: Any) -> Any:
        start, total, count = 0, torch.zeros(()), 0
        for length in pack.lengths:
            ids = torch.from_numpy(pack.tokens[start : start + length])
            learnt = torch.from_numpy(pack.supervised[start + 1 : start + length])
            logits = lm(input_ids=ids[None], use_cache=False).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
            total, count, start = total + losses[learnt].sum(), count + int(learnt.sum()), start + length
        return total, count

    with session_of(config_for(folder, model, run_dir)) as session:
        refs = session.mixing().plan.packs_of_step(0)
        stores = list(session.stores.values())
        found = [loss_of(stores[ref.source].train.pack(ref.pack)) for ref in refs]
        held_out = {}
        for name, store in session.stores.items():
            with torch.no_grad():
                each = [loss_of(store.validation.pack(i)) for i in range(store.validation.num_packs)]
            held_out[name] = float(sum(loss for loss, _ in each)) / sum(count for _, count in each)
    loss = sum(loss for loss, _ in found) / sum(count for _, count in found)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in lm.parameters() if p.grad is not None))
    return {"loss": loss.item(), "grad_norm": norm, "held_out": held_out}


@pytest.mark.parametrize("model", ["lfm2", pytest.param("mamba2", marks=pytest.mark.slow)])
def test_one_rank_and_two_with_zero3_train_as_plain_transformers_does(pool, made, tmp_path, model):
    expected = pool(1).run(plain, folder=made, model=model, run_dir=str(tmp_path / "plain"))[0]
    one = pool(1).run(steps, folder=made, model=model, run_dir=str(tmp_path / "one"), overrides=[])[0]
    assert one["in_rows"] and one["padding"] < 0.1
    for key in ("loss", "grad_norm"):
        assert one["records"][0][key] == pytest.approx(expected[key], rel=1e-4)
    assert one["held_out"] == pytest.approx(expected["held_out"], rel=1e-5)
    overrides = ["zero.stage=3", "train.micro_batch_size=2", "evaluate.micro_batch_size=3"]
    for two in pool(2).run(
        steps, folder=made, model=model, run_dir=str(tmp_path / "two"), overrides=overrides
    ):
        assert two["held_out"] == pytest.approx(one["held_out"], rel=1e-5)
        for found, known in zip(two["records"], one["records"], strict=True):
            assert found == pytest.approx(known, rel=1e-4)


def test_a_model_that_can_do_both_has_the_same_held_out_losses_in_rows_and_packed(pool, made, tmp_path):
    found = {}
    for packing in ("none", "packed"):
        words = [f"data.packing={packing}"]
        run_dir = str(tmp_path / packing)
        if packing == "packed":
            words += ["data.sources.chat.packing=best_fit", "data.sources.text.packing=best_fit"]
            pool(1).run(prepare, folder=made, overrides=words)
        found[packing] = pool(1).run(steps, folder=made, model="llama", run_dir=run_dir, overrides=words)[0]
    assert found["none"]["in_rows"] and not found["packed"]["in_rows"]
    assert found["none"]["held_out"] == pytest.approx(found["packed"]["held_out"], rel=1e-5)


def prepare(mesh: Any, folder: str, overrides: list[str]) -> None:
    from trainer.command.prepare import prepare_data

    prepare_data(config_for(folder, "llama", f"{folder}/unused", *overrides))


def train_twice(mesh: Any, folder: str, run_dirs: list[str]) -> None:
    """Train six steps; then again from a copy of the checkpoint after three."""
    import shutil

    from trainer.checkpoint.layout import step_dir
    from trainer.run.training import run_training

    whole, resumed = map(Path, run_dirs)
    words = ["zero.stage=3", "train.max_steps=6", "checkpoint.every_steps=3", "train.micro_batch_size=2"]
    assert run_training(config_for(folder, "lfm2", whole, *words)).value == "finished"
    if mesh.is_first:
        shutil.copytree(step_dir(whole, 3), step_dir(resumed, 3))
    mesh.barrier()
    assert run_training(config_for(folder, "lfm2", resumed, *words)).value == "finished"


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_never_stopped(pool, made, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    pool(2).run(train_twice, folder=made, run_dirs=[str(whole), str(resumed)])
    assert_bitwise(whole, resumed, seen=None)


def refused(mesh: Any, folder: str, model: str, run_dir: str) -> str:
    from trainer.run.proofs import prove_isolation

    with (
        pytest.raises(SelfCheckError) as caught,
        session_of(config_for(folder, model, run_dir, "data.packing=packed")) as session,
    ):
        prove_isolation(session)
    return str(caught.value)


@pytest.mark.parametrize("model", ["lfm2", "mamba2"])
def test_packed_they_are_refused_with_the_way_that_works(pool, made, tmp_path, model):
    (told,) = pool(1).run(refused, folder=made, model=model, run_dir=str(tmp_path))
    assert "Set data.packing=none" in told
