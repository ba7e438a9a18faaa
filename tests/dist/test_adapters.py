"""Adapters at every ZeRO stage: the steps of plain peft, a base that never moves, resume, export, merge."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_zero import FP32, NUM_STEPS, assert_close, documents_of, plain_steps
from trainer.checkpoint.layout import step_dir
from trainer.checkpoint.shard_file import split_key

METHODS = {
    "lora": ["tune.method=lora", "tune.r=4"],
    "rslora, two modules": [
        "tune.method=lora",
        "tune.r=4",
        "tune.rslora=true",
        "tune.target=[q_proj,down_proj]",
    ],
    "lora_plus": ["tune.method=lora", "tune.r=4", "tune.lora_plus_ratio=4"],
    "dora": ["tune.method=lora", "tune.r=4", "tune.dora=true"],
    "ia3": ["tune.method=ia3", "tune.target=[k_proj,v_proj,down_proj]"],
    "freeze": ["tune.method=freeze", "tune.last_layers=1", "tune.train=[model.norm]"],
    "prefix": ["tune.method=prefix", "tune.virtual_tokens=5"],
    "prompt": ["tune.method=prompt", "tune.virtual_tokens=5"],
    "pissa": ["tune.method=lora", "tune.r=4", "tune.init=pissa"],
    "lora, head": ["tune.method=lora", "tune.r=4", "tune.modules_to_save=[lm_head,model.norm]"],
}


def stages_of(method: str) -> list[int]:
    return [0, 1, 2] if method == "pissa" else [0, 1, 2, 3]


def plain_peft(workspace: str, method: str, documents: dict[str, Any]) -> list[dict[str, float]]:
    """Train with plain peft and torch: nothing of ours but the batches."""
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32)
    if method == "freeze":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("model.layers.1.") or name == "model.norm.weight")
    else:
        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        torch.manual_seed(0)
        scales = ["k_proj", "v_proj", "down_proj"]
        others: dict[str, Any] = {
            "ia3": IA3Config(target_modules=scales, feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
            "prefix": PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
            "prompt": PromptTuningConfig(
                num_virtual_tokens=5, prompt_tuning_init="SAMPLE_VOCAB", task_type="CAUSAL_LM"
            ),
        }
        lora = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=["q_proj", "down_proj"] if "two" in method else linear,
            use_rslora="rslora" in method,
            use_dora=method == "dora",
            init_lora_weights="pissa" if method == "pissa" else True,
            modules_to_save=["lm_head", "model.norm"] if "head" in method else None,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, others.get(method, lora))
    trains = {n: p for n, p in model.named_parameters() if p.requires_grad}
    faster = [p for n, p in trains.items() if ".lora_B." in n and method == "lora_plus"]
    rest = [p for p in trains.values() if not any(p is f for f in faster)]
    decayed = [p for p in rest if p.ndim >= 2 and method not in ("prefix", "prompt")]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for p in rest if not any(p is d for d in decayed)], "weight_decay": 0.0},
        {"params": faster, "weight_decay": 0.1, "lr_factor": 4.0},
    ]
    return plain_steps(model, [group for group in groups if group["params"]], documents, NUM_STEPS)


def reference(mesh: Any, workspace: str, run_dir: str, method: str) -> Any:
    with session_of(config_of(workspace, run_dir)) as session:
        documents = documents_of(session, NUM_STEPS)
    return plain_peft(workspace, method, documents)


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the function that gives the steps of plain peft by method."""

    @functools.cache
    def of(method: str) -> list[dict[str, float]]:
        run_dir = str(tmp_path_factory.mktemp("reference"))
        found: list[dict[str, float]] = pool(1).run(
            reference, workspace=workspace, run_dir=run_dir, method=method
        )[0]
        return found

    return of


def trained(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]]) -> Any:
    results = []
    for index, overrides in enumerate(variants):
        with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
            results.append(
                [take_steps(session, NUM_STEPS), session.tuned.num_trainable, session.tuned.num_total]
            )
    return results


