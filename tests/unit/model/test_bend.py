"""What models do to logits after the output layer is found and done in the loss, with its gradient."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from transformers import AutoConfig  # noqa: E402

from trainer.errors import ModelError  # noqa: E402
from trainer.model.head.ask import Logits, Output  # noqa: E402
from trainer.model.head.bend import NO_BEND, Bend, find_bend  # noqa: E402
from trainer.model.head.divergence import TopTokens  # noqa: E402
from trainer.model.head.log_probs import LogProbs  # noqa: E402
from trainer.model.head.nll import Nll  # noqa: E402

BENDS = [Bend(0.125), Bend(1.0, 3.0), Bend(2.5, 4.0), Bend(-0.5)]


class Made(nn.Module):
    """Stands for a causal model of code that nobody has seen."""

    def __init__(self, change: Any, before: float = 1.0, bias: bool = False) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(300, 3), nn.Sequential(), nn.Linear(3, 300, bias=bias)
        self.body.embed = self.embed
        self.change, self.before, self.base_model = change, before, self.body

    def get_output_embeddings(self) -> Any:
        return self.head

    def forward(self, input_ids: Any, use_cache: bool) -> Any:
        hidden = self.body(input_ids, use_cache=use_cache)[0]
        logits = self.change(self.head(hidden * self.before))
        return type("Answer", (), {"logits": logits})()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda z: z, NO_BEND),
        (lambda z: z.float(), NO_BEND),
        (lambda z: z / 6, Bend(1 / 6)),
        (lambda z: 0.0078125 * z, Bend(0.0078125)),
        (lambda z: 30 * torch.tanh(z / 30), Bend(1.0, 30.0)),
        (lambda z: 50 * torch.tanh(0.1 * z / 50), Bend(0.1, 50.0)),
    ],
)
def test_the_change_is_found_whatever_its_name(change: Any, found: Bend) -> None:
    bend = find_bend(Made(change))
    assert bend.cap == (pytest.approx(found.cap) if found.cap else None)
    assert bend.scale == pytest.approx(found.scale, rel=1e-7)
    assert bend.is_none == found.is_none


@pytest.mark.parametrize("change", [lambda z: 0.0 * z, lambda z: torch.tanh(z / 0.0) * 0.0])
def test_logits_that_are_all_0_are_refused_with_the_keys_of_config_json(change: Any) -> None:
    """A cap of 0 was a traceback, and a scale of 0 a model that learns nothing."""
    model = Made(change)
    with pytest.raises(
        ModelError, match=r"but all of Made's are 0 instead\. Mend config\.json, or name another"
    ):
        find_bend(model)
    model.config = AutoConfig.for_model("gemma2", final_logit_softcapping=0.0)
    with pytest.raises(ModelError, match=r"0 instead \(final_logit_softcapping=0 in its config\.json\)"):
        find_bend(model)


def test_a_factor_before_the_output_layer_is_one_behind_it() -> None:
    assert find_bend(Made(lambda z: z, before=0.25)).scale == 0.25
    with pytest.raises(ModelError, match="changes them in between"):
        find_bend(Made(lambda z: z, before=0.25, bias=True))


@pytest.mark.parametrize("change", [lambda z: z.relu(), lambda z: z + 1.0, lambda z: z.clamp(-5, 5)])
def test_any_other_change_is_refused(change: Any) -> None:
    with pytest.raises(ModelError, match=r"does something else to them .*Name another model\.path"):
        find_bend(Made(change))


@pytest.mark.parametrize("bend", BENDS)
@pytest.mark.parametrize("teacher", [False, True])
def test_the_loss_and_its_gradients_are_those_of_the_changed_logits(bend: Bend, teacher: bool) -> None:
    """A failure points at the derivative of a cap, or at a teacher who is compared with unchanged logits."""
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, -100, 0, 10, 5, 5, -100])
    rows = torch.tensor([0, 3])
    says = torch.log_softmax(torch.randn(2, 11, dtype=torch.float64), -1)
    # All tokens but one, so that the rest is that one and the KL is the whole sum.
    asked = (
        TopTokens(rows, rows.numpy(), torch.arange(10).expand(2, 10), says[:, :10], 0.7) if teacher else None
    )
    loss = Nll(labels, asked).answer(hidden, Output(weight, bias, 3, bend))[0]
    grads = torch.autograd.grad(loss, (hidden, weight, bias))
    z = hidden @ weight.t() + bias
    z = bend.scale * z if bend.cap is None else bend.cap * torch.tanh(bend.scale * z / bend.cap)
    log_probs = torch.log_softmax(z, -1)
    wanted = nn.functional.nll_loss(log_probs, labels, ignore_index=-100, reduction="sum")
    if teacher:
        wanted = wanted + 0.7 * (says.exp() * (says - log_probs[rows])).sum()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(grads, torch.autograd.grad(wanted, (hidden, weight, bias)))


@pytest.mark.parametrize("bend", BENDS)
@pytest.mark.parametrize("frozen", [False, True])
def test_log_probabilities_are_those_of_the_changed_logits(bend: Bend, frozen: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 5, dtype=torch.float64, requires_grad=not frozen)
    output, rows, targets = Output(weight, None, 2, bend), torch.tensor([1, 4, 6]), torch.tensor([2, 9, 0])
    mix = torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)
    found = LogProbs(rows, targets).answer(hidden, output)
    wanted = torch.log_softmax(Logits().answer(hidden, output), -1)[rows, targets]
    torch.testing.assert_close(found, wanted)
    inputs = (hidden,) if frozen else (hidden, weight)
    got = torch.autograd.grad((found * mix).sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad((wanted * mix).sum(), inputs))
