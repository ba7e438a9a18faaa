"""Texts of the package and of a person's folder: what is read, what is refused, and how they are laid out."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tests.helpers.tokenizers import make_tokenizer
from trainer.errors import DataError
from trainer.evaluate.compare import MIN_DOCUMENTS
from trainer.evaluate.probe_packs import ProbePacks
from trainer.evaluate.probe_texts import (
    MOST_BYTES,
    PROSE,
    ProbeTexts,
    ProbeTokens,
    encode_texts,
    folder_texts,
    packaged_texts,
    trained_on,
)


def test_every_kind_of_the_package_has_an_interval_and_is_told_from_the_others():
    found = {texts.kind: texts for texts in packaged_texts()}
    assert {"Conversation", "Maths with worked steps", PROSE, "Code: Python", "German", "Chinese"} <= set(
        found
    )
    assert len(found) == 18 and len([kind for kind in found if ":" not in kind]) == 16
    assert all(len(texts.rows) > MIN_DOCUMENTS for texts in found.values())
    texts = [row["text"] for kind in found.values() for row in kind.rows]
    assert len(set(texts)) == len(texts) and all(len(text) > 40 and "---" not in text for text in texts)


def test_conversations_are_rendered_where_there_is_a_template():
    tokenizer = make_tokenizer()
    (texts,) = (one for one in packaged_texts() if one.kind == "Conversation")
    found = encode_texts(texts, tokenizer)
    shown = tokenizer.decode(found.tokens[0].tolist())
    assert "houseplant" in shown and ("User:" in shown) is not tokenizer.has_chat_template


def test_a_file_is_a_kind_and_is_cut_at_empty_lines(tmp_path):
    (tmp_path / "laws.txt").write_text("a" * 900 + "\n\n" + "b" * 200 + "\n\n\n\n" + "c" * 10)
    (tmp_path / "chats.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "x"}]}) + "\n\n"
    )
    (tmp_path / ".hidden").write_bytes(b"\xff")
    (tmp_path / "folder").mkdir()
    chats, laws = folder_texts(str(tmp_path))
    assert (chats.kind, laws.kind) == ("chats.jsonl", "laws.txt") and "messages" in chats.rows[0]
    assert [row["text"] for row in laws.rows] == ["a" * 900 + "\n\n" + "b" * 200, "c" * 10]


def test_of_a_large_file_the_beginning_is_read(tmp_path):
    (tmp_path / "big.txt").write_text("\u00e4\n\n" * MOST_BYTES)
    (texts,) = folder_texts(str(tmp_path))
    assert (
        texts.note == "the first 64 kB of it"
        and len("".join(r["text"] for r in texts.rows).encode()) < MOST_BYTES
    )


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "must hold text files, but .* has none instead"),
        ({"x.txt": b"\xff\xfe"}, r"x.txt cannot be used instead: byte 0 is not UTF-8"),
        ({"x.txt": b" \n\n"}, r"x.txt cannot be used instead: it is empty"),
        ({"x.jsonl": b'{"text": "a"}\nno'}, "line 2 is not JSON"),
        ({"x.jsonl": b'{"words": "a"}'}, "line 1 has neither `text` nor `messages`"),
        ({f"{n}.txt": b"a" for n in range(65)}, "must hold at most 64 files"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_with_the_file(tmp_path, files, said):
    for name, raw in files.items():
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=f"`evaluate.probe_dir`.*{said}"):
        folder_texts(str(tmp_path))


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for name, state in (("file", "a file"), ("absent", "not there")):
        with pytest.raises(DataError, match=f"is {state} instead"):
            folder_texts(str(tmp_path / name))


def test_documents_that_are_trained_on_are_found():
    """The hash of a document is that which its store would keep of it."""
    tokenizer = make_tokenizer()
    found = encode_texts(ProbeTexts("k", ({"text": "one text"}, {"text": "another"})), tokenizer)
    other = encode_texts(ProbeTexts("o", ({"text": "another"}, {"text": "third"})), tokenizer)
    train = SimpleNamespace(document_hashes=lambda: np.sort(other.hashes))
    empty = SimpleNamespace(document_hashes=lambda: np.array([], np.uint64))
    assert trained_on(found, [SimpleNamespace(train=empty), SimpleNamespace(train=train)]) == 1


def test_conversations_without_a_template_say_so():
    bare = SimpleNamespace(has_chat_template=False)
    said = encode_texts(ProbeTexts("k", ({"messages": [{"role": "user", "content": "x"}]},)), bare)
    assert "the tokenizer has no chat template" in said


def probe(kind, *lengths):
    tokens = tuple(np.arange(length) for length in lengths)
    marks = tuple(np.ones(length, bool) for length in lengths)
    return ProbeTokens(kind, tokens, marks, tuple(lengths), np.arange(len(lengths)).astype(np.uint64))


def test_kinds_share_packs_and_a_long_document_is_cut():
    """Packs of 10: 4 + 3 of a, then 12 of b as 10 and 2, and 5 of b beside the 2."""
    packs = ProbePacks([probe("a", 4, 3), probe("b", 12, 5)], 10)
    assert [packs.pack(index).lengths for index in range(packs.num_packs)] == [[4, 3], [10], [2, 5]]
    assert [packs.documents_of(index).tolist() for index in range(3)] == [[0, 1], [2], [2, 3]]
    assert packs.pack(2).tokens.tolist() == [10, 11, 0, 1, 2, 3, 4]
    assert packs.kinds == ["a", "a", "b", "b"] and packs.named(3) == ("b", 1)
