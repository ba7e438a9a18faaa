"""Probes, the documents that lost most and drift by layer on real ranks, of whole weights under ZeRO-3 and of LoRA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of, train_frozen

OWN = "The lighthouse keeper counts the waves and writes their number down.\n\n"
WORDS = [
    "evaluate.probes=all",
    "evaluate.layer_drift=true",
    "evaluate.micro_batch_size=16",
    "data.seq_len=64",
]
DURING = [
    *(WORDS[0], WORDS[2], "train.max_steps=3", "evaluate.every_steps=1"),
    *("checkpoint.enabled=false", "evaluate.forgotten_documents=0"),
]


def read(run_dir: Path, name: str) -> Any:
    return json.loads((run_dir / name).read_text())


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def drift_by_hand(mesh: Any, run_dir: str, is_adapter: bool) -> float:
    """Return ||w - w0|| / ||w0|| of all weights as an export has them, merged where there is an adapter."""
    import torch
    from safetensors.torch import load_file

    from trainer.command.export import export_model
    from trainer.config.store import load_config

    words = [
        "export.dtype=float32",
        f"export.merge={str(is_adapter).lower()}",
        f"export.output_dir={run_dir}/whole",
    ]
    config = load_config(Path(run_dir) / "config.yaml", words)
    assert export_model(config) == 0
    base, tuned = (
        {name: one for file in Path(folder).glob("*.safetensors") for name, one in load_file(file).items()}
        for folder in (config.model.path, f"{run_dir}/whole")
    )
    moved, size = (
        torch.stack([one.double().square().sum() for one in found]).sum()
        for found in ([tuned[name].double() - base[name].double() for name in base], base.values())
    )
    return float((moved / size).sqrt())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ranks", "words"),
    [(2, ["zero.stage=3"]), (1, ["tune.method=lora", "tune.r=4", "zero.stage=1"])],
    ids=["zero3", "lora"],
)
def test_a_run_ends_with_probes_documents_and_drift(pool, workspace, tmp_path, num_ranks, words):
    """A drift unlike that of the exported weights: tensors are taken for others, or an adapter has lost its scale."""
    own, run_dir = tmp_path / "own", tmp_path / "run"
    own.mkdir()
    (own / "keeper.txt").write_text(OWN * 99)
    words = [
        *WORDS,
        *words,
        f"evaluate.probe_dir={own}",
        "checkpoint.every_steps=1",
        "checkpoint.keep_last=3",
    ]
    pool(num_ranks).run(train_frozen, workspace=workspace, run_dir=str(run_dir), words=words)
    record = read(run_dir, "forgetting.json")
    probes = {one["name"]: one for one in record["probes"]}
    assert len(probes) == 19 and "keeper.txt" in probes and not record["left_out"]
    assert all(
        one["base_nats"] != one["tuned_nats"] and one["change_low"] is not None for one in probes.values()
    )
    assert {one["prompts"] for one in record["kl"]} >= {f"{name} (probe)" for name in probes}
    assert {one["name"] for one in record["sets"]} == {"chat", "text"}, "gates and means count no probe"
    shown = read(run_dir, "forgotten_documents.json")["documents"]
    assert all(one["tuned_nats"] > one["base_nats"] for one in shown) and len(shown) <= 10
    rises = [one["tuned_nats"] - one["base_nats"] for one in shown if one["num_targets"] >= 16]
    assert rises == sorted(rises, reverse=True)
    for one in shown:  # of a document in one piece that is shown whole
        if not one["is_cut"] and one["num_tokens"] == one["num_targets"] + 1:
            total = sum(rise or 0 for _, rise in one["parts"])
            assert total / one["num_targets"] == pytest.approx(one["tuned_nats"] - one["base_nats"], abs=0.02)
    drift = read(run_dir, "layer_drift.json")
    (wanted,) = pool(1).run(drift_by_hand, run_dir=str(run_dir), is_adapter="tune.r=4" in words)
    assert drift["why"] is None and drift["total"] == pytest.approx(wanted, rel=1e-5)
    assert {one["layer"] for one in drift["groups"]} == {0, 1, None}
    steps = [int(one["tuned"].rpartition("-")[2]) for one in (drift, *drift["earlier"])]
    assert steps == [steps[0], steps[0] - 1, steps[0] - 2]
    totals = [one["total"] for one in (drift, *drift["earlier"])]
    assert len(set(totals)) == 3 and min(totals) > 0, "each is read from its own files"
    assert "What was lost, word by word" in (run_dir / "report.html").read_text()


def test_a_short_run_leaves_probes_out_and_says_so(pool, workspace, tmp_path):
    """The default: no run of a few steps waits for texts that it was not asked about."""
    words = ["train.max_steps=1", "checkpoint.enabled=false"]
    pool(1).run(train_frozen, workspace=workspace, run_dir=str(tmp_path / "run"), words=words)
    record = read(tmp_path / "run", "forgetting.json")
    assert record["probes"] == [] and "evaluate.probes=all measures them" in record["left_out"][0]["why"]
    assert not (tmp_path / "run" / "probe_evaluation.npz").exists()
    assert not (tmp_path / "run" / "layer_drift.json").exists()


def test_probes_are_read_at_every_evaluation_and_end_in_what_is_compared(pool, workspace, tmp_path):
    """A rise at the last step unlike the report's: another model was read, or the kinds are mixed up."""
    run_dir = tmp_path / "run"
    pool(1).run(train_frozen, workspace=workspace, run_dir=str(run_dir), words=DURING)
    asked = {row["step"]: row for row in rows_of(run_dir) if any(key.startswith("probe/") for key in row)}
    assert list(asked) == [1, 2, 3]
    probes = read(run_dir, "forgetting.json")["probes"]
    assert len(probes) == 18
    for one in probes:
        rise, low, high = (asked[3][f"{key}/{one['name']}"] for key in ("probe", "probe_low", "probe_high"))
        assert (rise, low, high) == (one["change_nats"], one["change_low"], one["change_high"])
        assert asked[1][f"probe/{one['name']}"] != rise
    assert "When kinds of text were lost" in (run_dir / "report.html").read_text()


