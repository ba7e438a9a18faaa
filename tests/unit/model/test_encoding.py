"""The Rust part of a tokenizer, asked alone: the ids and the marks of what transformers says of the same text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.helpers.tokenizers import EOS, make_tokenizer
from trainer.data.chat.mark import mark_completion
from trainer.data.tokens.encoded import behind, encode_completions
from trainer.data.tokens.spans import mark_tokens
from trainer.data.types import CompletionDocument
from trainer.model.encoding import encode_behind, encode_ids, encode_offsets
from trainer.model.tokenizer import Tokenizer

LEARNT = [
    "the cat sat on the mat",
    "caf\u00e9 \u65e5\u672c\u8a9e 12 + 34 = 46",
    "  two  spaces\n\nand lines ",
] * 20


def unigram() -> Tokenizer:
    """Return one as SentencePiece makes them: NFKC, a mark for spaces and before the text, which is no character."""
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(
        LEARNT, trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>", EOS])
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, unk_token="<unk>"))


def wordpiece() -> Tokenizer:
    """Return one that drops spaces and accents."""
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.train_from_iterator(
        LEARNT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]", EOS])
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, unk_token="[UNK]"))


class Reversed(PreTrainedTokenizerFast):
    """A tokenizer with a way of its own, as models with code of theirs have them."""

    def _encode_plus(self, text: Any, *given: Any, **options: Any) -> Any:
        return super()._encode_plus([one[::-1] for one in text], *given, **options)


TOKENIZERS = {
    "bytes": make_tokenizer(),
    "merges": make_tokenizer(texts=LEARNT),
    "trimmed": make_tokenizer(texts=LEARNT, trim_offsets=True),
    "with BOS": make_tokenizer(texts=LEARNT, adds_bos=True),
    "unigram": unigram(),
    "wordpiece": wordpiece(),
}
LETTERS = st.sampled_from("abt e\n12+= \u00e9e\u0301\u65e5\ufb01\U0001f600\u200d.")
TEXTS = st.text(LETTERS | st.characters(exclude_categories=["Cs"]), max_size=24)


def plainly(tokenizer: Tokenizer, texts: list[str], **options: Any) -> Any:
    return tokenizer.hf(texts, add_special_tokens=False, **options)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_ids_and_marks_are_those_that_transformers_and_its_offsets_give(
    name: str, parts: list[tuple[str, str]]
) -> None:
    tokenizer = TOKENIZERS[name]
    texts = [asked + said for asked, said in parts]
    encoded = plainly(tokenizer, texts, return_offsets_mapping=True)
    assert encode_ids(tokenizer.hf, texts) == encoded["input_ids"]
    documents = [CompletionDocument(asked, said, {}) for asked, said in parts]
    pending = [mark_completion(asked, said) for asked, said in parts]
    found = encode_completions(documents, pending, True, tokenizer, ())
    wanted = [
        mark_tokens(offsets, marked.spans)
        for offsets, marked in zip(encoded["offset_mapping"], pending, strict=True)
    ]
    for one, ids, mark in zip(found, encoded["input_ids"], wanted, strict=True):
        num_bos = int(tokenizer.adds_bos)
        assert one.ids[num_bos : num_bos + len(ids)] == ids and not one.mark[:num_bos].any()
        np.testing.assert_array_equal(one.mark[num_bos : num_bos + len(ids)], mark)
        has_end = ids[-1:] != [tokenizer.eos_id]
        assert one.ids[num_bos + len(ids) :] == [tokenizer.eos_id] * has_end
        assert one.mark[num_bos + len(ids) :].tolist() == [1] * has_end


def test_the_number_is_of_tokens_that_end_before_the_place() -> None:
    hf = TOKENIZERS["bytes"].hf
    ((ids, number),) = encode_behind(hf, ["ab\u00e9cd"], [3])
    assert (len(ids), number) == (6, 4)  # a, b and the two bytes of the third character
    assert encode_behind(hf, ["ab"], [0]) == [(ids[:2], 0)]
    assert encode_behind(hf, ["ab"], [2]) == [(ids[:2], None)]  # no character is there


def test_what_a_call_before_left_set_does_not_cut_or_fill() -> None:
    hf = make_tokenizer(pad="<pad>").hf
    hf(["abcdef", "a"], truncation=True, max_length=3, padding=True)
    assert [len(ids) for ids in encode_ids(hf, ["abcdef", "a"])] == [6, 1]
    hf(["abcdef", "a"], truncation=True, max_length=3, padding=True)
    assert [len(ids) for ids, _ in encode_behind(hf, ["abcdef", "a"], [1, 0])] == [6, 1]


def test_special_tokens_are_split_where_the_tokenizer_is_told_to() -> None:
    hf = make_tokenizer().hf
    assert len(encode_ids(hf, [EOS])[0]) == 1
    hf.split_special_tokens = True
    assert len(encode_ids(hf, [EOS])[0]) == len(EOS)


def test_a_tokenizer_with_a_way_of_its_own_is_asked_by_it() -> None:
    plain = make_tokenizer()
    own = Reversed(tokenizer_object=plain.hf.backend_tokenizer, eos_token=EOS)
    assert encode_ids(own, ["abc"]) == encode_ids(plain.hf, ["cba"])
    assert encode_behind(own, ["abc"], [1]) == [(encode_ids(plain.hf, ["cba"])[0], None)]


def test_offsets_that_do_not_ascend_are_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a batch says so: what its offsets mark is not what the number marks."""
    tokenizer = make_tokenizer()
    monkeypatch.setattr(
        "trainer.model.tokenizer.encode_offsets",
        lambda hf, texts: [(ids, places[::-1]) for ids, places in encode_offsets(hf, texts)],
    )
    parts = [("ab", "c"), ("a", "bcd")]
    found = encode_completions(
        [CompletionDocument(*part, {}) for part in parts],
        [mark_completion(*part) for part in parts],
        False,
        tokenizer,
        (),
    )
    assert [one.mark.tolist() for one in found] == [[1, 0, 0], [1, 1, 1, 0]]
    assert behind(3, 1).tolist() == [0, 1, 1]
