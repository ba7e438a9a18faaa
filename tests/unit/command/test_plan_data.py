"""`palimpsest plan data`: what it says of losses that are given, its words, and how it is called."""

import json

import pytest

from trainer.command.data_report import DataPlanReport
from trainer.command.invocation import parse
from trainer.command.plan_data import show_data_plan
from trainer.command.plan_probes import probe_notes
from trainer.config.data import Role
from trainer.config.model import ModelKind
from trainer.config.plan import MIN_WINDOWS
from trainer.config.schema import RunConfig
from trainer.config.store import compose_config
from trainer.config.train import ProbeChoice
from trainer.errors import ConfigError
from trainer.evaluate.shift import TextLoss


def loss(name, bits, documents=(2.0,) * 9):
    low, high = (bits - 0.1, bits + 0.1) if len(documents) >= MIN_WINDOWS else (None, None)
    return TextLoss(name, 3.0, bits / 2, low, high, len(documents), 90, 900, documents, bits, low, high)


def report(sources, roles=None, **others):
    found = {name: loss(name, bits) for name, bits in sources.items()} | others
    roles = roles or dict.fromkeys(found, Role.target)
    has_replay = Role.replay in roles.values()
    probes = {"Plain prose": loss("Plain prose", 2.0)}
    return DataPlanReport(found, roles, probes, probes["Plain prose"], [("a", "b", 3)], has_replay)


def test_one_strong_source_makes_the_shift_strong_and_the_words_say_so():
    """1.5 and 0.95 times general text; the replay of a run that has some is not named again.

    The interval, 2.9 to 3.1 over 1.9 to 2.1: ln(3/2.9) and ln(2.1/2) are 0.0339 and 0.0488, whose squares make 0.0594;
    ln(3.1/3) and ln(2/1.9) 0.0328 and 0.0513, so 0.0609.
    """
    found = report({"a": 3.0, "b": 1.9})
    assert found.words == "replay=generated_text replay.ratio=0.25"
    said = " ".join(found.sentences())
    assert "a: a strong shift. A letter of it costs the base 1.50 times (1.41 to 1.59)" in said
    assert (
        "b: a weak shift" in said
        and "a and b share 3 documents" in said
        and "25 % of what is learnt (Ibrahim" in said
    )
    old = report({"a": 1.9, "old": 9.0}, {"a": Role.target, "old": Role.replay})
    assert old.words == "replay.ratio=0.05" and "old: a" not in " ".join(old.sentences())
    assert "asks for: 5 % of" in " ".join(old.sentences()) and "without any replay" in " ".join(
        old.sentences()
    )
    assert json.loads(json.dumps(old.to_plain()))["sources"]["old"]["shift"] is None
    assert old.to_plain()["sources"]["a"]["shift"]["kind"] == old.to_plain()["shift"] == "weak"


def test_what_is_known_already_and_what_has_no_interval_is_said():
    """Half of general text is 1.0: two documents of four are below."""
    found = report({"a": 1.9}, few=loss("few", 1.5, (0.9, 0.5, 1.1, 3.0)))
    said = " ".join(found.sentences())
    assert "few: 2 of 4 documents cost less than 50% of general text" in said
    assert "few has no interval: it takes 5 documents." in said and "too few documents to tell" in said


@pytest.mark.parametrize(("place", "says"), [("no/such/x.json", "has no folder"), ("", "is a folder")])
def test_a_place_that_cannot_be_written_to_is_refused_before_the_base_is_asked(tmp_path, place, says):
    config = RunConfig()
    config.plan.data_output = str(tmp_path / place)
    config.model.kind = ModelKind.tiny
    with pytest.raises(ConfigError, match=rf"`plan.data_output` must be a file .*{says}"):
        show_data_plan(config)


def test_plan_is_a_command_with_and_without_its_second_word():
    assert parse(["plan", "model=tiny"]).command == parse(["plan"]).command == "plan"
    found = parse(["plan", "data", "model=tiny", "--cfg"])
    assert (found.command, found.overrides, found.show_config) == ("plan data", ["model=tiny"], True)
    with pytest.raises(ConfigError, match="Did you mean `plan data`"):
        parse(["plan", "date"])


def test_few_windows_are_refused():
    from trainer.config.check import find_problems

    config = compose_config(["model=tiny", "plan.data_windows=4"])
    assert [one for one in find_problems(config) if one.key == "plan.data_windows"]


@pytest.mark.parametrize(
    ("steps", "choice", "said"),
    [
        (
            None,
            ProbeChoice.auto,
            "where that is more than 2% of the run, evaluate.probes=auto leaves them out",
        ),
        (1, ProbeChoice.auto, "too much for evaluate.probes=auto (2%): none is read"),
        (1, ProbeChoice.all, "% of the computation of the training."),
        (
            1000,
            ProbeChoice.auto,
            "are read 4 times, 0.011 % of the computation of the training. With 9 evaluations between, 0.036 % ",
        ),
    ],
)
def test_a_plan_says_what_probes_cost(steps, choice, said):
    """131,072 tokens a step: 4 / 3 x 10,769 / 131,072,000 is 0.011 %."""
    config = RunConfig()
    config.train.max_steps, config.evaluate.probes = steps, choice
    (note,) = probe_notes(config)
    assert said in note and ("none is read" in note) is (said.endswith("none is read"))


def test_a_plan_without_probes_says_nothing_of_them():
    config = RunConfig()
    config.evaluate.probes = ProbeChoice.none
    assert probe_notes(config) == []
