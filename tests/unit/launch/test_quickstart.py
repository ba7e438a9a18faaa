"""The quickstart's own decisions: what its corpus is, when a run is done, when it has failed, what stops it."""

import json
import shutil
import signal
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.house.tree import ROOT
from trainer.config.store import compose_config
from trainer.errors import CheckpointError, ConfigError, Exit
from trainer.launch import closing, corpus, quickstart

TINY = ("model=tiny", "replay=none", "replay.ratio=null", "cluster.ranks_per_node=1", "zero=zero1")


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch, tmp_path):
    """No GPU is looked for, and no model or corpus is looked up outside of the test's folder."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def write_run(run_dir, records=(), losses=None, reason="finished"):
    """Write a run; `losses` are (role, base, tuned) of the held-out sets, if they were measured."""
    run_dir.mkdir(parents=True)
    if losses is not None:
        sets = [
            {"name": role, "role": role, "base_nats": base, "tuned_nats": tuned, "change_nats": tuned - base}
            for role, base, tuned in losses
        ]
        (run_dir / "forgetting.json").write_text(json.dumps({"sets": sets}))
    (run_dir / "ledger.jsonl").write_text(
        json.dumps({"event": "stopped", "step": 3, "time": 1.0, "reason": reason}) + "\n"
    )
    lines = [json.dumps(record) for record in records]
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "tok']))


def test_the_corpus_is_the_same_every_time_and_no_text_comes_twice(tmp_path):
    first, second = tmp_path / "a" / "first.jsonl", tmp_path / "second.jsonl"
    num_documents = corpus.write_corpus(first)
    corpus.write_corpus(second)
    assert first.read_bytes() == second.read_bytes()
    documents = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
    assert len({document["text"] for document in documents}) == len(documents) == num_documents > 50
    assert [p.name for p in first.parent.iterdir()] == ["first.jsonl"]


def test_a_run_is_done_only_with_its_end_and_its_measurement(tmp_path):
    measured = [("target", 2.0, 1.0)]
    write_run(tmp_path / "done", losses=measured)
    write_run(tmp_path / "half", losses=measured, reason="preempted")
    write_run(tmp_path / "blind")

    config = compose_config(["experiment=quickstart"])
    unmeasured = replace(config, evaluate=replace(config.evaluate, forgetting=False))
    anew = replace(config, checkpoint=replace(config.checkpoint, resume=False))

    def is_trained(name, config=config):
        return quickstart.is_trained(replace(config, run_dir=str(tmp_path / name)))

    assert is_trained("done")
    assert not is_trained("half")
    assert not is_trained("blind")
    assert not is_trained("missing")
    assert is_trained("blind", unmeasured)
    assert not is_trained("done", anew)


def test_a_target_loss_that_did_not_go_down_fails_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(closing, "compare", lambda source, export: None)
    records = [{"step": 1, "tokens_per_s": 100.0}]
    for name, target, replay in (("down", 1.5, 2.1), ("up", 2.5, 1.0), ("nan", float("nan"), 1.0)):
        write_run(tmp_path / name, records, losses=[("target", 2.0, target), ("replay", 2.0, replay)])
    write_run(tmp_path / "unmeasured", records)

    def show(name):
        return closing.show_result(tmp_path / name, "base", tmp_path / name / "export")

    assert show("down") == Exit.done
    shown = capsys.readouterr().out
    assert "2.0000 -> 1.5000" in shown and "2.0000 -> 2.1000" in shown
    heading = shown.splitlines()[0]
    assert heading == "  held-out loss, nats per token (e^loss is the perplexity)"
    for page in ("README.md", "docs/quickstart.md"):
        assert f"\n{heading}\n" in (ROOT / page).read_text(encoding="utf-8"), (
            "the block shown there is what is printed"
        )
    assert "exported model   down/export\n" in shown and "report           down/report.html\n" in shown
    assert show("up") == Exit.died
    assert show("nan") == Exit.died
    assert show("unmeasured") == Exit.died


def test_what_the_quickstart_chooses_gives_way_to_what_is_asked_for(capsys):
    assert quickstart.start_quickstart(["zero=zero1", "cluster.ranks_per_node=1"], is_shown=True) == Exit.done
    shown = capsys.readouterr().out
    assert "ranks_per_node: 1" in shown and "stage: 1\n" in shown and "/corpora/python-reference-" in shown
    own = ["data=text", "data.sources.corpus.path=notes.txt", "run_dir=elsewhere"]
    assert quickstart.start_quickstart(own, is_shown=True) == Exit.done
    shown = capsys.readouterr().out
    assert "python-reference" not in shown and "ranks_per_node: 2" in shown and "elsewhere" in shown


def test_a_run_directory_that_cannot_be_used_is_a_sentence_before_anything_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"`run_dir` must be a folder you can write to, but .*file is not"):
        quickstart.start_quickstart(["run_dir=file"], is_shown=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(CheckpointError, match=r"must have room for 2 checkpoints at once \(3.2 GB: "):
        quickstart.start_quickstart([], is_shown=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_rank_of_a_launcher_does_not_start_ranks_again(monkeypatch):
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="`quickstart` must be started alone"):
        quickstart.start_quickstart([], is_shown=False)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 2", 2),
        # What Ctrl-C does: it comes to us alone, and the part is told.
        ("trap 'exit 75' INT; kill -INT $PPID; while :; do sleep 0.05; done", 75),
        # It was done when the signal came: what follows would take minutes.
        ("trap 'exit 0' INT; kill -INT $PPID; while :; do sleep 0.05; done", 75),
    ],
    ids=["fails", "Ctrl-C", "Ctrl-C at the end"],
)
def test_a_part_that_stops_ends_the_quickstart_with_its_code(tmp_path, monkeypatch, capfd, script, code):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    # Started in the background, this process ignores SIGINT, and so would the part.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert quickstart.start_quickstart(TINY, is_shown=False) == code
    finally:
        signal.signal(signal.SIGINT, before)
    said = capfd.readouterr()
    assert "[5/7" in said.out and "palimpsest train experiment=quickstart data.sources." in said.out
    assert f"Stopped in part 5 of 7 (exit code {code})" in said.err and "[6/7" not in said.out
