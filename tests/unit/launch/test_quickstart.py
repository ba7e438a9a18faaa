"""The quickstart's own decisions: what its corpus is, when a run is done, when it has failed."""

import json

from trainer.launch import corpus, quickstart


def write_run(run_dir, max_steps, records, saved_step=None):
    run_dir.mkdir(parents=True)
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


def test_a_run_is_done_only_with_its_last_checkpoint_and_two_evaluations(tmp_path):
    losses = [{"step": 0, "eval/a": 2.0}, {"step": 4, "eval/a": 1.0}]
    write_run(tmp_path / "done", 4, losses, saved_step=4)
    write_run(tmp_path / "half", 4, losses, saved_step=2)
    write_run(tmp_path / "blind", 4, losses[:1], saved_step=4)
    assert quickstart.is_trained(tmp_path / "done")
    assert not quickstart.is_trained(tmp_path / "half")
    assert not quickstart.is_trained(tmp_path / "blind")
    assert not quickstart.is_trained(tmp_path / "missing")


def test_losses_are_averaged_over_sources_and_other_keys_are_left_out():
    records = [
        {"step": 0, "eval/a": 3.0, "eval/b": 1.0, "eval/a/tokens": 7.0},
        {"step": 1, "loss": 9.0},
        {"step": 2, "eval/a": 1.0, "eval/b": 1.0},
    ]
    assert quickstart.held_out_losses(records) == [2.0, 1.0]


def test_a_loss_that_did_not_go_down_fails_the_quickstart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(quickstart, "compare", lambda base_dir, tuned_dir: None)
    speed = {"step": 1, "tokens_per_s": 100.0}
    write_run(tmp_path / "down", 4, [{"eval/a": 2.0}, speed, {"eval/a": 1.5}])
    write_run(tmp_path / "up", 4, [{"eval/a": 2.0}, speed, {"eval/a": 2.5}])
    write_run(tmp_path / "nan", 4, [{"eval/a": 2.0}, speed, {"eval/a": float("nan")}])
    assert quickstart.show(tmp_path / "down", tmp_path) == 0
    assert "2.0000 -> 1.5000" in capsys.readouterr().out
    assert quickstart.show(tmp_path / "up", tmp_path) == 1
    assert quickstart.show(tmp_path / "nan", tmp_path) == 1
