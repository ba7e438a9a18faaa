"""Whether the data that a run read is there as it was, without preparing it again: what export and verify ask."""

import io
import json
import os

import pytest
from rich.console import Console

from tests.helpers.tiny import tiny_config, write_documents
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.record import refuse_other_inputs
from trainer.data.prepare import prepare
from trainer.errors import DataError
from trainer.run.identity import data_now


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def config(tmp_path, tokenizer):
    """Return the configuration of a run that has read its two sources."""
    found = tiny_config(tmp_path)
    for name in ("chat", "text"):
        write_documents(tmp_path / f"{name}.jsonl", 20, 3, ragged=name == "chat")
    stores = prepare(found.data, tokenizer, make_tokenizer, None, Console(file=io.StringIO()))
    inputs = {
        "data": {name: store.described for name, store in stores.items()},
        "tokenizer": "t",
        "base": None,
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "provenance.json").write_text(json.dumps({"inputs": inputs}))
    return found


def test_the_same_bytes_are_the_same_data_whatever_their_times(config, tokenizer, tmp_path):
    assert data_now(config, tokenizer) == ({}, [])
    os.utime(tmp_path / "chat.jsonl", ns=(1, 1))
    assert data_now(config, tokenizer) == ({}, [])


def test_a_row_more_and_a_changed_line_are_other_data(config, tokenizer, tmp_path):
    file = tmp_path / "chat.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for changed in ([*lines, lines[0]], [lines[1], *lines[1:]]):
        file.write_text("".join(changed))
        found, untold = data_now(config, tokenizer)
        assert list(found) == ["chat"] and untold == []
        with pytest.raises(DataError, match=r"but `data\.sources\.chat` holds other data\. Bring back"):
            refuse_other_inputs(tmp_path / "run", found)


def test_data_that_is_not_here_is_said_and_not_taken_for_other_data(config, tokenizer, tmp_path):
    (tmp_path / "text.jsonl").unlink()
    found, (said,) = data_now(config, tokenizer)
    assert found == {} and said.startswith("`data.sources.text` is not compared with what the run read: ")
    assert "text.jsonl" in said
