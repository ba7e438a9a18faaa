"""Rules about reward models: what asks a language model's output layer is refused, and so is one half of the choice."""

import dataclasses
import math

import pytest

from trainer.config.check import find_problems
from trainer.config.data import Role, SourceConfig
from trainer.config.model import ModelHead
from trainer.config.objective import ObjectiveKind
from trainer.config.reward import RewardConfig
from trainer.config.store import compose_config

WORDS = ("recipe=reward", "model=tiny", "data=preference", "data.sources.pairs.path=/data/x.jsonl")


@pytest.fixture(scope="module")
def composed():
    return compose_config([*WORDS])


def with_sources(config, sources):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))


def keys(config):
    return [problem.key for problem in find_problems(config)]


def test_a_recipe_of_a_reward_model_passes_and_turns_off_what_asks_a_language_model(composed):
    assert keys(composed) == []
    assert composed.objective.kind is ObjectiveKind.reward and composed.model.head is ModelHead.score
    assert not composed.evaluate.forgetting and not composed.evaluate.during.kl


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["evaluate.forgetting=true"], "evaluate.forgetting"),
        (["evaluate.forgetting=true", "evaluate.during.kl=true"], "evaluate.during.kl"),
        (["evaluate.during.tasks=[arc_easy]"], "evaluate.during.tasks"),
        (["evaluate.during.samples.num=2"], "evaluate.during.samples.num"),
        (["evaluate.recovery_steps=5"], "evaluate.recovery_steps"),
        (["tune=prompt", "zero=zero1"], "tune.method"),
        (["tune=qlora", "zero=zero1"], "tune.quantise"),
        (["tune=lora", "model.new_tokens=[<a>]"], "model.new_tokens"),
        (["export.alpha=0.5"], "export.alpha"),
        (["export.gguf=f16"], "export.gguf"),
        (["objective.reward.centre=-1"], "objective.reward.centre"),
        (["objective.preference.beta=0.2"], "objective.preference.beta"),
        (["model.head=language"], "model.head"),
        (["train.sequence_parallel=2"], "objective.kind"),
    ],
)
def test_what_a_reward_model_cannot_go_with_is_named(words, key):
    found = {problem.key: problem.sentence for problem in find_problems(compose_config([*WORDS, *words]))}
    assert key in found and "instead" in found[key], found


def test_a_source_without_pairs_is_refused_replay_too(composed):
    replay = SourceConfig(role=Role.replay, path="x.jsonl")
    config = with_sources(composed, composed.data.sources | {"old": replay})
    (problem,) = find_problems(config)
    assert problem.sentence == (
        "`data.sources.old.format` must be preference with objective=reward, which learns scores from pairs and "
        "nothing else, but is 'text' instead. Set data=preference where rows hold prompt, chosen and rejected, or "
        "leave old out."
    )


def test_a_score_without_the_objective_is_refused_and_so_are_its_options():
    words = ("recipe=full_finetune", "model=tiny", "data=text", "data.sources.corpus.path=/data/x.jsonl")
    assert keys(compose_config([*words, "model.head=score"])) == ["model.head"]
    assert keys(compose_config([*words, "objective.reward.centre=0.01"])) == ["objective.reward.centre"]


@pytest.mark.parametrize("centre", [math.nan, math.inf])
def test_a_weight_of_the_centring_is_a_number(composed, centre):
    objective = dataclasses.replace(composed.objective, reward=RewardConfig(centre=centre))
    config = dataclasses.replace(composed, objective=objective)
    assert keys(config) == ["objective.reward.centre"]


def test_a_column_of_margins_is_named_only_where_it_is_read(composed):
    (name, source) = next(iter(composed.data.sources.items()))
    named = dataclasses.replace(source, columns=dataclasses.replace(source.columns, margin="gap"))
    assert keys(with_sources(composed, {name: named})) == []
    of_dpo = compose_config(["recipe=dpo", *WORDS[1:]])
    config = with_sources(of_dpo, {name: named})
    assert keys(config) == [f"data.sources.{name}.columns.margin"]
