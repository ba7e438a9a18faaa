"""The quickstart's own decisions: what its corpus is, when a run is done, when it has failed."""

import json

from trainer.launch import corpus, quickstart


def write_run(run_dir, max_steps, records, saved_step=None, losses=None):
    """Write a run; `losses` are (role, base, tuned) of the held-out sets, if they were measured."""
    run_dir.mkdir(parents=True)
    if losses is not None:
        sets = [
            {"name": role, "role": role, "base_nats": base, "tuned_nats": tuned, "change_nats": tuned - base}
            for role, base, tuned in losses
        ]
        (run_dir / "forgetting.json").write_text(json.dumps({"sets": sets}))
    (run_dir / "config.yaml").write_text(f"train: {{max_steps: {max_steps}}}\n")
    lines = [json.dumps(record) for record in records]
    (run_dir / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 3, "tok']))
    if saved_step is not None:
        step_dir = run_dir / "checkpoints" / f"step-{saved_step:08d}"
        step_dir.mkdir(parents=True)
        (step_dir / "manifest.json").write_text("{}")


def test_the_corpus_is_the_same_every_time_and_no_text_comes_twice(tmp_path):
    first, second = tmp_path / "a" / "first.jsonl", tmp_path / "second.jsonl"
    num_documents = corpus.write_corpus(first)
    corpus.write_corpus(second)
    assert first.read_bytes() == second.read_bytes()
    documents = [json.loads(line) for line in first.read_text(encoding="utf-8").splitlines()]
    assert len({document["text"] for document in documents}) == len(documents) == num_documents > 50
    assert [p.name for p in first.parent.iterdir()] == ["first.jsonl"]


def test_a_run_is_done_only_with_its_last_checkpoint_and_its_measurement(tmp_path):
    measured = [("target", 2.0, 1.0)]
    write_run(tmp_path / "done", 4, [], saved_step=4, losses=measured)
    write_run(tmp_path / "half", 4, [], saved_step=2, losses=measured)
    write_run(tmp_path / "blind", 4, [], saved_step=4)
    assert quickstart.is_trained(tmp_path / "done")
    assert not quickstart.is_trained(tmp_path / "half")
    assert not quickstart.is_trained(tmp_path / "blind")
    assert not quickstart.is_trained(tmp_path / "missing")


def test_a_target_loss_that_did_not_go_down_fails_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "compare", lambda base_dir, tuned_dir: None)
    records = [{"step": 1, "tokens_per_s": 100.0}]
    for name, target, replay in (("down", 1.5, 2.1), ("up", 2.5, 1.0), ("nan", float("nan"), 1.0)):
        losses = [("target", 2.0, target), ("replay", 2.0, replay)]
        write_run(tmp_path / name, 4, records, losses=losses)
    assert quickstart.show(tmp_path / "down", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "2.0000 -> 1.5000" in shown and "2.0000 -> 2.1000" in shown
    assert quickstart.show(tmp_path / "up", tmp_path) == 1
    assert quickstart.show(tmp_path / "nan", tmp_path) == 1
    write_run(tmp_path / "unmeasured", 4, records)
    assert quickstart.show(tmp_path / "unmeasured", tmp_path) == 1
