from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.templates import CHATML
from tests.helpers.tokenizers import BOS, EOS, make_tokenizer
from trainer.config.model import ModelConfig
from trainer.errors import DataError, ModelError
from trainer.model.tokenizer import Tokenizer, configured_tokenizer

HELLO = [{"role": "user", "content": "hello"}]


def test_a_raw_document_begins_with_one_bos_even_if_its_text_brings_one() -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    plain, spelled = tokenizer.encode_documents(["hi", f"{BOS}hi"])
    assert plain == spelled
    assert plain.count(tokenizer.bos_id) == 1


def test_a_raw_document_has_no_bos_if_the_tokenizer_adds_none_and_never_eos() -> None:
    tokenizer = make_tokenizer(adds_bos=False)
    (ids,) = tokenizer.encode_documents(["hi"])
    assert tokenizer.bos_id not in ids and tokenizer.eos_id not in ids and len(ids) == 2


def test_fragments_get_no_special_token_but_spelled_ones_are_recognised() -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    (ids,) = tokenizer.encode_fragments([f"a{EOS}"])
    assert ids[1:] == [tokenizer.eos_id] and len(ids) == 2
    assert tokenizer.decode(ids) == f"a{EOS}"


def test_offsets_belong_to_the_same_ids_as_encoding_the_text_at_once() -> None:
    tokenizer = make_tokenizer()
    text = "caf\u00e9 <|im_end|>\n\u65e5"
    ((ids, offsets),) = tokenizer.encode_with_offsets([text])
    assert [ids] == tokenizer.encode_fragments([text])
    assert offsets[-1] == (len(text) - 1, len(text))


def test_no_texts_encode_to_nothing() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.encode_documents([]) == [] and tokenizer.encode_with_offsets([]) == []


@pytest.mark.parametrize(
    ("pad", "unk", "expected"),
    [
        ("<pad>", None, "<pad>"),
        (EOS, "<unk>", "<unk>"),
        (None, "<unk>", "<unk>"),
        (None, None, BOS),
    ],
)
def test_pad_is_any_special_token_before_it_is_eos(pad: str | None, unk: str | None, expected: str) -> None:
    tokenizer = make_tokenizer(pad=pad, unk=unk)
    assert tokenizer.pad_id is not None
    assert tokenizer.decode([tokenizer.pad_id]) == expected


def test_vocabulary_size_is_the_largest_id_plus_one() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.vocab_size == max(tokenizer.hf.get_vocab().values()) + 1 == len(tokenizer.hf)


def test_digest_survives_saving_and_use_and_changes_with_the_template(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.hf(["a", "bc"], padding=False, truncation=True, max_length=1)
    tokenizer.save(tmp_path)
    assert (
        configured_tokenizer(ModelConfig(), str(tmp_path)).digest
        == make_tokenizer().digest
        == tokenizer.digest
    )
    assert make_tokenizer(template=CHATML + " ").digest != tokenizer.digest
    assert make_tokenizer(adds_bos=True).digest != tokenizer.digest


def test_a_chat_template_file_replaces_the_tokenizers_own(tmp_path: Path) -> None:
    make_tokenizer().save(tmp_path / "tokenizer")
    template = tmp_path / "shout.jinja"
    template.write_text("{{ messages[0].content | upper }}")
    tokenizer = configured_tokenizer(ModelConfig(chat_template=str(template)), str(tmp_path / "tokenizer"))
    assert tokenizer.render_chat(HELLO) == "HELLO"


def test_rendering_without_a_template_names_the_key_to_set() -> None:
    with pytest.raises(DataError, match=r"model\.chat_template"):
        make_tokenizer(template=None).render_chat(HELLO)


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no such role') }}", "{{ messages[0].content + 1 }}", "{{ x[0].y }}"],
)
def test_a_template_that_fails_in_any_way_gives_a_data_error(template: str) -> None:
    with pytest.raises(DataError):
        make_tokenizer(template=template).render_chat(HELLO)


def test_a_path_that_does_not_exist_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.tokenizer.*no such file or folder"):
        configured_tokenizer(ModelConfig(), str(tmp_path / "missing"))


def test_a_folder_without_a_tokenizer_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.tokenizer"):
        configured_tokenizer(ModelConfig(), str(tmp_path))


def test_a_missing_template_file_is_named_with_its_key(tmp_path: Path) -> None:
    make_tokenizer().save(tmp_path)
    with pytest.raises(ModelError, match=r"model\.chat_template.*missing\.jinja"):
        configured_tokenizer(ModelConfig(chat_template=str(tmp_path / "missing.jinja")), str(tmp_path))


DATED = "{{ strftime_now('%d %b %Y %H:%M') }}{% if strftime_now is defined %}!{% endif %}{{ messages[0].content }}"


def told(template: Any, day: str | None) -> Tokenizer:
    return Tokenizer(make_tokenizer(template=template).hf, (), day and datetime.date.fromisoformat(day))


def test_a_template_that_asks_for_the_date_is_told_midnight_of_the_day_that_is_given() -> None:
    for day, shown in (
        ("2020-02-29", "29 Feb 2020"),
        ("2026-11-28", "28 Nov 2026"),
        ("2020-02-29", "29 Feb 2020"),
    ):
        tokenizer = told(DATED, day)
        assert tokenizer.render_chat(HELLO) == f"{shown} 00:00!hello"
    today = datetime.date.today()
    assert told(DATED, None).render_chat(HELLO)[:11] in {
        day.strftime("%d %b %Y") for day in (today, datetime.date.today())
    }


def test_the_day_is_part_of_what_names_a_tokenizer_only_if_its_template_asks() -> None:
    """A failure: a store made yesterday is taken for one of today, or is made anew every day for nothing."""
    assert told(DATED, "2020-02-29").digest != told(DATED, "2020-03-01").digest
    assert told(CHATML, "2020-02-29").digest == told(CHATML, "2020-03-01").digest == told(CHATML, None).digest


def test_templates_of_several_names_are_told_the_day_too() -> None:
    both = {"default": CHATML, "tool_use": DATED}
    tokenizer = told(both, "2020-02-29")
    tool = {"type": "function", "function": {"name": "f", "description": "", "parameters": {}}}
    assert tokenizer.render_chat(HELLO, [tool]) == "29 Feb 2020 00:00!hello"
    assert tokenizer.digest != told(both, "2020-03-01").digest
