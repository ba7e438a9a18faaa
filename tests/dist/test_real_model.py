"""SmolLM2-135M keeps its held-out losses: before training those of plain transformers, after it those on record.

The text is the Apache License that is in this repository, so nothing moves but the code. Needs the folder that
`python -m trainer.model.embedded` makes.
"""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of, session_of, take_steps
from tests.helpers.tiny import tiny_config
from tests.house.tree import ROOT
from trainer.config.data import Format, SourceConfig
from trainer.config.model import ModelConfig, ModelKind
from trainer.config.snapshot import write_atomic
from trainer.config.store import to_yaml
from trainer.data.pack.collate import IGNORE
from trainer.data.pack.refs import FILLER, read_batch
from trainer.model.embedded import embedded_place

FOLDER = embedded_place(Path(pwd.getpwuid(os.getuid()).pw_dir) / ".cache" / "palimpsest")
"""Where a person has it: tests have a home of their own."""
SEQ_LEN, NUM_STEPS = 128, 2
PLAIN = 1e-4
"""Relative, all in float32."""
RECORDED = (3.7023, 3.5664)
"""Held-out loss before and after the steps, in float32 on two CPU cores (AMD EPYC), torch 2.13, transformers 5.24."""
SAME = 2e-3
"""Absolute; other processors add up in another order."""

pytestmark = pytest.mark.slow


def make_place(folder: Path) -> None:
    """Write the paragraphs of the license, and the configuration."""
    paragraphs = (ROOT / "LICENSE").read_text(encoding="utf-8").split("\n\n")
    rows = [json.dumps({"text": " ".join(part.split())}) for part in paragraphs if part.strip()]
    (folder / "license.jsonl").write_text("\n".join(rows) + "\n")
    config = tiny_config(folder)
    config.model = ModelConfig(kind=ModelKind.pretrained, path=str(FOLDER), checkpoint_layers=0)
    config.data.sources = {"license": SourceConfig(path=str(folder / "license.jsonl"), format=Format.text)}
    config.data.seq_len, config.data.validation_frac = SEQ_LEN, 0.3
    config.train.global_batch_tokens, config.train.max_steps = 4 * SEQ_LEN, NUM_STEPS
    config.optim.lr = 2e-5
    write_atomic(folder / "config.yaml", to_yaml(config))


def measured(mesh: Any, workspace: str) -> list[float]:
    """Return the held-out loss by plain transformers, by ours, and by ours after some steps."""
    from transformers import AutoModelForCausalLM

    from trainer.command.prepare import ensure_inputs
    from trainer.evaluate.held_out import held_out_pieces

    make_place(Path(workspace))
    run_dir = f"{workspace}/run"
    ensure_inputs(config_of(workspace, run_dir))
    torch.set_num_threads(2)
    with session_of(config_of(workspace, run_dir)) as session:
        held_out = session.held_out()
        before = held_out_pieces(session.policy, held_out)["license"].mean
        take_steps(session, NUM_STEPS)
        after = held_out_pieces(session.policy, held_out)["license"].mean
        pieces = [piece for refs in held_out.batches(mesh.data) for piece in pieces_of(held_out, refs)]
    model: Any = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return [plain(model, pieces), before, after]


def pieces_of(held_out: Any, refs: Any) -> list[tuple[list[int], list[int]]]:
    """Return tokens and labels of every document of a batch that is held out."""
    micro, found = read_batch(held_out.stores, refs, held_out.pad_id), []
    for row, ref in enumerate(refs):
        tokens, labels, segments = (
            part[row] for part in (micro.tokens_BT, micro.labels_BT, micro.segments_BT)
        )
        for segment in sorted(set(segments.tolist())) if ref is not FILLER else ():
            inside = segments == segment
            if (labels[inside] != IGNORE).any():
                found.append((tokens[inside].tolist(), labels[inside].tolist()))
    return found


def plain(model: Any, pieces: list[tuple[list[int], list[int]]]) -> float:
    """Return the mean loss of documents, each alone."""
    total, count = 0.0, 0
    with torch.no_grad():
        for tokens, labels in pieces:
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum"))
            count += sum(label != IGNORE for label in labels)
    return total / count


@pytest.mark.skipif(
    not (FOLDER / "config.json").is_file(), reason="python -m trainer.model.embedded makes it"
)
def test_a_real_model_has_the_held_out_losses_of_plain_transformers_and_those_on_record(pool, tmp_path):
    reference, before, after = pool(1).run(measured, workspace=str(tmp_path))[0]
    print(reference, before, after)
    assert before == pytest.approx(reference, rel=PLAIN)
    assert [before, after] == pytest.approx(RECORDED, abs=SAME)
    assert after < before
