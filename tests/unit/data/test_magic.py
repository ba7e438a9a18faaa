"""A file that is no text, whatever its name says, is told for what it is, with what to do."""

import bz2
import gzip
import io
import json
import lzma
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.config.data import Format, SourceConfig
from trainer.data.formats.magic import kind_of_head
from trainer.data.rows.files import Listing
from trainer.data.rows.source import read_files
from trainer.errors import DataError

ROWS = json.dumps({"text": "a row"}).encode() + b"\n"


def zipped(*names):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return made.getvalue()


def parquet():
    made = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), made)
    return made.getvalue()


def arrow():
    made = io.BytesIO()
    table = pa.table({"text": ["a"]})
    with pa.ipc.new_file(made, table.schema) as writer:
        writer.write_table(table)
    return made.getvalue()


KINDS = {
    "zip": (zipped("a.jsonl"), "is a zip archive instead, whatever its name says. Unpack it"),
    "docx": (zipped("[Content_Types].xml", "word/document.xml"), "is a Word document (.docx) instead"),
    "xlsx": (zipped("[Content_Types].xml", "xl/workbook.xml"), "is an Excel workbook (.xlsx) instead"),
    "gzip": (gzip.compress(ROWS), "is gzip instead, whatever its name says. Add .gz to its name"),
    "bzip2": (bz2.compress(ROWS), "is bzip2 instead, whatever its name says. Add .bz2 to its name"),
    "xz": (lzma.compress(ROWS), "is xz instead, whatever its name says. Add .xz to its name"),
    "parquet": (parquet(), "is Parquet instead, whatever its name says. Give its name the end .parquet"),
    "arrow": (arrow(), "is Arrow instead, whatever its name says. Give its name the end .arrow"),
    "pdf": (
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "is a PDF document instead, whatever its name says. Take its text out",
    ),
    "doc": (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(20),
        "is an old Office document (.doc, .xls) instead",
    ),
    "tar": (
        b"a.txt" + bytes(252) + b"ustar\x0000",
        "is a tar archive instead, whatever its name says. Unpack it",
    ),
}


def read(path):
    source = SourceConfig(path=str(path), format=Format.text)
    return [row for batch in read_files("mine", source, Listing([path])).batches() for row in batch.rows]


@pytest.mark.parametrize("end", [".jsonl", ".json", ".txt", ".csv"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_text_is_told_for_what_it_is(tmp_path, kind, end):
    """It was told to be converted with iconv."""
    content, said = KINDS[kind]
    path = tmp_path / f"data{end}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"`data.sources.mine`: {path} must be text, but {said}")


@pytest.mark.parametrize("end", [".gz", ".bz2", ".xz"])
def test_a_name_that_says_compressed_of_a_file_that_is_not(tmp_path, end):
    path = tmp_path / f"a.jsonl{end}"
    path.write_bytes(ROWS)
    with pytest.raises(
        DataError, match=rf"as its name says \({end}\), but is something else instead\. Take {end} off"
    ):
        read(path)
    path.write_bytes(zipped("a.jsonl"))
    with pytest.raises(DataError, match="but is a zip archive instead"):
        read(path)


def test_an_archive_inside_of_a_compressed_file_is_told(tmp_path):
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(KINDS["tar"][0]))
    with pytest.raises(DataError, match="must hold text inside, but is a tar archive instead"):
        read(path)


@pytest.mark.parametrize(
    "text", ["PAR1 of the course", "BZh is a name", "PK", "Rar! said he", "", "{}", "Ünï"]
)
def test_text_that_begins_like_one_of_them_is_text(text):
    assert kind_of_head(text.encode()) is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2 must be a JSON object, but is not valid JSON"),
        ("a.csv", "text\na,b\n", "line 2 must have the 1 field of the header, but has 2 instead"),
        ("a.txt", "a\0b", "must be text, but holds a NUL byte instead"),
        ("a.json", "[1]", "row 1 must be a JSON object, but is a int instead"),
    ],
)
def test_what_is_wrong_in_a_file_names_the_source_that_reads_it(tmp_path, name, text, said):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"`data.sources.mine`: {path}") and said in str(caught.value)