# One rank is where ranks cannot differ: two show the one that most people take, and the rest waits for `-m slow`.
EVERY = [("lora", 2)]
LATER = [
    (method, num_ranks) for method in METHODS for num_ranks in (1, 2) if (method, num_ranks) not in EVERY
]


@pytest.mark.parametrize(
    ("method", "num_ranks"), [*EVERY, *(pytest.param(*case, marks=pytest.mark.slow) for case in LATER)]
)
def test_every_method_takes_the_steps_of_plain_peft(pool, workspace, expected, method, num_ranks, tmp_path):
    """One stage off: its frozen parameters move, or adapters are not the same on all ranks. All off: another
    initialisation, scale, target or learning rate than peft's.
    """
    variants = [[*METHODS[method], f"zero.stage={stage}"] for stage in stages_of(method)]
    results = pool(num_ranks).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=variants)
    steps = expected(method)
    assert min(record["loss"] for record in steps) < steps[0]["loss"]
    for stage, (records, num_trainable, num_total) in zip(stages_of(method), results[0], strict=True):
        print(f"stage {stage}, {num_ranks} rank(s)")
        assert 0 < num_trainable < num_total
        assert_close(records, steps, FP32, FP32 * 10)
    assert all(result == results[0] for result in results), "ranks report different numbers"


@pytest.mark.slow
def test_dora_with_dropout_takes_the_same_steps_sharded_and_whole(pool, workspace, tmp_path):
    """Apart: with dropout DoRA multiplies by the base weight itself, which ZeRO-3 must gather for it, backward too."""
    words = [*METHODS["dora"], "tune.dropout=0.2"]
    variants = [[*words, f"zero.stage={stage}"] for stage in (2, 3)]
    whole, sharded = pool(2).run(trained, workspace=workspace, run_dir=str(tmp_path), variants=variants)[0]
    assert_close(sharded[0], whole[0], FP32, FP32 * 10)


TRAINED = {
    "ia3": ".ia3_",
    "freeze": "layers.1. model.norm",
    "prefix": "virtual.encoder.",
    "prompt": "virtual.encoder.",
    "lora, head": ".lora_ lm_head embed_tokens model.norm",
}
"""What the names of all that a checkpoint holds contain one of."""


def train_and_resume(mesh: Any, workspace: str, folder: str, overrides: list[str]) -> None:
    """Train to step 6, and from the checkpoint of step 3; the disk has room for adapters, not for whole models."""
    from safetensors.torch import load_file

    num_total = sum(
        tensor.numel() for tensor in load_file(Path(workspace, "model", "model.safetensors")).values()
    )
    # Four checkpoints at once: keep_last, the best, and the one that is being written.
    room = 4 * 14 * num_total * 3 // 4
    with pytest.MonkeyPatch.context() as patch:
        usage = SimpleNamespace(total=room, used=0, free=room)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        train_twice(mesh, workspace, folder, overrides)


def train_twice(mesh: Any, workspace: str, folder: str, overrides: list[str]) -> None:
    from trainer.config.snapshot import freeze
    from trainer.run import training

    steps = ["train.max_steps=6", "checkpoint.every_steps=3", "zero.dtype=bf16", "optim.lr=0.01"]
    for name in ("whole", "resumed"):
        run_dir = Path(folder) / name
        if name == "resumed" and mesh.is_first:
            shutil.copytree(step_dir(Path(folder) / "whole", 3), step_dir(run_dir, 3))
        mesh.barrier()
        config = config_of(workspace, run_dir, *overrides, *steps)
        if mesh.is_first:
            freeze(config, run_dir)
        assert training.run_training(config).value == "finished"


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def exported(mesh: Any, run_dir: str, merge: bool) -> list[Any]:
    """Export and return the code, what plain peft or transformers says, and what the checkpoint holds."""
    from trainer.command.export import export_model
    from trainer.config.store import load_config
    from trainer.engine.consolidate import stream_parameters
    from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint

    path = Path(run_dir)
    folder = path / f"export-{merge}"
    overrides = [
        f"run_dir={run_dir}",
        f"export.output_dir={folder}",
        "export.dtype=float32",
        f"export.merge={merge}",
    ]
    code = export_model(load_config(path / "config.yaml", overrides))
    names = [name for name, _ in stream_parameters(step_dir(path, 6))]
    held = sorted(
        {
            split_key(key)[1]
            for file in (step_dir(path, 6) / "shards").iterdir()
            for key in safetensors.torch.load_file(file)
        }
    )
    saved = read_fingerprint(step_dir(path, 6) / "fingerprint.safetensors")
    logits = plain_logits(folder, saved.tokens_T)[-len(saved.logits_KV) :]
    return [
        code,
        difference(logits, saved.logits_KV),
        names,
        sorted(entry.name for entry in folder.iterdir()),
        held,
    ]


