"""What a plan says of a teacher: bytes, work and memory, worked out by hand."""

import dataclasses

import pytest

from trainer.command.counted import find_shape, run_shape, tuned_weights
from trainer.command.plan_teacher import teacher_notes, token_bytes
from trainer.command.teacher_rules import teacher_problems
from trainer.config.store import compose_config
from trainer.forecast.memory import forecast
from trainer.model.base_folder import Needs
from trainer.teacher.inquiry import Question

WORDS = (
    *("objective=distill", "model=llama3_2_1b_instruct", "objective.distill.teacher=llama3_1_8b"),
    *(
        "train.max_steps=1000",
        "train.global_batch_tokens=262144",
        "zero.dtype=bf16",
        "model.checkpoint_layers=0",
    ),
)
STUDENT, TEACHER = 1_235_814_400, 8_030_261_248
"""Parameters of the two; a token reads all of them but the rows of an embedding that is no output layer."""


def notes(*words):
    config = compose_config([*WORDS, *words])
    shape, _ = find_shape(config.model)
    run = run_shape(config, 8)
    return list(teacher_notes(config, shape, run, tuned_weights(config, shape), None))


def test_a_cached_teacher_is_told_with_its_work_its_memory_and_the_bytes_of_what_it_says():
    asked, kept = notes()
    assert f"{TEACHER:,} parameters" in asked
    # 2 x 8.03e9 FLOPs of a forward pass beside 6 x 1.24e9 of a step.
    assert f"takes {2 * TEACHER / (6 * STUDENT):.2g} times the work" in asked
    assert f"{TEACHER * 2 / 8 / 2**30:.2f} GiB of a GPU for its weights (spread over all ranks)" in asked
    # 64 ids of 4 bytes, 65 numbers of 2.
    assert "386 bytes a supervised token" in kept
    assert f"at most {386 * 1000 * 262144 / 1e9:.3g} GB for the 262,144,000 tokens of 1,000 steps" in kept


def test_whole_teachers_adapters_and_runs_of_epochs_are_counted_as_they_are():
    asked, kept = notes(
        *("zero=zero1", "tune=lora", "train.max_steps=null", "train.max_epochs=1"),
        *("objective.distill.top=16", "objective.distill.precision=fp32"),
    )
    assert f"takes {2 * TEACHER / (4 * STUDENT):.2g} times the work" in asked
    assert f"{TEACHER * 2 / 2**30:.2f} GiB of a GPU for its weights (whole on each)" in asked
    assert f"{16 * 8 + 4} bytes a supervised token" in kept and "for each million" in kept


def test_a_teacher_beside_the_student_is_told_with_what_the_cache_would_take():
    _, live = notes("objective.distill.cached=false")
    assert "asks it in every step" in live and "386 bytes a supervised token" in live


def test_nothing_is_said_without_a_teacher():
    config = compose_config([*WORDS[1:2], "train.max_steps=1"])
    assert list(teacher_notes(config, None, None, None, None)) == []  # type: ignore[arg-type]


def test_the_bytes_of_a_plan_are_those_of_the_cache():
    from trainer.model.head.comparison import Comparison

    for precision in ("fp16", "fp32"):
        config = compose_config([*WORDS, f"objective.distill.precision={precision}"])
        question = Question("", "bf16", 64, 1, how=Comparison(), precision=precision)
        assert token_bytes(config) == question.bytes_per_token


def test_comparing_buckets_takes_memory_of_the_head():
    config = compose_config([*WORDS, "zero.stage=1"])
    shape, _ = find_shape(config.model)
    run = run_shape(config, 8)
    assert run.distils
    plain = forecast(shape, dataclasses.replace(run, distils=False), tuned_weights(config, shape))
    assert forecast(shape, run, tuned_weights(config, shape)).gib > plain.gib


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (
            ["objective.distill.top=200000"],
            "objective.distill.top",
            "that teacher and student share (128,256)",
        ),
        (
            ["objective.distill.teacher=/nowhere/x"],
            "objective.distill.teacher",
            "an existing folder, but is '/now",
        ),
        (
            ["model=tiny", "objective.distill.teacher=tiny", "objective.distill.top=265", "data.seq_len=256"],
            "objective.distill.top",
            "share (264), but is 265 instead. Set objective.distill.top=64.",
        ),
        (["data.seq_len=262144"], "objective.distill.teacher", "is for 131072 instead"),
    ],
)
def test_what_the_files_of_a_teacher_say_against_a_run(words, key, said):
    config = compose_config([*WORDS, *words])
    (found,) = teacher_problems(config, Needs(tokenizer=False, weights=False))
    assert found.key == key and said in found.sentence


def test_rounds_are_told_with_what_they_take():
    rounds = "objective.distill.on_policy"
    words = ("objective=distill_on_policy", f"{rounds}.max_new_tokens=256", f"{rounds}.batch_size=8")
    _, first, gathers, kept = notes(*words, f"{rounds}.steps_per_round=4", "data.seq_len=2048")
    assert "before every 4 steps the student answers all prompts of them, each in at most 256 tokens" in first
    # Keys and values of 16 layers, 8 heads of 64, 2 bytes, 2,048 tokens, 8 answers.
    assert f"{2 * 16 * 8 * 64 * 2 * 2048 * 8 / 2**30:.2f} GiB of keys and values" in first
    assert "zero.stage=2 samples without" in gathers and "about 6 bytes a sampled token" in kept
    assert not any("zero.stage=2 samples" in one for one in notes(*words, "zero=zero1"))
