from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import zstandard

from trainer.data.formats.json import MAX_DEPTH, MAX_DIGITS, JsonError, parse_json, read_json, read_json_lines
from trainer.data.formats.stream import BrokenFile, open_text
from trainer.errors import DataError

GOOD = '{"a": 1}\n'


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("text", ['{"a": 1', '{"a": "bc', '{"a": ', '{"a": [1'])
@pytest.mark.parametrize("after", ["", "\n", "\r\n"])
def test_a_line_cut_at_its_end_is_told_so_with_the_column(text, after):
    with pytest.raises(JsonError, match=rf"cut at column {len(text.rstrip())}, before its end"):
        parse_json(text + after)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("9" * (MAX_DIGITS + 1), f"an integer of {MAX_DIGITS + 1} digits"),
        (nested(100_000), f"nested more than {MAX_DEPTH} deep"),
        (nested(MAX_DEPTH + 2), f"nested more than {MAX_DEPTH} deep"),
        ('{"a": ' * 300 + "1" + "}" * 300, f"nested more than {MAX_DEPTH} deep"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "-Infinity"),
        ("[1e999]", "too large"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' twice"),
        ('{"x": {"a": 1, "a": 1}}', "the key 'a' twice"),
        ('"a\0b"', "not valid JSON"),
        ("", "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
        ("[1,]", "not valid JSON"),
    ],
)
def test_what_the_library_would_take_or_stop_at_is_a_sentence(text: str, what: str) -> None:
    with pytest.raises(JsonError, match=what):
        parse_json(text)


@pytest.mark.parametrize("value", [{"a": [1, 2.5, None, True]}, "\u2028", [[]], "2020-01-01", 10**4000])
def test_other_values_come_back_as_they_were(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize(
    "text", ['{"m": %s}' % ("9" * 5000), nested(100_000), '{"a": NaN}', '{"a": 1, "a": 2}']
)
def test_a_line_that_is_refused_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD + "\n" + text + "\n")
    rows = read_json_lines(tmp_path / "a.jsonl")
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(DataError, match=r"a\.jsonl, line 3 must be a JSON object, but is .* instead\. Mend"):
        next(rows)


def test_a_file_of_one_value_is_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(nested(100_000))
    with pytest.raises(DataError, match=r"a\.json must be valid JSON, but is JSON nested"):
        list(read_json(tmp_path / "a.json"))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_marks_and_line_ends_of_windows_change_nothing(mark: str, end: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes((mark + GOOD.strip() + end + end + GOOD.strip()).encode())
    assert list(read_json_lines(tmp_path / "a.jsonl")) == [(1, {"a": 1}), (3, {"a": 1})]


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


@pytest.mark.parametrize("suffix", PACK)
def test_every_compression_is_read_to_the_end_of_its_last_frame(suffix: str, tmp_path: Path) -> None:
    texts = ["one " * 100_000, "two"]
    (tmp_path / f"a.txt{suffix}").write_bytes(b"".join(PACK[suffix](text.encode()) for text in texts))
    with open_text(tmp_path / f"a.txt{suffix}") as stream:
        assert stream.read() == "".join(texts)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", [lambda b: b[:-9], lambda b: b + b"garbage", lambda b: b"x" + b])
def test_a_compressed_file_cut_short_or_followed_by_something_else_is_broken(
    suffix: str, damage: Any, tmp_path: Path
) -> None:
    """The readers of the standard library pass over what follows a .bz2 or .xz stream."""
    (tmp_path / f"a.txt{suffix}").write_bytes(damage(PACK[suffix](b"some words " * 999)))
    broken = (BrokenFile, OSError, EOFError, DataError)
    with pytest.raises(broken), open_text(tmp_path / f"a.txt{suffix}") as stream:
        stream.read()


def test_the_padding_of_an_xz_file_is_no_garbage(tmp_path: Path) -> None:
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"a") + b"\0" * 8 + lzma.compress(b"b") + b"\0" * 4)
    with open_text(tmp_path / "a.txt.xz") as stream:
        assert stream.read() == "ab"


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"a": 2}]',
        '[\n  {"a": 1},\n  {"a": 2}\n]',
        '[{"a": 1},\n{"a": 2}]',
        '\n{\n  "a": 1\n}',
        "[]",
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "ROWS.NDJSON"])
def test_one_value_under_the_name_of_json_lines_is_told_what_to_rename_it_to(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(
        DataError, match=r"one JSON value over all of it instead\. Rename it to (rows|ROWS)\.json,"
    ):
        list(read_json_lines(tmp_path / name))
    if text != "[]":
        (tmp_path / "rows.json").write_text(text)
        assert next(read_json(tmp_path / "rows.json")) == (1, {"a": 1})