def plain_logits(folder: Path, tokens_T: torch.Tensor) -> torch.Tensor:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    kind: Any = (
        AutoPeftModelForCausalLM if (folder / "adapter_config.json").exists() else AutoModelForCausalLM
    )
    with torch.no_grad():
        return torch.as_tensor(kind.from_pretrained(folder, dtype=torch.float32)(tokens_T[None]).logits[0])


@pytest.mark.parametrize(
    ("method", "stage", "model"),
    [
        pytest.param("lora", 0, "tied", marks=pytest.mark.slow),
        pytest.param("lora", 1, "tied", marks=pytest.mark.slow),
        ("lora", 3, "model"),
        pytest.param("dora", 2, "model", marks=pytest.mark.slow),
        pytest.param("dora", 3, "model", marks=pytest.mark.slow),
        pytest.param("pissa", 1, "model", marks=pytest.mark.slow),
        pytest.param("lora, head", 3, "tied", marks=pytest.mark.slow),
        pytest.param("lora, head", 1, "model", marks=pytest.mark.slow),
        pytest.param("prefix", 3, "model", marks=pytest.mark.slow),
        pytest.param("prompt", 2, "tied", marks=pytest.mark.slow),
        pytest.param("rslora, two modules", 0, "model", marks=pytest.mark.slow),
        pytest.param("ia3", 3, "model", marks=pytest.mark.slow),
        pytest.param("freeze", 3, "model", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_resumes_bitwise_and_reloads_in_plain_peft(
    pool, workspace, tmp_path, method, stage, model
):
    """A resumed run that differs: the adapter or its optimizer was not restored. An export that is far off: the scale,
    the magnitudes or some modules are lost.
    """
    overrides = [*METHODS[method], f"zero.stage={stage}", f"model.path={workspace}/{model}"]
    overrides += ["train.micro_batch_size=4"] if stage == 0 else []
    num_ranks = 1 if stage == 0 else 2
    pool(num_ranks).run(train_and_resume, workspace=workspace, folder=str(tmp_path), overrides=overrides)
    whole, resumed = losses(tmp_path / "whole"), losses(tmp_path / "resumed")
    assert sorted(resumed) == [4, 5, 6] and {step: whole[step] for step in resumed} == resumed
    cannot_merge = method in ("prefix", "prompt", "freeze")
    for merge in (False,) if cannot_merge else (False, True):
        code, moved, names, files, held = pool(1).run(
            exported, run_dir=str(tmp_path / "resumed"), merge=merge
        )[0]
        assert code == 0
        assert moved < 0.02, (merge, moved)  # bf16 arithmetic of training against float32
        has_adapter = method != "freeze"
        own = TRAINED.get(method, ".lora_")
        assert names and all(any(part in name for part in own.split()) for name in [*names, *held]), held
        assert ("adapter_config.json" in files) == (has_adapter and not merge)


def tampered(mesh: Any, workspace: str, run_dir: str) -> list[str]:
    """Return what the proofs say of an adapter that is not silent, and of a frozen parameter with one flipped bit."""
    from trainer.errors import SelfCheckError
    from trainer.evaluate.proofs.frozen import FrozenCheck, check_silent

    said = []
    tokens = torch.arange(40).numpy()
    with session_of(config_of(workspace, run_dir, *METHODS["lora"], "zero.stage=1")) as session:
        named = dict(session.policy.engine.module.named_parameters())
        assert check_silent(session.policy, tokens) == 0
        frozen = FrozenCheck(session.policy)
        frozen.check()
        base = next(p for n, p in named.items() if "base_layer" in n)
        if mesh.rank == mesh.num_ranks - 1:
            base.data.view(torch.int32).reshape(-1)[7] ^= 1
        factor = next(p for n, p in named.items() if ".lora_B." in n)
        factor.data += 0.01
        for check in (
            lambda: frozen.check(),
            lambda: check_silent(session.policy, tokens),
        ):
            with pytest.raises(SelfCheckError) as caught:
                check()
            said.append(str(caught.value))
    return said


def test_a_flipped_bit_and_a_loud_adapter_are_found(pool, workspace, tmp_path):
    for frozen, loud in pool(2).run(tampered, workspace=workspace, run_dir=str(tmp_path)):
        assert "changed on 1 of 2 ranks" in frozen
        assert "but moves them by" in loud


REFUSED = {
    "tune.target=[q_porj]": "`tune.target` must name linear layers of the model (down_proj, gate_proj, k_proj,",
    "tune.target_pattern='.*nothing'": "`tune.target_pattern` must name linear layers of the model",
    "tune.target=[lm_head]": "`tune.target` must leave out the output layer",
    "tune.r=999": "`tune.r` must be at most the smaller side of every adapted layer",
    "tune.method=freeze tune.train=[nope]": "`tune.train` must find parameters of the model, but 'nope' finds none",
    "tune.modules_to_save=[nope]": "`tune.modules_to_save` must name modules of the model",
    "tune.modules_to_save=[q_proj]": "`tune.modules_to_save` must leave out what tune.target adapts",
    "tune.method=prefix tune.virtual_tokens=500": "`tune.virtual_tokens` must leave room for packs of 64",
    "tune.method=freeze tune.last_layers=9": "`tune.last_layers` must be at most the model's 2 layers",
}


def refused(mesh: Any, workspace: str, run_dir: str) -> list[str]:
    from trainer.errors import ConfigError

    said = []
    for words in REFUSED:
        with (
            pytest.raises(ConfigError) as caught,
            session_of(config_of(workspace, run_dir, "tune.method=lora", *words.split())),
        ):
            pass
        said.append(str(caught.value))
    return said


def test_what_cannot_be_tuned_is_refused_with_the_key_and_the_fix(pool, workspace, tmp_path):
    for said, meant in zip(
        pool(1).run(refused, workspace=workspace, run_dir=str(tmp_path))[0], REFUSED.values(), strict=True
    ):
        assert said.startswith(meant), said
        assert "et tune." in said or "Names look like" in said or "Set data." in said or "Name the" in said


def resume_on_another_base(mesh: Any, workspace: str, folder: str) -> str:
    """Train an adapter, change one weight of its base, and return what the resumed run says."""
    from safetensors.torch import load_file, save_file

    from trainer.errors import DataError
    from trainer.run import training

    base = Path(folder) / "base"
    if mesh.is_first:
        shutil.copytree(Path(workspace) / "model", base)
    mesh.barrier()
    # Without forgetting: its own check of the base would speak first.
    overrides = [*METHODS["lora"], f"model.path={base}", "train.max_steps=2", "evaluate.forgetting=false"]
    config = config_of(workspace, Path(folder) / "run", *overrides)
    assert training.run_training(config).value == "finished"
    if mesh.is_first:
        tensors = load_file(base / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] += 1
        save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    mesh.barrier()
    with pytest.raises(DataError) as caught:
        training.run_training(config)
    return str(caught.value)


def test_an_adapter_is_not_resumed_on_other_base_weights(pool, workspace, tmp_path):
    (said,) = pool(1).run(resume_on_another_base, workspace=workspace, folder=str(tmp_path))
    assert "the weights of the base (`model.path`) have changed" in said
    assert said.endswith("Bring back what the run read, or give another run_dir for a run of its own.")
