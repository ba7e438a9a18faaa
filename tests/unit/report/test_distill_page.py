"""The report of a distillation draws the divergence from the teacher beside what is minimised and what it reads."""

import yaml

from tests.unit.report.test_page import outline
from trainer.config.distill import DistillConfig, DivergenceKind
from trainer.metrics.jsonl import JsonlSink


def test_the_divergence_is_drawn_beside_the_loss_and_that_of_each_source(tmp_path):
    config = {"name": "small", "data": {"sources": {"chat": {}}}, "objective": {"kind": "distill"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    for step in range(5):
        row = {
            "loss": 1.5 - 0.1 * step,
            "divergence": 0.5 - 0.1 * step,
            "cross_entropy": 2.5,
            "loss/chat": 2.5,
        }
        sink.write(step, row)
    sink.close("finished")
    text = outline(tmp_path).text
    for title in ("what is minimised", "divergence from the teacher", "chat", "nats per token"):
        assert title in text, title


def test_the_start_says_what_the_loss_is_made_of():
    options = DistillConfig(
        "big", temperature=2.0, divergence=DivergenceKind.jsd, jsd_beta=0.3, cross_entropy=0.5
    )
    assert options.told(has_text=True) == (
        "Distillation from big. `loss` is what is minimised: 1 x divergence (generalised JSD, jsd_beta 0.3 at "
        "temperature 2, times its square; nats a distilled token), plus 0.5 x cross_entropy (of the same tokens, "
        "nats a token), plus the cross-entropy of other sources (nats a token)."
    )
    plain = DistillConfig("big").told(has_text=False)
    assert plain.endswith(": 1 x divergence (KL(teacher || student); nats a distilled token).")
