"""A base in NF4 on disk that also sees: its language part trains beside it, and plain peft loads what it learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of
from tests.helpers.multimodal import save_multimodal

QLORA = ["tune.method=lora", "tune.quantise=nf4", "tune.r=4", "data.sources.chat.packing=null"]


def packed_by_plain_bitsandbytes(mesh: Any, folder: str, kind: str) -> None:
    """Save a model of a kind in NF4, as the documentation of transformers says."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    from trainer.model.tiny import build_tokenizer

    top = Path(folder)
    save_multimodal(top / "whole", kind)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    packed = AutoModelForImageTextToText.from_pretrained(
        top / "whole", quantization_config=options, device_map="cpu", dtype=torch.float32
    )
    packed.save_pretrained(top / "nf4")
    build_tokenizer().save_pretrained(top / "nf4")


def trained_and_exported(mesh: Any, workspace: str, folder: str, words: list[str]) -> Any:
    """Train and export; return what was exported, and what plain peft on plain bitsandbytes says beside it."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from trainer.checkpoint.layout import step_dir
    from trainer.command.export import export_model
    from trainer.command.prepare import ensure_inputs
    from trainer.config.snapshot import freeze
    from trainer.evaluate.proofs.fingerprint import difference, read_fingerprint
    from trainer.model.tune.quantise import keep_right
    from trainer.run import training

    run_dir, exported = Path(folder) / "run", Path(folder) / "export"
    words = [
        *words,
        f"model.path={folder}/nf4",
        "optim.lr=0.01",
        "train.max_steps=2",
        "checkpoint.every_steps=2",
    ]
    config = config_of(workspace, run_dir, *words)
    if mesh.is_first:
        ensure_inputs(config)
        freeze(config, run_dir)
    mesh.barrier()
    assert training.run_training(config).value == "finished"
    if not mesh.is_first:
        return None
    asked = [f"export.output_dir={exported}", "export.dtype=float32", "export.merge=false"]
    assert export_model(config_of(workspace, run_dir, *words, *asked)) == 0
    saved = read_fingerprint(step_dir(run_dir, 2) / "fingerprint.safetensors")
    base: Any = AutoModelForImageTextToText.from_pretrained(
        f"{folder}/nf4", dtype=torch.float32, device_map="cpu"
    )
    base = keep_right(base).train()

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            types = {"token_type_ids": torch.zeros(1, len(saved.tokens_T), dtype=torch.long)}
            more = types if base.config.model_type == "gemma3" else {}
            found = model(input_ids=saved.tokens_T[None], **more).logits[0, -len(saved.logits_KV) :]
        return torch.as_tensor(found).float()

    before = logits(base)
    after = logits(PeftModel.from_pretrained(base, exported, autocast_adapter_dtype=False).train())
    return {
        "files": sorted(entry.name for entry in exported.iterdir()),
        "apart": difference(saved.logits_KV, after),
        "learnt": difference(saved.logits_KV, before),
    }


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("gemma3", 1),
        pytest.param("gemma3", 3, marks=pytest.mark.slow),
        pytest.param("qwen3_5", 1, marks=pytest.mark.slow),
        pytest.param("qwen3_5", 3, marks=pytest.mark.slow),
        pytest.param("mistral3", 1, marks=pytest.mark.slow),
    ],
)
def test_a_base_in_nf4_that_also_sees_trains_and_reloads_in_plain_peft(
    pool: Any, workspace: str, tmp_path: Path, kind: str, stage: int
) -> None:
    pytest.importorskip("bitsandbytes")
    pool(1).run(packed_by_plain_bitsandbytes, folder=str(tmp_path), kind=kind)
    words = [*QLORA, f"zero.stage={stage}"]
    found = pool(2).run(trained_and_exported, workspace=workspace, folder=str(tmp_path), words=words)[0]
    assert "adapter_config.json" in found["files"]
    assert found["apart"] < 1e-4 < found["learnt"], found
