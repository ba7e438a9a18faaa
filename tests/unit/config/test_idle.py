"""Words that change nothing are said."""

import pytest

from trainer.config.describe import fields
from trainer.config.idle import FOR_SOME, replaced, without_use
from trainer.config.store import compose_config, load_config, say_too_late, to_yaml


def test_a_word_that_a_later_one_takes_the_place_of_is_said(capsys):
    compose_config(["recipe=lora", "seed=1", "recipe=qlora", "seed=1"])
    said = capsys.readouterr().err
    assert "recipe=lora changes nothing: recipe=qlora comes after it.\n" in said and "seed" not in said
    assert not [*replaced(["data.sources={a: {path: x}}", "data.sources={b: {path: y}}"])], "both are taken"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("tune=ia3 tune.r=8", "tune.r changes nothing with tune.method=ia3: it is for lora."),
        (
            "tune=lora tune.virtual_tokens=9",
            "tune.virtual_tokens changes nothing with tune.method=lora: it is for prefix and prompt.",
        ),
        (
            "schedule=cosine schedule.decay_frac=0.2",
            "schedule.decay_frac changes nothing with schedule.name=cosine: it is for wsd and infinite.",
        ),
        ("tune=lora tune.r=8", ""),
        ("tune=ia3 tune.target=[k_proj,v_proj,down_proj]", ""),
        ("schedule=wsd schedule.decay_frac=0.2", ""),
    ],
)
def test_a_key_of_another_choice_is_said(words, line):
    words = words.split()
    assert [*without_use(compose_config(words), words)] == ([line] if line else [])


def test_a_word_of_the_training_is_said_to_a_command_that_comes_after_it(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text(to_yaml(compose_config(["optim.lr=0.5"])))
    capsys.readouterr()
    say_too_late(tmp_path / "config.yaml", ["optim.lr=1", "evaluate.micro_batch_size=2"], "evaluate")
    assert capsys.readouterr().err == (
        "optim.lr changes nothing of `palimpsest evaluate`: the run was trained with 0.5.\n"
    )
    load_config(tmp_path / "config.yaml", ["seed=1", "seed=2"])
    assert "seed=1 changes nothing" in capsys.readouterr().err


def test_meanings_that_name_choices_are_found():
    """The rule reads docstrings: were they worded otherwise it would fall silent."""
    found = [key for key, field in fields().items() if FOR_SOME.match(field.meaning)]
    assert len([key for key in found if key.startswith("tune.")]) > 9
