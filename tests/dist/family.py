"""What one tiny family is asked, on ranks: does it train, export and take LoRA as plain transformers and peft have it.

Every function returns plain words and numbers. What the product refuses is its sentence; what breaks is the error.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.dist.session import loader_of, session_of, take_steps
from tests.helpers.families import FAMILIES
from tests.helpers.tiny_families import tiny_config
from trainer.errors import TrainerError

SEQ_LEN = 128
NUM_STEPS = 2
TOLERANCE = 1e-4
"""Relative, of every loss, gradient and logit; all is float32."""
EQUAL = "equal"


def make_documents(mesh: Any, folder: str) -> None:
    """Write documents, a tokenizer, config.yaml, and the stores of both kinds of packing, which all families share."""
    import numpy as np

    from tests.helpers.tiny import save_llama
    from tests.helpers.tiny import tiny_config as workspace_config
    from trainer.command.prepare import prepare_data
    from trainer.config.snapshot import write_atomic
    from trainer.config.store import to_yaml

    rng = np.random.default_rng(0)
    lines = []
    for _ in range(60):
        length = int(rng.integers(20, SEQ_LEN + 1))
        ids = np.where(rng.random(length) < 0.5, 20, rng.integers(20, 260, length)).tolist()
        mask = [0] * (length // 4) + [1] * (length - length // 4)
        lines.append(json.dumps({"input_ids": ids, "loss_mask": mask}))
    (Path(folder) / "chat.jsonl").write_text("\n".join(lines) + "\n")
    config = workspace_config(Path(folder))
    del config.data.sources["text"]
    write_atomic(Path(folder) / "config.yaml", to_yaml(config))
    save_llama(Path(folder) / "llama")
    for packing in ("none", "packed"):
        prepare_data(config_for(folder, "llama", "unused", f"data.packing={packing}"))


def config_for(folder: str, base: str, run_dir: str, *overrides: str) -> Any:
    """Return the configuration of a run on a base, both named below the folder."""
    shared = Path(folder, "config.yaml").resolve()
    config = copy.deepcopy(_loaded(shared, overrides))
    config.model.path, config.model.tokenizer = f"{folder}/{base}", str(shared.parent / "llama")
    config.run_dir = f"{folder}/{run_dir}"
    return config


@functools.cache
def _loaded(shared: Path, overrides: tuple[str, ...]) -> Any:
    from trainer.config.store import load_config

    own = [
        "data.sources.chat.packing=null",
        f"data.seq_len={SEQ_LEN}",
        "data.validation_frac=0",
        f"train.global_batch_tokens={4 * SEQ_LEN}",
        f"train.max_steps={NUM_STEPS}",
        "train.micro_batch_size=2",
        "model.checkpoint_layers=0",
        "optim.weight_decay=0",
        "optim.clip_norm=0",
        "optim.lr=1e-3",
        "schedule.name=constant",
        "schedule.warmup_steps=0",
        "evaluate.forgetting=false",
        "log.every_steps=1",
        "export.dtype=float32",
    ]
    return load_config(shared, [*own, *overrides])


def make_base(mesh: Any, folder: str, family: str) -> dict[str, Any]:
    """Save a model whose every tensor matters, and say what kind it is."""
    import torch
    from torch import nn

    config = tiny_config(FAMILIES[family])
    torch.manual_seed(0)
    model = _auto(config).from_config(config, dtype=torch.float32, attn_implementation="eager")
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) in embeddings:
                parameter.normal_(0, 0.3)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(Path(folder) / "base")
    return {"model_type": config.model_type, "kind": _kind(model)}


def _auto(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as SEE

    sees = hasattr(config, "vision_config") and config.model_type in SEE
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def _kind(model: Any) -> str:
    from tests.helpers.families import WINDOW
    from trainer.model.carry import carried_by
    from trainer.model.experts import expert_tensors
    from trainer.model.head.bend import find_bend
    from trainer.model.multimodal import text_part, whole_class

    sees = whole_class(model.config) is not None
    text = text_part(model) if sees else model
    # The experts of DBRX are rows of one matrix: what tells them is what chooses among them. Gemma 3n has routers too,
    # which mix copies of one state, and no word of experts.
    chooses = any("router" in name for name, _ in text.named_modules())
    chooses = chooses and "experts" in text.config.to_json_string(use_diff=False)
    found = ["mixture" if expert_tensors(text) or chooses else "dense"]
    found += ["windows"] * (WINDOW in text.config.to_dict().values())
    found += ["scaled logits"] * (not find_bend(text).is_none)
    found += ["carries state"] * bool(carried_by(text.config))
    return ", ".join(found + ["also sees"] * sees)


def plain_model(folder: Path) -> Any:
    """Load a folder by transformers alone, with its plainest attention."""
    import torch
    from transformers import AutoConfig

    auto = _auto(AutoConfig.from_pretrained(folder))
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def plain_logits(model: Any, ids_1T: Any) -> Any:
    """Return the logits of one document alone."""
    import inspect

    import torch

    # The language part of Llama 4 is a causal model of its own; the whole cannot read without an image.
    part = getattr(model, "language_model", None)
    speaks = part if hasattr(part, "lm_head") else model
    # Gemma asks for them in training where it also sees; GPT-2 would add an embedding.
    sees = hasattr(model.config, "vision_config")
    keys = [k for k in inspect.signature(speaks.forward).parameters if sees and k.endswith("token_type_ids")]
    return speaks(
        input_ids=ids_1T, use_cache=False, **{key: torch.zeros_like(ids_1T) for key in keys}
    ).logits[0]


def apart(one: Any, other: Any) -> float:
    """Return how far two numbers or tensors are apart, of the size of the second."""
    if isinstance(one, float):
        return abs(one - other) / abs(other)
    return float((one - other).norm() / other.norm())


def furthest(records: list[dict[str, float]], expected: list[dict[str, float]]) -> dict[str, float]:
    """Return how far losses and gradient norms of steps are apart at most."""
    return {
        name: max(apart(one[key], other[key]) for one, other in zip(records, expected, strict=True))
        for name, key in (("loss", "loss"), ("gradient", "grad_norm"))
    }


def verdict(*differences: float) -> str:
    """Return that all is equal, or by how much it differs."""
    worst = max(differences, key=lambda value: math.inf if math.isnan(value) else value)
    return EQUAL if worst <= TOLERANCE else f"differs by {worst:.0e}"


@contextlib.contextmanager
def told(found: dict[str, Any], key: str) -> Iterator[None]:
    """Note what the product refuses, and what breaks, under the key."""
    try:
        yield
    except TrainerError as error:
        found[key] = f"refused: {' '.join(str(error).split())}"
    except Exception as error:
        found[key] = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"


def documents_of(session: Any) -> list[list[Any]]:
    """Return (tokens, labels that are learnt) of every document of every step."""
    (store,) = session.stores.values()
    steps = []
    for step in range(NUM_STEPS):
        found = []
        for ref in session.mixing().plan.packs_of_step(step):
            pack, start = store.train.pack(ref.pack), 0
            for length in pack.lengths:
                part = slice(start, start + length)
                found.append((pack.tokens[part].tolist(), pack.supervised[part][1:].tolist()))
                start += length
        steps.append(found)
    return steps


def plain_steps(base: Path, steps: list[list[Any]]) -> tuple[list[dict[str, float]], Any]:
    """Train with transformers and torch alone, a document at a time; return the records and the first gradient of
    the embedding, below which everything is."""
    import torch

    model = plain_model(base)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    records, first = [], None
    for documents in steps:
        count, total = sum(sum(learnt) for _, learnt in documents), 0.0
        for tokens, learnt in documents:
            ids_1T = torch.tensor([tokens])
            losses = torch.nn.functional.cross_entropy(
                plain_logits(model, ids_1T)[:-1], ids_1T[0, 1:], reduction="none"
            )
            loss = losses[torch.tensor(learnt)].sum() / count
            loss.backward()
            total += loss.item()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        records.append({"loss": total, "grad_norm": norm})
        if first is None:
            first = model.get_input_embeddings().weight.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
    return records, first


def first_gradient(session: Any) -> Any:
    """Return the gradient of the embedding by the product's own loss, before the first step."""
    from trainer.engine.engine import undivided
    from trainer.engine.policy import Policy

    policy = Policy(undivided(session.policy.engine.module), session.mesh, False, session.policy.in_rows)
    batch = loader_of(session).read(0)
    for micro in batch.micro_batches:
        (policy.nll(micro).loss_sum / batch.num_targets_global).backward()
    return session.loaded.model.get_input_embeddings().weight.grad.clone()


