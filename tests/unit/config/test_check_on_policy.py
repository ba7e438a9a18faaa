"""Rules about rounds of answers: each names its key, what is wrong and what to set."""

import dataclasses

import pytest

from trainer.config.check import find_problems
from trainer.config.data import ColumnsConfig, Format, Role
from trainer.config.distill import DivergenceKind, OnPolicyConfig
from trainer.config.objective import ObjectiveConfig, ObjectiveKind
from trainer.config.replay import RatioController, ReplayChoice
from trainer.config.snapshot import config_digest
from trainer.config.store import compose_config
from trainer.config.tune import TuneMethod

KEY = "objective.distill.on_policy"
WORDS = (
    *("objective=distill_on_policy", "model=tiny", "data=chat", "data.sources.chat.path=/data/x.jsonl"),
    *("train.max_steps=1", "objective.distill.teacher=/models/larger"),
)


@pytest.fixture(scope="module")
def composed():
    return compose_config([*WORDS])


def with_rounds(config, **options):
    rounds = dataclasses.replace(config.objective.distill.on_policy, **options)
    distill = dataclasses.replace(config.objective.distill, on_policy=rounds)
    return dataclasses.replace(config, objective=dataclasses.replace(config.objective, distill=distill))


def told(config):
    return {one.key: one.sentence for one in find_problems(config)}


def test_the_option_is_reverse_kl_on_answers_to_all_prompts(composed):
    assert told(composed) == {}
    distill = composed.objective.distill
    assert (distill.divergence, distill.cached) == (DivergenceKind.reverse, False)
    assert distill.on_policy == OnPolicyConfig(share=1.0) and composed.objective.has_rounds
    assert "before every step the student answers all prompts of it" in distill.told(False)
    some = with_rounds(composed, share=0.25, steps_per_round=4).objective.distill
    assert "before every 4 steps the student answers 0.25 of the prompts of them" in some.told(False)


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"share": 1.5}, "share", "in [0, 1]: a share of the prompts, but is 1.5 instead. Set 1"),
        ({"steps_per_round": 0}, "steps_per_round", "at least 1, but is 0 instead. Set 1."),
        ({"batch_size": 0}, "batch_size", "at least 1, but is 0 instead. Set 16."),
        ({"max_new_tokens": 0}, "max_new_tokens", "at least 1 and below data.seq_len=2048"),
        (
            {"max_new_tokens": 2048},
            "max_new_tokens",
            f"is 2048 instead. Set {KEY}.max_new_tokens=1024, or raise",
        ),
        ({"temperature": 0.0}, "temperature", "a finite number above 0, but is 0.0 instead. Set 1."),
        ({"share": 0.0, "batch_size": 4}, "batch_size", f"16 with {KEY}.share=0, where nothing is sampled"),
    ],
)
def test_numbers_out_of_range_are_said_with_their_fix(composed, options, key, words):
    found = told(with_rounds(composed, **options))
    assert list(found) == [f"{KEY}.{key}"]
    assert found[f"{KEY}.{key}"].startswith(f"`{KEY}.{key}` must be ") and words in found[f"{KEY}.{key}"]


def test_what_rounds_do_not_go_with_is_refused(composed):
    cached = dataclasses.replace(composed.objective.distill, cached=True)
    objective = dataclasses.replace(composed.objective, distill=cached)
    found = told(dataclasses.replace(composed, objective=objective))
    assert "nobody knows before the run what the student will say" in found["objective.distill.cached"]
    replay = dataclasses.replace(composed.replay, controller=RatioController.hold, choice=ReplayChoice.losing)
    found = told(dataclasses.replace(composed, replay=replay))
    assert (
        "must be none with" in found["replay.controller"] and "must be uniform with" in found["replay.choice"]
    )
    virtual = dataclasses.replace(composed.tune, method=TuneMethod.prompt)
    assert "one without virtual tokens" in told(dataclasses.replace(composed, tune=virtual))["tune.method"]
    zero = dataclasses.replace(composed.zero, expert_parallel=2)
    assert "must be 1 with" in told(dataclasses.replace(composed, zero=zero))["zero.expert_parallel"]
    train = dataclasses.replace(composed.train, sequence_parallel=2)
    assert "objective.kind" in told(dataclasses.replace(composed, train=train))


def test_a_source_without_prompts_is_refused_and_may_be_replay(composed):
    def with_source(**changes):
        source = dataclasses.replace(composed.data.sources["chat"], **changes)
        sources = {"chat": composed.data.sources["chat"], "more": source}
        return told(dataclasses.replace(composed, data=dataclasses.replace(composed.data, sources=sources)))

    place = "data.sources.more.format"
    for kind in (Format.text, Format.ids):
        found = with_source(format=kind)
        assert "where all is learnt there is no prompt to answer" in found[place], kind
        assert place not in with_source(format=kind, role=Role.replay)
    assert place not in with_source(format=Format.ids, columns=ColumnsConfig(loss_mask="mask"))


def test_options_that_nobody_reads_are_refused_and_decide_nothing(composed):
    plain = dataclasses.replace(composed, objective=ObjectiveConfig())
    found = told(with_rounds(plain, share=1.0))
    assert found.keys() == {f"{KEY}.share"} and "0 with objective=causal_lm" in found[f"{KEY}.share"]
    offline = with_rounds(composed, share=0.0)
    assert offline.objective.kind is ObjectiveKind.distill
    assert (
        config_digest(with_rounds(offline, batch_size=4)) == config_digest(offline) != config_digest(composed)
    )
