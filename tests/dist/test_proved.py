"""Every run proves its loaded model before the first step: one that is wrong in one way only is stopped by its proof.

The library's model is made wrong when everything is built, so nothing but the proof itself can find it. A failure
points at a proof that is not called, or no longer looks at what a run trains.
"""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.test_mixtures import mixture as mixture  # a fixture

SEEN = 8
"""Tokens that a short-sighted model sees of its document, in a pack alone."""


def louder(model: Any) -> None:
    """Let the model's own forward change its logits behind the output layer."""
    from tests.unit.evaluate.test_agreement import after_the_head

    after_the_head(lambda logits: logits * 1.5)(model)


def see_others(model: Any) -> None:
    """Let every token of a pack see all earlier ones."""
    from tests.unit.evaluate.test_agreement import see_all

    see_all(model)


def short_sighted(model: Any) -> None:
    """Let a token of a pack see no further than a few back; documents alone are read as they are."""

    def near(mask: torch.Tensor) -> torch.Tensor:
        far = torch.ones_like(mask).tril(-SEEN) != 0
        return mask & ~far if mask.dtype is torch.bool else mask.masked_fill(far, torch.finfo(mask.dtype).min)

    inner = model.model.forward

    def forward(*args: Any, **inputs: Any) -> Any:
        if inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = near(inputs["attention_mask"])
        return inner(*args, **inputs)

    model.model.forward = forward


def hear_the_rows_beside(model: Any) -> None:
    """Let what a row begins with depend on the rows beside it."""
    inner = model.model.embed_tokens.forward

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = inner(tokens)
        return embedded + 0.5 * embedded.mean((0, 1), keepdim=True) * (len(tokens) > 1)

    model.model.embed_tokens.forward = forward


def look_at_the_end_of_the_row(model: Any) -> None:
    """Let what a row begins with depend on its last place, where padding stands."""
    inner = model.model.embed_tokens.forward

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = inner(tokens)
        return embedded + embedded[:, -1:]

    model.model.embed_tokens.forward = forward


def halve_backward(model: Any) -> None:
    """Halve the gradient on its way through one MLP; the forward pass is right."""
    from tests.unit.evaluate.test_gradient import Times, patched

    patched(model.model.layers[1].mlp, lambda output: Times.apply(output, 0.5))


def deafen(model: Any) -> None:
    """Let routers choose as if their biases were 0."""
    for module in model.modules():
        if "e_score_correction_bias" in module._buffers:
            module.forward = unbiased(module)


def unbiased(router: Any) -> Callable[[torch.Tensor], Any]:
    inner = router.forward

    def forward(hidden: torch.Tensor) -> Any:
        bias = router.e_score_correction_bias
        held = bias.clone()
        bias.zero_()
        try:
            return inner(hidden)
        finally:
            bias.copy_(held)

    return forward


ROWS = ["data.packing=none", "data.sources.chat.packing=null"]
LOUDER = "The model's own logits must be those that the loss is computed from, but differ by"
WRONG: dict[str, tuple[Callable[[Any], None], list[str], str]] = {
    "head": (louder, [], LOUDER),
    "head of what is evaluated": (louder, ["evaluate.checkpoint=base"], LOUDER),
    "isolation": (see_others, [], "Documents in one pack see each other: changing one moved the logits"),
    "pack": (short_sighted, [], "A document in a pack must be what it is alone, but its logits differ by"),
    "isolation of rows": (hear_the_rows_beside, ROWS, "Documents of one batch see each other"),
    "rows": (look_at_the_end_of_the_row, ROWS, "must be what it is alone when padding stands behind it"),
    "choice": (
        deafen,
        ["train.router_bias_rate=0.01", "train.isolation_probe=false"],
        "`train.router_bias_rate` must be 0 for this model",
    ),
    "gradient": (halve_backward, [], "must be that of the model's own code, but in layer model.layers.1"),
}
"""By the proof that must find it: what is wrong, words of the command, and what is said."""


