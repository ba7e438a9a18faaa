"""Rules about learning from a teacher: each names its key, what is wrong and what to set."""

import dataclasses

import pytest

from trainer.config.check import find_problems
from trainer.config.data import Format, Role
from trainer.config.distill import DistillConfig, DivergenceKind
from trainer.config.model import ModelKind
from trainer.config.objective import ObjectiveConfig, ObjectiveKind
from trainer.config.snapshot import asked_digest, config_digest
from trainer.config.store import compose_config
from trainer.config.teacher import distilled, of_teacher, teacher_model

KEY = "objective.distill"
WORDS = (
    *("objective=distill", "model=tiny", "data=text", "data.sources.corpus.path=/data/x.jsonl"),
    *("train.max_steps=1", f"{KEY}.teacher=/models/larger"),
)


@pytest.fixture(scope="module")
def composed():
    return compose_config([*WORDS])


def told(config, **options):
    distill = dataclasses.replace(config.objective.distill, **options)
    objective = dataclasses.replace(config.objective, distill=distill)
    return {one.key: one.sentence for one in find_problems(dataclasses.replace(config, objective=objective))}


def test_a_teacher_alone_is_enough(composed):
    assert told(composed) == {}
    assert composed.objective.distill == DistillConfig(teacher="/models/larger")


@pytest.mark.parametrize(
    ("options", "key", "words"),
    [
        ({"teacher": ""}, "teacher", "must be a model with objective=distill, but is '' instead. Set"),
        ({"top": 0}, "top", "must be at least 1, but is 0 instead. Set 64."),
        ({"temperature": 0.0}, "temperature", "must be a finite number above 0, but is 0.0 instead. Set 1."),
        ({"temperature": -1.0}, "temperature", "but is -1.0 instead"),
        ({"divergence": DivergenceKind.jsd, "jsd_beta": 1.2}, "jsd_beta", "must be in [0, 1]"),
        ({"divergence": DivergenceKind.jsd, "jsd_beta": -0.1}, "jsd_beta", "but is -0.1 instead. Set 0.5"),
        ({"jsd_beta": 0.3}, "jsd_beta", "left out with divergence=forward"),
        ({"weight": 0.0}, "weight", "objective=causal_lm to learn without a teacher"),
        ({"cross_entropy": -1.0}, "cross_entropy", "must be 0 (off) or a finite number above it"),
    ],
)
def test_what_cannot_be_is_said_with_its_fix(composed, options, key, words):
    found = told(composed, **options)
    assert list(found) == [f"{KEY}.{key}"]
    assert found[f"{KEY}.{key}"].startswith(f"`{KEY}.{key}` must be ") and words in found[f"{KEY}.{key}"]


def test_the_ends_of_the_mixture_are_allowed(composed):
    for beta in (0.0, 1.0):
        assert told(composed, divergence=DivergenceKind.jsd, jsd_beta=beta) == {}


def with_source(config, **changes):
    source = dataclasses.replace(config.data.sources["corpus"], **changes)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources={"corpus": source}))


def test_pairs_are_not_distilled_and_something_has_to_be(composed):
    pairs = told(with_source(composed, format=Format.preference, as_chat=True))
    assert "text, completion, chat or ids for objective=distill" in pairs["data.sources.corpus.format"]
    replayed = told(with_source(composed, role=Role.replay))
    assert "target for some source with objective=distill" in replayed["data.sources.corpus.role"]


def test_the_base_is_no_second_teacher(composed):
    replay = dataclasses.replace(composed.replay, kl=dataclasses.replace(composed.replay.kl, beta=0.5))
    assert "0 with objective=distill" in told(dataclasses.replace(composed, replay=replay))["replay.kl.beta"]


def test_options_of_a_teacher_that_nobody_reads_are_refused_and_decide_nothing(composed):
    plain = dataclasses.replace(composed, objective=ObjectiveConfig())
    found = told(plain, teacher="/models/larger", top=8, divergence=DivergenceKind.reverse)
    assert list(found) == [f"{KEY}.teacher", f"{KEY}.top", f"{KEY}.divergence"]
    assert "64 with objective=causal_lm, which does not read it, but is 8 instead" in found[f"{KEY}.top"]
    other = ObjectiveConfig(distill=DistillConfig(top=8))
    changed = dataclasses.replace(plain, objective=other)
    assert config_digest(changed) == config_digest(plain) and asked_digest(changed) == asked_digest(plain)
    of_run = [dataclasses.replace(one, kind=ObjectiveKind.distill) for one in (ObjectiveConfig(), other)]
    first, second = (config_digest(dataclasses.replace(composed, objective=one)) for one in of_run)
    assert first != second, "a run that reads them is another one"


def test_a_teacher_is_named_as_a_model_is(composed):
    def named(teacher):
        return teacher_model(DistillConfig(teacher=teacher, teacher_revision="abc"), composed.model)

    assert named("smollm2_135m").kind is ModelKind.embedded
    shipped = named("llama3_1_8b")
    assert (shipped.kind, shipped.path) == (ModelKind.pretrained, "meta-llama/Llama-3.1-8B")
    folder = named("/models/larger")
    assert (folder.kind, folder.path, folder.revision) == (ModelKind.pretrained, "/models/larger", "abc")
    assert named("benchmark").path == "benchmark", "random weights teach nothing: it is taken for a name"
    assert of_teacher("`model.path` must be a model. Name another model.path.") == (
        f"`{KEY}.teacher` must be a model. Name another {KEY}.teacher."
    )


def test_targets_are_distilled_and_nothing_else(composed):
    source = composed.data.sources["corpus"]
    roles = {"a": Role.replay, "b": Role.target, "c": Role.probe, "d": Role.target}
    sources = {name: dataclasses.replace(source, role=role) for name, role in roles.items()}
    assert distilled(sources) == {1, 3}