@pytest.mark.slow
def test_reading_probes_changes_nothing_of_what_is_trained_or_compared(pool, workspace, tmp_path):
    """Another loss: an evaluation left the model in another mode, or drew from a generator of the training."""
    found = []
    for name, more in (("with", []), ("ends", ["evaluate.during.probes=false"])):
        run_dir = tmp_path / name
        pool(2).run(
            train_frozen,
            workspace=workspace,
            run_dir=str(run_dir),
            words=[*DURING, *more],
        )
        rows = rows_of(run_dir)
        found.append(
            ([row["loss"] for row in rows if "loss" in row], read(run_dir, "forgetting.json")["probes"])
        )
    assert found[0] == found[1] and not any(key.startswith("probe") for row in rows for key in row)


def test_probes_that_are_trained_on_are_left_out(pool, workspace, tmp_path):
    """The text of a probe stands among the training documents: it is named and not measured."""
    (found,) = pool(1).run(left_out, workspace=workspace, folder=str(tmp_path))
    (one,) = found
    assert one["name"] == "same.txt" and "1 of its 1 document stand in what is trained on" in one["why"]


def left_out(mesh: Any, workspace: str, folder: str) -> list[dict[str, str]]:
    """Return the probes that a session of a text source leaves out."""
    import dataclasses

    from tests.dist.session import session_of
    from trainer.command.prepare import ensure_inputs
    from trainer.run.probes import _encoded, _texts

    rows = [{"text": f"document number {n} of a small corpus"} for n in range(40)]
    (Path(folder) / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = Path(folder) / "own"
    own.mkdir()
    words = [
        f"data.sources.text.path={folder}/rows.jsonl",
        "data.sources.text.format=text",
        "~data.sources.chat",
    ]
    config = config_of(
        workspace, f"{folder}/run", *words, f"evaluate.probe_dir={own}", f"data.cache_dir={folder}/c"
    )
    ensure_inputs(config)
    with session_of(config) as session:
        held = set(session.stores["text"].validation.document_hashes().tolist())
        from trainer.evaluate.probe_texts import ProbeTexts, encode_texts

        trained = next(
            row["text"]
            for row in rows
            if not held & set(encode_texts(ProbeTexts("x", (row,)), session.tokenizer).hashes.tolist())
        )
        (own / "same.txt").write_text(trained)
        _, found = _encoded(session, _texts(config.evaluate))
    return [dataclasses.asdict(one) for one in found]
