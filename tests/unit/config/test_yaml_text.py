"""YAML that stands for far more than it says is refused with the name of its file, before anything is made of it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.helpers.ranks import ROOT
from trainer.config.options import read_option
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.config.yaml_text import MOST_DEPTH, MOST_VALUES, TooMuch, measure, plain
from trainer.errors import ConfigError, TrainerError
from trainer.evaluate.tasks.task_files import refuse_too_much
from trainer.report.record import _mapping

TEN_OF = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))
BOMB = f"a0: &a0 [x]\n{TEN_OF}\n"
"""Ten thousand million values in ten lines."""
TOO_MUCH = {
    "a bomb": (BOMB, "more than 50,000 values"),
    "a bomb of mappings": (
        "a: &a {k: v}\n"
        + "".join(
            f"{b}: &{b} {{x: *{a}, y: *{a}, z: *{a}}}\n"
            for a, b in zip("abcdefghijkl", "bcdefghijklm", strict=True)
        ),
        "more than 50,000 values",
    ),
    "what holds itself": ("a: &a [1, *a]\n", "an alias *a of what it stands in"),
    "what is deep": ("a: " + "[" * 60, "more than 50 mappings and lists"),
    "what is deeper than the parser goes": ("a: " + "[" * 100_000, "exceeded maximum nesting depth"),
    "what is deep in blocks": (
        "".join(f"{' ' * n}k:\n" for n in range(600)),
        "more than 50 mappings and lists",
    ),
    "what is deep by aliases": (
        "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 60)),
        "more than 50 mappings and lists",
    ),
}


@pytest.mark.parametrize("kind", TOO_MUCH)
@pytest.mark.parametrize(
    "read", [load_config, lambda path: read_option("optim", path), _mapping], ids=["run", "option", "record"]
)
def test_a_file_that_comes_to_too_much_is_named(tmp_path, read, kind):
    text, said = TOO_MUCH[kind]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(TrainerError) as error:
        read(path)
    assert str(path) in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("read", [load_config, lambda path: read_option("optim", path), _mapping])
def test_a_file_of_50_mb_is_named(tmp_path, read):
    path = tmp_path / "mine.yaml"
    with path.open("wb") as file:
        file.write(b"lr: [1, 2, ")
        file.truncate(50_000_000)
    with pytest.raises(TrainerError, match=r"mine\.yaml.* has more than 1,048,576 bytes"):
        read(path)


def test_hydra_does_not_meet_an_option_of_a_persons_own_before_it_was_measured(tmp_path):
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").write_text(BOMB)
    with pytest.raises(
        ConfigError, match=r"optim/mine\.yaml must be an option of a group, but comes to more than"
    ):
        compose_config([f"hydra.searchpath=[{tmp_path}]", "optim=mine"])


@pytest.mark.parametrize("value", ["[" * 3000, "[" * 300 + "]" * 300, "{a: " * 3000, "&a [*a]", "x(" * 99])
def test_a_word_that_comes_to_too_much_is_refused_with_its_key(tmp_path, value):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(compose_config(["model=tiny"])))
    for read in (compose_config, partial(load_config, path)):
        with pytest.raises(ConfigError, match=r"`data\.sources\.x\.path` must"):
            read([f"data.sources.x.path={value}"])


def test_lm_eval_does_not_meet_a_task_file_before_it_was_measured(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1\n")  # what lm-eval passes over
    refuse_too_much(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "task.yaml").write_text(BOMB)
    with pytest.raises(ConfigError, match=r"deep/task\.yaml comes to more than 50,000 values"):
        refuse_too_much(tmp_path)


def test_values_are_counted_as_they_come_out_and_what_is_within_the_bounds_is_read():
    text = "a: &a [1, 2]\nb: [*a, *a, &x 7, *x]\nc: {<<: {k: *a}, d: *a}\n"
    assert (
        plain(text)
        == yaml.safe_load(text)
        == {
            "a": [1, 2],
            "b": [[1, 2], [1, 2], 7, 7],
            "c": {"k": [1, 2], "d": [1, 2]},
        }
    )
    # 1 mapping; a and [1, 2] are 4; b and its list 2, aliases of 3 and 3, 7 twice; c and its mapping 2, << and {k: } 3,
    # the alias 3, d and the alias 4.
    count = 1 + 4 + 10 + 12
    measure(text, count)
    with pytest.raises(TooMuch, match=f"more than {count - 1} values"):
        measure(text, count - 1)
    plain("[" * MOST_DEPTH + "]" * MOST_DEPTH)
    with pytest.raises(TooMuch):
        plain("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1))
    assert len(plain("- 1\n" * (MOST_VALUES - 1))) == MOST_VALUES - 1


def test_no_other_place_reads_yaml():
    reads = re.compile(
        r"yaml\.(safe_|full_|unsafe_)?load(_all)?\(|OmegaConf\.load\((?!io\.StringIO\(_unsealed)"
    )
    found = [
        str(path.relative_to(ROOT))
        for path in sorted(Path(ROOT, "trainer").rglob("*.py"))
        if reads.search(path.read_text())
    ]
    assert found == ["trainer/config/yaml_text.py"]
