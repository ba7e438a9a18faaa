"""A teacher's tokenizer against the student's: the same ids on what both write, and what only one has is not used."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import LlamaConfig

from tests.helpers.tiny import SHAPE, tiny_config
from trainer.config.distill import DistillConfig
from trainer.config.objective import ObjectiveConfig, ObjectiveKind
from trainer.errors import ModelError
from trainer.model.tiny import build_tokenizer
from trainer.model.tokenizer import configured_tokenizer
from trainer.run.teacher_ids import check_teacher_tokenizer, check_used_ids

ROWS = 264


def save(folder, tokenizer, num_rows=ROWS):
    LlamaConfig(vocab_size=num_rows, **SHAPE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def checked(folder, teacher, new_tokens=()):
    config = tiny_config(folder)
    config.model.new_tokens = list(new_tokens)
    config.objective = ObjectiveConfig(ObjectiveKind.distill, distill=DistillConfig(teacher=teacher))
    ours = configured_tokenizer(config.model, config.model.path)
    return check_teacher_tokenizer(config, ours)


@pytest.fixture
def student(tmp_path):
    save(tmp_path / "model", build_tokenizer())
    return tmp_path


def split_of(*packs):
    return SimpleNamespace(num_packs=len(packs), pack=lambda i: SimpleNamespace(tokens=np.array(packs[i])))


def test_the_same_tokenizer_differs_nowhere_and_rows_behind_it_are_no_difference(student):
    for num_rows in (ROWS, ROWS + 56):
        found = checked(student, save(student / f"rows-{num_rows}", build_tokenizer(), num_rows))
        assert found.tokens == {} and found.num_ids == ROWS
    check_used_ids(found, {"a": split_of([1, ROWS - 1])}, ["a"])


def test_ordinary_tokens_with_other_ids_are_refused_with_the_first_of_them(student):
    teacher = student / "swapped"
    save(teacher, build_tokenizer())
    file = teacher / "tokenizer.json"
    tree = json.loads(file.read_text())
    vocab = tree["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    file.write_text(json.dumps(tree))
    low = min(vocab["a"], vocab["b"])
    with pytest.raises(ModelError) as caught:
        checked(student, str(teacher))
    said = str(caught.value)
    assert said.startswith("`objective.distill.teacher` must be a model with the student's tokenizer, but ")
    assert f"has 'b' as id {low} and the student 'a' (2 of 264 ids differ)" in said
    assert said.endswith("sequence distillation).")


def test_a_special_token_that_moved_is_refused(student):
    teacher = build_tokenizer()
    theirs = student / "moved"
    save(theirs, teacher)
    file = theirs / "tokenizer.json"
    names = {one["content"]: one["id"] for one in json.loads(file.read_text())["added_tokens"]}
    first, second = sorted(names, key=names.get)[:2]
    text = file.read_text().replace(json.dumps(first), '"@"').replace(json.dumps(second), json.dumps(first))
    file.write_text(text.replace('"@"', json.dumps(second)))
    with pytest.raises(ModelError, match=r"has .* as id \d+ and the student '<.*>' \(\d of 264"):
        checked(student, str(theirs))


def test_a_token_that_only_one_has_is_refused_where_the_data_uses_it(student):
    """The student's has an id that is a padded row to the teacher, which has rows enough."""
    teacher = save(student / "wide", build_tokenizer(), ROWS + 8)
    shutil.rmtree(student / "model")
    save(student / "model", build_tokenizer(), ROWS + 8)
    found = checked(student, teacher, new_tokens=["<tool>"])
    ((number, tokens),) = found.tokens.items()
    assert number == len(build_tokenizer()) and tokens == ("<tool>", None) and found.num_ids == ROWS + 8
    check_used_ids(found, {"a": split_of([5, 6])}, ["a"])
    check_used_ids(found, {"a": split_of([5]), "old": split_of([number])}, ["a"])
    with pytest.raises(
        ModelError, match=f"data.sources.a has the id {number}, which is '<tool>' to the student"
    ):
        check_used_ids(found, {"a": split_of([5], [6, number])}, ["a"])


def test_an_id_that_the_teacher_has_no_row_for_is_refused(student):
    shutil.rmtree(student / "model")
    save(student / "model", build_tokenizer(), ROWS + 8)
    found = checked(student, save(student / "narrow", build_tokenizer()))
    assert found.tokens == {} and (found.num_ids, found.num_own) == (ROWS, ROWS + 8)
    with pytest.raises(
        ModelError, match=f"has the id {ROWS + 2}, which is no token to the student and no token"
    ):
        check_used_ids(found, {"a": split_of([ROWS + 2])}, ["a"])


def test_a_teacher_without_a_tokenizer_is_said_of_its_own_key(student):
    LlamaConfig(vocab_size=ROWS, **SHAPE).save_pretrained(student / "bare")
    with pytest.raises(ModelError) as caught:
        checked(student, str(student / "bare"))
    assert "objective.distill.teacher" in str(caught.value) and "model.path" not in str(caught.value)


def test_another_end_of_documents_is_said_and_allowed(student, caplog):
    tokenizer = build_tokenizer()
    others = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
    tokenizer.eos_token = others[0]
    with caplog.at_level("INFO"):
        assert checked(student, save(student / "instruct", tokenizer)).tokens == {}
    assert "The teacher's EOS token is the id" in caplog.text