def check_training(mesh: Any, folder: str) -> dict[str, Any]:
    """Compare packed and in rows with plain transformers, as far as the product does them; export what trained."""
    from trainer.run.packing import with_packing

    found: dict[str, Any] = {}
    with told(found, "trains"):
        config = with_packing(config_for(folder, "base", "session", "zero.stage=0"), says=False)
        with session_of(config) as session:
            steps, gradient = documents_of(session), first_gradient(session)
            carried = _carried(session)
        expected, plain_gradient = plain_steps(Path(folder) / "base", steps)
        records = train(config_for(folder, "base", "full"))
        found |= {"expected": expected, "carried": carried} | furthest(records, expected)
        found["gradient"] = max(found["gradient"], apart(gradient, plain_gradient))
        found["trains"] = verdict(found["loss"], found["gradient"])
    return found


def _carried(session: Any) -> str:
    from trainer.model.carry import carried_by, takes_no_pairs

    config = session.loaded.model.config
    return carried_by(config) or "ALiBi" * takes_no_pairs(config)


def train(config: Any) -> list[dict[str, float]]:
    """Train as the command does, from the frozen configuration; return loss and gradient norm of every step."""
    from trainer.config.snapshot import freeze
    from trainer.run import training

    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    freeze(config, run_dir)
    assert training.run_training(config).value == "finished"
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in ("loss", "grad_norm")} for line in lines if "grad_norm" in line]


