"""What a run read, compared with what is about to be read: everything that differs is named."""

import copy
import json

import pytest

from trainer.config.record import read_inputs, refuse_other_inputs
from trainer.errors import DataError

SOURCE = {"store": "s1", "origin": ["jsonl:abc"], "options": {"seq_len": 64, "clean": {"strip": True}}}
INPUTS = {"data": {"chat": SOURCE}, "tokenizer": "t1", "base": "b1"}


@pytest.fixture
def run_dir(tmp_path):
    (tmp_path / "provenance.json").write_text(json.dumps({"device": "cpu", "inputs": INPUTS}))
    return tmp_path


def changed(**changes):
    return {"chat": copy.deepcopy(SOURCE) | changes}


def refusal(run_dir, *arguments, **named):
    with pytest.raises(
        DataError, match="must be given the data and the model that it was trained with"
    ) as caught:
        refuse_other_inputs(run_dir, *arguments, **named)
    return str(caught.value)


def test_the_same_inputs_are_taken_wherever_the_directory_is(run_dir, tmp_path):
    refuse_other_inputs(run_dir, {"chat": SOURCE}, "t1", "b1")
    refuse_other_inputs(run_dir)
    moved = run_dir.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    refuse_other_inputs(moved, {"chat": SOURCE}, "t1", "b1")


def test_other_files_options_tokenizer_and_base_are_named(run_dir):
    assert "`data.sources.chat` holds other data" in refusal(run_dir, changed(store="s2", origin=["jsonl:x"]))
    options = {"seq_len": 32, "clean": {"strip": False}}
    assert "with other options (clean.strip, seq_len)" in refusal(
        run_dir, changed(store="s2", options=options)
    )
    assert "the tokenizer or its chat template" in refusal(run_dir, tokenizer="t2")
    assert "the weights of the base (`model.path`)" in refusal(run_dir, base="b2")
    message = refusal(run_dir, changed(store="s2"), "t2")
    assert "the tokenizer" in message and "data.sources.chat" not in message, "one cause is named once"
    assert "read with another tokenizer" in refusal(run_dir, changed(store="s2"))


def test_sources_that_the_run_did_not_have_are_no_matter(run_dir):
    refuse_other_inputs(run_dir, {"probe": SOURCE | {"store": "s9", "origin": []}})


def test_a_base_that_was_not_recorded_is_not_compared(run_dir):
    (run_dir / "provenance.json").write_text(json.dumps({"inputs": INPUTS | {"base": None}}))
    refuse_other_inputs(run_dir, base="b2")


def test_a_directory_without_a_record_has_nothing_to_compare(tmp_path):
    assert read_inputs(tmp_path) is None
    refuse_other_inputs(tmp_path, {"chat": SOURCE}, "t2", "b2")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"inputs": {"data": 1}}', '{"inputs": {"data": {}}}'])
def test_a_record_that_cannot_be_read_is_a_sentence(text, tmp_path):
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(DataError, match=r"provenance\.json must say what the run read, but cannot be read"):
        refuse_other_inputs(tmp_path, base="b1")
