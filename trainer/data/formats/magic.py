"""What a file is by its first bytes, where its name says that it is text: a sentence instead of a broken character."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal, Protocol

HEAD_BYTES = 512
_TAR_AT, _TAR = 257, b"ustar"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file that is no text."""

    what: str
    fix: str


_PACKED = "Add {end} to its name: it is unpacked as it is read."
_TABLE = "Give its name the end {end}: it is read as a table."
_NO_TEXT = "Leave it out of the path."
_OFFICE = "Save it as text first, for example with: pandoc FILE -o FILE.txt"
_SHEET = "Save the sheet as CSV first."
KINDS: Mapping[bytes, Kind] = {
    b"\x1f\x8b": Kind("gzip", _PACKED.format(end=".gz")),
    b"BZh91AY&SY": Kind("bzip2", _PACKED.format(end=".bz2")),
    b"\xfd7zXZ\x00": Kind("xz", _PACKED.format(end=".xz")),
    b"\x28\xb5\x2f\xfd": Kind("Zstandard", _PACKED.format(end=".zst")),
    b"PK\x03\x04": Kind("a zip archive", "Unpack it, and name the folder or the files in it as the path."),
    b"7z\xbc\xaf\x27\x1c": Kind(
        "a 7z archive", "Unpack it, and name the folder or the files in it as the path."
    ),
    b"Rar!\x1a\x07": Kind("a rar archive", "Unpack it, and name the folder or the files in it as the path."),
    b"PAR1\x15": Kind("Parquet", _TABLE.format(end=".parquet")),
    b"ARROW1\x00\x00": Kind("Arrow", _TABLE.format(end=".arrow")),
    b"%PDF-": Kind("a PDF document", "Take its text out first, for example with: pdftotext FILE"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": Kind("an old Office document (.doc, .xls)", _OFFICE),
    b"{\\rtf": Kind("an RTF document", _OFFICE),
    b"SQLite format 3\x00": Kind("an SQLite database", "Write its rows as CSV or JSON lines first."),
    b"\x89PNG": Kind("an image (PNG)", _NO_TEXT),
    b"\xff\xd8\xff": Kind("an image (JPEG)", _NO_TEXT),
    b"GIF8": Kind("an image (GIF)", _NO_TEXT),
    b"\x93NUMPY": Kind("a NumPy array", "Write token ids as JSON lines or Parquet."),
    b"\x89HDF\r\n\x1a\n": Kind("HDF5", "Write its rows as JSON lines or Parquet first."),
    b"\x80\x04\x95": Kind("a Python pickle", "Write its rows as JSON lines or Parquet first."),
    b"\x7fELF": Kind("a program", _NO_TEXT),
}
"""By how they begin; no text does so by chance."""
_IN_ZIP = {
    "word/": Kind("a Word document (.docx)", _OFFICE),
    "xl/": Kind("an Excel workbook (.xlsx)", _SHEET),
    "ppt/": Kind("a presentation (.pptx)", _OFFICE),
    "content.xml": Kind("an OpenDocument file (.odt, .ods)", _OFFICE),
    "META-INF/container.xml": Kind("a book (.epub)", _OFFICE),
}
COMPRESSED = {".gz": b"\x1f\x8b", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
"""How a compressed file begins, by the end of its name."""


class Openable(Protocol):
    """A file that can be opened from its beginning."""

    def open(self, mode: Literal["rb"], /) -> IO[bytes]:
        """Open it."""


def kind_of_head(head: bytes, file: Openable | None = None) -> Kind | None:
    """Return what begins so; None for text, and for what nobody here knows.

    Args:
        file: Whole, to tell documents that are zip archives by what is in them; None where that is not at hand.
    """
    if head[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return Kind("a tar archive", "Unpack it, and name the folder or the files in it as the path.")
    found = next((kind for start, kind in KINDS.items() if head.startswith(start)), None)
    if found is not None and found is KINDS[b"PK\x03\x04"] and file is not None:
        return _in_zip(file) or found
    return found


def _in_zip(file: Openable) -> Kind | None:
    try:
        with file.open("rb") as stream, zipfile.ZipFile(_seekable(stream)) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return None
    return next((kind for start, kind in _IN_ZIP.items() if any(n.startswith(start) for n in names)), None)


def _seekable(stream: IO[bytes]) -> Any:
    if not stream.seekable():
        raise ValueError("an address is read from its beginning alone")
    return stream
