"""What a policy offers beside the fused loss, log-probabilities and scores, takes the steps of plain torch.

The loss is of whole documents, so what a token weighs is known only after the forward pass, as for preferences.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.dist.session import config_of, loader_of, session_of
from tests.dist.test_zero import documents_of
from trainer.data.pack.collate import IGNORE
from trainer.metrics.mean import Mean
from trainer.objective.contract import Part

NUM_STEPS = 4
FP32 = 2e-6
"""Relative; as for the steps of the fused loss, with a logsigmoid on top."""
LORA = ("tune.method=lora", "tune.r=4", "tune.alpha=8", "tune.target=[q_proj,down_proj]")


def documents_in(micro: Any) -> tuple[Any, Any]:
    """Return the document of each supervised token, numbered from 0, and the last supervised row of each."""
    rows = np.flatnonzero(micro.labels_BT.reshape(-1) != IGNORE)
    segments = micro.segments_BT.reshape(-1)[rows]
    _, number = np.unique(segments, return_inverse=True)
    last = [int(rows[number == document].max()) for document in range(number.max() + 1)] if len(rows) else []
    return torch.from_numpy(number), torch.tensor(last, dtype=torch.long)


def loss_of(sums_D: Any, scores_D: Any) -> Any:
    """Return the loss of documents from the sum of their log-probabilities and the score of their end."""
    logsigmoid = torch.nn.functional.logsigmoid
    return -(logsigmoid(0.01 * sums_D + 1) + logsigmoid(scores_D)).sum()


class OfDocuments:
    """A loss of documents over their number in the step."""

    sum_names = ("loss",)
    means = (Mean("loss", ("loss",), ("documents",)),)

    def __init__(self, num_documents: int) -> None:
        self._num_documents = num_documents

    def counts(self, batch: Any) -> dict[str, float]:
        return {"documents": self._num_documents}

    def begin(self, policy: Any, batch: Any) -> None:
        pass

    def terms(self, policy: Any, micro: Any, sums: Any) -> list[Part]:
        number_S, last_D = documents_in(micro)
        log_probs_S = policy.log_probs(micro)
        sums_D = torch.zeros(len(last_D), dtype=log_probs_S.dtype).index_add(0, number_S, log_probs_S)
        loss = loss_of(sums_D, policy.scores(micro, last_D))
        sums.add("loss", loss.detach().double())
        return [Part(loss, "documents")]


def score_layer() -> Any:
    layer = torch.nn.Linear(32, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.5, 0.5, 32)[None])
    return layer


def by_torch(workspace: str, steps: list[Any], is_lora: bool) -> list[dict[str, float]]:
    """Train with nothing of ours but the batches, every document alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path(workspace) / "model", dtype=torch.float32)
    if is_lora:
        torch.manual_seed(0)
        model = get_peft_model(
            model,
            LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
    score = score_layer()
    trains = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in trains if "norm" in name or "embed_tokens" in name]
    matrices = [p for name, p in trains if not ("norm" in name or "embed_tokens" in name)]
    groups = [
        {"params": [*matrices, score.weight], "weight_decay": 0.1},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    records = []
    for documents in steps:
        total = torch.zeros((), dtype=torch.float64)
        for tokens, labels in documents:
            out = model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
            wanted = torch.tensor(labels)
            rows = (wanted != IGNORE).nonzero()[:, 0]
            log_probs = torch.log_softmax(out.logits[0], -1)[rows, wanted[rows]]
            loss = loss_of(log_probs.sum()[None], score(out.hidden_states[-1][0, rows[-1:]])[:, 0])
            (loss / len(documents)).backward()
            total += loss.detach().double()
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(everything, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        records.append({"loss": float(total / len(documents)), "grad_norm": float(norm)})
    return records


def reference(mesh: Any, workspace: str, run_dir: str) -> Any:
    with session_of(config_of(workspace, run_dir)) as session:
        steps = list(documents_of(session, NUM_STEPS).values())
    return [len(step) for step in steps], [by_torch(workspace, steps, is_lora) for is_lora in (False, True)]


def trained(mesh: Any, workspace: str, run_dir: str, variants: list[list[str]], counts: list[int]) -> Any:
    from trainer.run import building
    from trainer.run.step import train_step

    results = []
    wrapped = building.CausalLM
    for index, overrides in enumerate(variants):
        building.CausalLM = functools.partial(wrapped, scores=score_layer())  # type: ignore[assignment,misc]
        try:
            with session_of(config_of(workspace, f"{run_dir}/{index}", *overrides)) as session:
                loader = loader_of(session)
                records = []
                for step, count in enumerate(counts):
                    session.policy.engine.set_lr(1e-3)
                    result = train_step(
                        session.policy, OfDocuments(count), loader.read(step), stop=lambda: False
                    )
                    records.append({"loss": result.loss, "grad_norm": result.grad_norm})
                loader.close()
                results.append(records)
        finally:
            building.CausalLM = wrapped  # type: ignore[misc]
    return results


@pytest.fixture(scope="module")
def expected(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run_dir = str(tmp_path_factory.mktemp("reference"))
    return pool(1).run(reference, workspace=workspace, run_dir=run_dir)[0]


@pytest.mark.parametrize(
    ("num_ranks", "stages"),
    [
        (2, [1, 3]),
        pytest.param(2, [0, 2], marks=pytest.mark.slow),
        pytest.param(1, [0, 1, 2, 3], marks=pytest.mark.slow),
    ],
)
def test_log_probs_and_scores_take_the_steps_of_plain_torch_at_every_stage(
    pool, workspace, expected, num_ranks, stages, tmp_path
):
    """LoRA alone off: the gradient kept from the forward pass. ZeRO-3 alone: the head's weight in the backward pass."""
    counts, by_method = expected
    for is_lora, steps in enumerate(by_method):
        method = LORA if is_lora else ()
        # One micro-batch is recomputed and accumulated, or not, in turn.
        variants = [
            [*method, f"zero.stage={stage}", f"model.checkpoint_layers={-1 if stage % 2 else 0}"]
            for stage in stages
        ]
        answers = pool(num_ranks).run(
            trained,
            workspace=workspace,
            run_dir=str(tmp_path / str(is_lora)),
            variants=variants,
            counts=counts,
        )
        for answer in answers:
            for stage, records in zip(stages, answer, strict=True):
                for step, (found, wanted) in enumerate(zip(records, steps, strict=True)):
                    for key in ("loss", "grad_norm"):
                        apart = abs(found[key] - wanted[key]) / abs(wanted[key])
                        assert apart <= FP32, (is_lora, stage, step, key, apart)
