"""Seals: every flipped bit is found."""

import json

import pytest

from trainer.runtime.seal import part_digest, read_sealed, sealed_text, with_digest, without_digest

RECORD = {"key": "abc", "sizes": {"a": 1, "b": [1.5, None]}, "text": 'ä "quoted"'}


def test_a_sealed_record_is_json_and_comes_back_as_it_was(tmp_path):
    file = tmp_path / "meta.json"
    file.write_text(sealed_text(RECORD))
    assert read_sealed(file) == RECORD
    assert json.loads(file.read_text()).keys() == {*RECORD, "seal"}


def test_every_flipped_bit_of_a_record_is_found(tmp_path):
    whole = sealed_text(RECORD).encode()
    file = tmp_path / "meta.json"
    for place in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[place] ^= 1 << bit
            file.write_bytes(changed)
            with pytest.raises(ValueError, match=r"meta\.json is not as it was written"):
                read_sealed(file)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"seal": 1}', '{"a": 1, "seal": "x"}', "[" * 100_000]
)
def test_what_was_never_sealed_is_refused(text, tmp_path):
    (tmp_path / "meta.json").write_text(text)
    with pytest.raises(ValueError, match="is not as it was written"):
        read_sealed(tmp_path / "meta.json")


def test_every_flipped_bit_of_a_file_with_a_digest_is_found():
    whole = with_digest(b"some bytes")
    assert without_digest(whole) == b"some bytes"
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 4
        with pytest.raises(ValueError, match="not as it was written"):
            without_digest(bytes(changed))
    for length in range(len(whole)):
        with pytest.raises(ValueError, match="not as it was written"):
            without_digest(whole[:length])


def test_a_part_may_come_in_pieces():
    assert part_digest(b"ab", memoryview(b"c"), b"") == part_digest(b"abc") != part_digest(b"abd")