def check_export(mesh: Any, folder: str) -> dict[str, Any]:
    """Export what trained and read it in transformers: the logits of the trained model, the names of the base."""
    found: dict[str, Any] = {}
    with told(found, "exports"):
        exported = export(config_for(folder, "base", "full"))
        found["exports"] = verdict(reloaded_apart(plain_model(exported), Path(folder) / "full"))
        one, other = (tensor_names(place) for place in (Path(folder) / "base", exported))
        if one != other:
            found["exports"] += f", but {len(one - other)} names lost, {len(other - one)} new"
    return found


def export(config: Any) -> Path:
    """Export a run as the command does; return the folder."""
    from trainer.command.export import export_model

    assert export_model(config) == 0
    return Path(config.run_dir) / "export"


def reloaded_apart(model: Any, run_dir: Path) -> float:
    """Return how far a model is from the logits that the run's last checkpoint recorded."""
    import torch

    from trainer.checkpoint.layout import FINGERPRINT, step_dir
    from trainer.evaluate.proofs.fingerprint import read_fingerprint

    saved = read_fingerprint(step_dir(run_dir, NUM_STEPS) / FINGERPRINT)
    with torch.no_grad():
        logits = plain_logits(model.eval(), saved.tokens_T[None])[-len(saved.logits_KV) :]
    return apart(logits, saved.logits_KV)


def tensor_names(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(str(file), framework="pt") as tensors:
            names |= set(tensors.keys())
    return names


def check_lora(mesh: Any, folder: str, target: str) -> dict[str, Any]:
    """Train LoRA, read it in plain peft, and say which matrices have none of it there."""
    from peft import PeftModel

    from trainer.model.tune.adapted import adapted

    found: dict[str, Any] = {}
    with told(found, "lora"):
        words = ["zero.stage=1", "tune.method=lora", "tune.r=4", f"tune.target=[{target}]", "optim.lr=1e-2"]
        config = config_for(folder, "base", f"lora-{target}", *words)
        train(config)
        adapter, run_dir = export(config), Path(config.run_dir)
        base = plain_model(Path(folder) / "base")
        matrices = language_matrices(base)
        before = reloaded_apart(base, run_dir)
        tuned = PeftModel.from_pretrained(base, str(adapter))
        found["lora"] = verdict(reloaded_apart(tuned.base_model.model, run_dir))
        if before < 10 * TOLERANCE:
            found["lora"] = "has no effect"
        layers, tensors = adapted(base)
        covered = {f"{name}.weight" for name in layers} | {
            name.replace(".base_layer", "") for name in tensors
        }
        found["left_out"] = sorted({kind_of(name) for name in matrices - covered})
    return found


def language_matrices(model: Any) -> set[str]:
    """Return the names of what LoRA could be on: matrices of what reads text, but embeddings and head."""
    from torch import nn

    from trainer.model.multimodal import text_part, whole_class

    text = text_part(model) if whole_class(model.config) is not None else model
    skipped = {id(p) for m in text.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    skipped |= {id(p) for p in text.get_output_embeddings().parameters()}
    own = {id(p) for p in text.parameters()} - skipped
    return {name for name, p in model.named_parameters() if p.ndim > 1 and id(p) in own}


def kind_of(name: str) -> str:
    """Return the last two words of a parameter's name that are no numbers, without `weight`."""
    parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdigit()]
    return ".".join(parts[-2:])


def check_sharded(mesh: Any, folder: str, expected: list[dict[str, float]]) -> dict[str, Any]:
    """Compare ranks under ZeRO-3 with plain transformers."""
    from trainer.run.packing import with_packing

    found: dict[str, Any] = {}
    with told(found, "sharded"):
        config = with_packing(config_for(folder, "base", "sharded", "zero.stage=3"), says=False)
        with session_of(config) as session:
            records = take_steps(session, NUM_STEPS)
        found["sharded"] = verdict(*furthest(records, expected).values())
    return found
