"""Distillation by commands: a teacher that is refused before anything is written, and one that teaches by its texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.ranks import RankFailure, run_apart
from tests.helpers.tiny import save_llama
from trainer.config.store import compose_config
from trainer.errors import TrainerError

TEACHER = "objective.distill.teacher"
LENGTH = ("data.seq_len=128", "train.global_batch_tokens=256", "train.max_steps=2", "data.num_workers=1")


def other_teacher(folder: Path) -> Path:
    """Save a model whose tokenizer has two bytes in each other's place."""
    save_llama(folder, seed=3)
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    vocab = tree["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(tree))
    return folder


def test_a_teacher_of_another_tokenizer_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """Such an error ends the command with 2, as all of its kind do."""
    from trainer.command.train import start_ranks

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} words"}) + "\n" for n in range(40))
    )
    words = ["model=tiny", "data=text", f"data.sources.corpus.path={tmp_path}/text.jsonl", *LENGTH]
    words += [f"data.cache_dir={tmp_path}/cache", f"run_dir={tmp_path}/run", "cluster.ranks_per_node=1"]
    teacher = other_teacher(tmp_path / "teacher")
    config = compose_config([*words, "objective=distill", f"{TEACHER}={teacher}"])
    with pytest.raises(
        TrainerError, match=r"must be a model with the student's tokenizer, but .*2 of 264 ids"
    ):
        start_ranks("train", config)
    assert {path.name for path in tmp_path.iterdir()} == {"text.jsonl", "teacher", "cache"}
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"models", "locks"}, (
        "the tiny model alone"
    )


@pytest.mark.slow
def test_a_teacher_is_sampled_and_its_texts_are_an_ordinary_source(tmp_path):
    rows = [json.dumps({"prompt": "a" * (number % 9 + 1)}) for number in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    teacher = tmp_path / "teacher"
    save_llama(teacher, seed=3)
    loose = ("min_new_tokens=1", "max_new_tokens=40", "max_replacement=1", "max_repeated_ngrams=1")
    sample = ["replay", "generate", "model=tiny", "model.seed=3", "data.cache_dir=cache"]
    sample += ["replay.generate.prompts=given", "replay.generate.prompt_file=prompts.jsonl"]
    sample += ["replay.generate.output_dir=samples", "replay.generate.num_tokens=400"]
    sample += [f"replay.generate.{one}" for one in loose]
    train = ["train", "model=tiny", "data=chat", "data.sources.chat.path=samples/generated.jsonl"]
    train += ["data.cache_dir=cache", *LENGTH]
    distil = [*train, "objective=distill", f"{TEACHER}={teacher}", "objective.distill.top=8"]
    run_apart([sample, ["prepare", *train[1:]], [*train, "run_dir=plain"]], tmp_path)
    shown = run_apart([[*distil, "run_dir=distilled"]], tmp_path)
    asked = json.loads((tmp_path / "samples" / "generated.jsonl").read_text().splitlines()[0])
    assert [turn["role"] for turn in asked["messages"]] == ["user", "assistant"]
    # 8 ids of 4 bytes, 9 numbers of 2.
    assert "supervised distilled tokens: 50 bytes a token" in shown
    for run, key in (("plain", "loss"), ("distilled", "divergence")):
        metrics = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
        assert sum(key in json.loads(line) for line in metrics) == 2, run


@pytest.mark.slow
def test_a_student_learns_on_its_own_answers_and_they_are_verified_and_shown(tmp_path):
    rows = [json.dumps({"prompt": "a" * (number % 9 + 1), "completion": "b"}) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    save_llama(tmp_path / "teacher", seed=3)
    rounds = "objective.distill.on_policy"
    words = ["model=tiny", "data=prompt_completion", "data.sources.pairs.path=rows.jsonl", *LENGTH]
    words += ["data.cache_dir=cache", "run_dir=run", "objective=distill_on_policy"]
    words += [f"{TEACHER}=teacher", f"{rounds}.max_new_tokens=8"]
    shown = run_apart(
        [["prepare", *words], ["train", *words, "log.every_steps=1"], ["verify", "run"]], tmp_path
    )
    assert "before every step the student answers all prompts of it, each in at most 8 tokens" in shown
    assert "in 2 rounds: as sampled" in shown and "All is as it was written" in shown
    told = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in told if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row, file in zip(steps, sorted((tmp_path / "run" / "rounds").iterdir()), strict=True):
        answers = [json.loads(line) for line in file.read_text().splitlines()[1:]]
        assert row["answers_sampled"] == len(answers) > 0
        assert row["answer_tokens"] == pytest.approx(
            sum(len(one["tokens"]) for one in answers) / len(answers)
        )
        assert row["answers_ended"] == sum(one["has_ended"] for one in answers) / len(answers)
        assert 0 < row["sampling_share"] < 1 and row["divergence"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Length of sampled answers" in page and "2 rounds of answers sampled" in page
    (tmp_path / "run" / "rounds" / "000000.jsonl").write_text("{}\n")
    with pytest.raises(RankFailure, match=r"rounds/000000\.jsonl must hold the answers"):
        run_apart([["verify", "run"]], tmp_path)