@contextlib.contextmanager
def spoilt(change: Callable[[Any], None]) -> Iterator[None]:
    """Let commands of this process get a model that is changed after all of it is built."""
    from trainer.command import evaluate
    from trainer.run import training

    whole = training.open_session

    def opened(*arguments: Any, **options: Any) -> Any:
        session = whole(*arguments, **options)
        change(session.loaded.model)
        return session

    training.open_session = evaluate.open_session = opened
    try:
        yield
    finally:
        training.open_session = evaluate.open_session = whole


def told(mesh: Any, workspace: str, run_dir: str, wrong: str, base: str) -> list[Any]:
    """Train or evaluate a wrong model; return the exit code, what was said, and what is left of the run."""
    from tests.dist.session import config_of
    from trainer.cli import run_command
    from trainer.command.prepare import ensure_inputs

    change, more, _ = WRONG[wrong]
    more = [*more, *([base] if wrong == "choice" else [])]
    ensure_inputs(config_of(workspace, run_dir, *more))
    words = ["--config", f"{workspace}/config.yaml", f"run_dir={run_dir}", "train.max_steps=1", *more]
    said = io.StringIO()
    with spoilt(change), contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = run_command(["evaluate" if wrong.endswith("evaluated") else "train", *words])
    gc.collect()
    return [code, said.getvalue(), sorted(path.name for path in Path(run_dir).iterdir())]


@pytest.mark.parametrize("wrong", sorted(WRONG))
def test_a_model_that_is_wrong_in_one_way_is_stopped_before_its_first_step(
    pool, workspace, mixture, tmp_path, wrong
):
    arguments = {"workspace": workspace, "run_dir": str(tmp_path / "run"), "base": mixture}
    ((code, said, left),) = pool(1).run(told, **arguments, wrong=wrong)
    assert code == 2, said
    assert WRONG[wrong][2] in said
    assert not {"checkpoints", "metrics.jsonl", "ledger.jsonl"} & set(left)


def foreseen(mesh: Any, workspace: str, run_dir: str, words: list[str]) -> list[Any]:
    """Train where every step counts as long; return the exit code and what was said."""
    from tests.dist.session import config_of
    from trainer.cli import run_command
    from trainer.command.prepare import ensure_inputs
    from trainer.metrics import outlook

    ensure_inputs(config_of(workspace, run_dir, *words))
    said, long_s, outlook.LONG_S = io.StringIO(), outlook.LONG_S, 0.0
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            code = run_command(
                [
                    "train",
                    "--config",
                    f"{workspace}/config.yaml",
                    f"run_dir={run_dir}",
                    "train.max_steps=1",
                    *words,
                ]
            )
    finally:
        outlook.LONG_S = long_s
    return [code, said.getvalue()]


@pytest.mark.parametrize("words", [[], ["train.isolation_probe=false"], ROWS])
def test_how_long_a_step_takes_is_said_before_the_first_one(pool, workspace, tmp_path, words):
    ((code, said),) = pool(1).run(foreseen, workspace=workspace, run_dir=str(tmp_path / "run"), words=words)
    assert code == 0, said
    before, found, _ = said.partition("A step of 256 tokens a rank will take about ")
    assert found and "The loss is made from the model's own logits" in before and "step 1" not in before


def save_far_sighted(mesh: Any, folder: str) -> None:
    """Save a model with a window that packs of 64 tokens do not fill."""
    from transformers import AutoModelForCausalLM

    from tests.helpers.families import FAMILIES
    from tests.helpers.tiny_families import tiny_config
    from trainer.model.tiny import build_tokenizer

    config = tiny_config(FAMILIES["Mistral 7B v0.1"])
    config.sliding_window = 100
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def test_a_window_longer_than_a_pack_is_said_and_trains(pool, workspace, tmp_path):
    pool(1).run(save_far_sighted, folder=str(tmp_path / "base"))
    words = [f"model.path={tmp_path / 'base'}"]
    ((code, said),) = pool(1).run(foreseen, workspace=workspace, run_dir=str(tmp_path / "run"), words=words)
    assert code == 0, said
    assert "the model's longest window, chunk or convolution is 100 tokens, longer than a pack." in said
