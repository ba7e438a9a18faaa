"""The routers' own loss is part of training steps where config.json asks for it, as plain transformers has it."""

from __future__ import annotations

from typing import Any

import torch

from tests.dist.session import config_of, loader_of, session_of
from tests.dist.test_mixtures import trained
from tests.dist.test_zero import FP32, assert_close
from trainer.dist.mesh import Axis

NUM_STEPS = 2
WEIGHT, NUM_EXPERTS, NUM_CHOSEN = 5.0, 4, 2
SHAPE = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": NUM_EXPERTS,
    "num_experts_per_tok": NUM_CHOSEN,
    "sliding_window": None,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "initializer_range": 0.3,
    "output_router_logits": True,
    "router_aux_loss_coef": WEIGHT,
}


def save_mixture(mesh: Any, folder: str) -> None:
    """Save a small Mixtral whose configuration asks for the routers' loss."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from trainer.model.tiny import build_tokenizer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SHAPE)).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def plain(mesh: Any, workspace: str, run_dir: str, base: str) -> Any:
    """Train with plain transformers, every document alone: with the loss of the routers, and without."""
    with session_of(config_of(workspace, run_dir, base)) as session:
        micros, source = micros_of(session), session.loaded.source
    return [plain_steps(source, micros, weight) for weight in (WEIGHT, 0.0)]


def micros_of(session: Any) -> list[list[list[Any]]]:
    """Return (tokens, labels) of every document, by step and micro-batch of the whole group."""
    loader = loader_of(session, Axis(0, 1))
    found = []
    for step in range(NUM_STEPS):
        micros = loader.read(step).micro_batches
        found.append([documents_of(micro) for micro in micros])
    loader.close()
    return found


def documents_of(micro: Any) -> list[Any]:
    """Return every document of a micro-batch, those that nothing is learnt of too: routers see them."""
    places = zip(micro.tokens_BT, micro.labels_BT, micro.segments_BT, strict=True)
    documents = []
    for tokens, labels, segments in places:
        for segment in sorted(set(segments.tolist())):
            if micro.units_S[segment] >= 0:
                inside = segments == segment
                documents.append((tokens[inside].tolist(), labels[inside].tolist()))
    return documents


def plain_steps(source: str, micros: list[list[list[Any]]], weight: float) -> list[dict[str, float]]:
    """Take AdamW steps on the cross-entropy of a step and the mean of its micro-batches' losses of routers."""
    from transformers import AutoModelForCausalLM
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    named = dict(model.named_parameters())
    decays = {name: p.ndim > 1 and "embed_tokens" not in name for name, p in named.items()}
    groups = [
        {"params": [p for name, p in named.items() if decays[name] is has], "weight_decay": decay}
        for has, decay in ((True, 0.1), (False, 0.0))
    ]
    optimizer, records = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8), []
    for step in range(NUM_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (step + 1) / 2  # the warm-up
        total = sum(label != -100 for micro in micros[step] for _, labels in micro for label in labels)
        cross_entropy = torch.zeros(())
        for micro in micros[step]:
            nll, routers = torch.zeros(()), []
            for tokens, labels in micro:
                found = model(input_ids=torch.tensor([tokens]), output_router_logits=True, use_cache=False)
                losses = torch.nn.functional.cross_entropy(
                    found.logits[0], torch.tensor(labels), reduction="none"
                )
                nll, routers = nll + losses.sum(), [*routers, found.router_logits]
            layers = tuple(torch.cat(layer) for layer in zip(*routers, strict=True))
            balance = load_balancing_loss_func(layers, NUM_EXPERTS, NUM_CHOSEN)
            (nll / total + weight * balance / len(micros[step])).backward()
            cross_entropy = cross_entropy + nll.detach()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        records.append({"loss": float(cross_entropy / total), "grad_norm": float(norm)})
    return records


def test_steps_are_those_of_plain_transformers_with_the_loss_of_the_routers(pool, workspace, tmp_path):
    """Norms off: it is not in the step, or has another weight. At two ranks only: it is divided as the others are."""
    folder = str(tmp_path / "mixture")
    pool(1).run(save_mixture, folder=folder)
    base = f"model.path={folder}"
    arguments = {"workspace": workspace, "run_dir": str(tmp_path / "plain"), "base": base}
    weighted, unweighted = pool(1).run(plain, **arguments)[0]
    variants = [[base, "zero.stage=1"], [base, "zero.stage=3"]]
    found = pool(2).run(trained, workspace=workspace, run_dir=str(tmp_path / "ours"), variants=variants)
    for records in found[0]:
        assert_close(records[: len(weighted)], weighted, FP32 * 10, FP32 * 10)
    assert abs(weighted[0]["grad_norm"] / unweighted[0]["grad_norm"] - 1) > 0.01, "it moves what is learnt"
