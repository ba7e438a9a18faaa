from __future__ import annotations

from pathlib import Path

import pytest

from trainer.data.formats.csv import CsvFile
from trainer.errors import DataError

PAIRS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]


def open_csv(text: str, tmp_path: Path, delimiter: str = ",") -> CsvFile:
    (tmp_path / "a.csv").write_bytes(text.encode())
    return CsvFile(tmp_path / "a.csv", delimiter)


@pytest.mark.parametrize(
    ("text", "delimiter", "notes"),
    [
        ("prompt,completion\na,b\nc,d\n", ",", {}),
        ("\ufeffprompt,completion\r\na,b\r\nc,d", ",", {}),
        ('"prompt","completion"\n"a","b"\n"c","d"\n', ",", {}),
        ("\n \nprompt,completion\n\na,b\nc,d\n", ",", {"blank line passed over": 3}),
        ("prompt\tcompletion\na\tb\nc\td\n", "\t", {}),
        ("prompt\tcompletion\na\tb\nc\td\n", ",", {"read as separated by tabs": 1}),
        ("prompt;completion\na;b\nc;d\n", ",", {"read as separated by semicolons": 1}),
        ("prompt|completion\na|b\nc|d\n", ",", {"read as separated by bars": 1}),
        ("prompt,completion\na,b\nc,d\n", "\t", {"read as separated by commas": 1}),
        ("sep=;\nprompt;completion\na;b\nc;d\n", ",", {}),
    ],
)
def test_the_same_rows_are_read_from_every_dialect_and_what_was_unusual_is_noted(
    text: str, delimiter: str, notes: dict[str, int], tmp_path: Path
) -> None:
    file = open_csv(text, tmp_path, delimiter)
    assert [row for _, row in file.read()] == PAIRS
    assert +file.notes == notes


def test_columns_without_a_name_are_told_by_their_place(tmp_path: Path) -> None:
    """What DataFrame.to_csv() writes, and a header that ends with a comma."""
    file = open_csv(",prompt,completion,\n0,a,b,\n1,c,d,\n", tmp_path)
    assert file.columns == ["(column 1 without a name)", "prompt", "completion", "(column 4 without a name)"]
    assert [{k: r[k] for k in ("prompt", "completion")} for _, r in file.read()] == PAIRS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\nx,y,\n", "line 2 must have the 2 fields of the header, but has 3"),
        ("a,b\nx,y\n\nz\n", "line 4 must have the 2 fields of the header, but has 1"),
        ("a,b\n1,x,y\n", "line 2 must have the 2 fields"),
        ("text\nhello, world\n", "line 2 must have the 1 field of the header, but has 2"),
        ('a,b\nx,"y\nz,w\n', "line 2 must be valid CSV"),
        ('a,b\n"x"y,z\n', "line 2 must be valid CSV"),
        ('a,b\nx,"say \\"hi\\""\n', "line 2 must be valid CSV"),
        ("a,b\nx,y\0\n", "NUL"),
        ("a,b,a\n1,2,3\n", "different names, but has 'a' 2 times"),
        ("a;b\nx,y\n", "line 2 must have the 2 fields"),
    ],
)
def test_rows_that_would_shift_or_swallow_others_are_refused_with_their_line(
    text: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        list(open_csv(text, tmp_path).read())


def test_quoted_fields_keep_what_they_hold_and_rows_over_several_lines_are_counted(tmp_path: Path) -> None:
    text = 'a,b\n"x, ""y""\r\nz",NA\n" 007 ",\n' + f"{'long ' * 60_000},1\n"
    file = open_csv(text, tmp_path)
    rows = [tuple(row.values()) for _, row in file.read()]
    assert rows == [('x, "y"\r\nz', "NA"), (" 007 ", ""), ("long " * 60_000, "1")]
    assert +file.notes == {"row that spans lines, in quotes": 1}


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_has_no_columns_and_no_rows(text: str, tmp_path: Path) -> None:
    file = open_csv(text, tmp_path)
    assert file.columns == [] and list(file.read()) == []
