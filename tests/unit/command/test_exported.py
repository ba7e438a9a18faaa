"""What is said of an export that was interrupted: its folder appears whole, or not at all."""

import pytest

from trainer.command.exported import what_stands
from trainer.export.earlier import VERIFIED, note_written
from trainer.runtime.seal import sealed_text


@pytest.mark.parametrize(
    ("left", "said"),
    [
        (None, "Nothing was written to {}."),
        ("written", "{} is written whole, and was not verified: export again."),
        ("this", "{} is whole, and was verified."),
        ("another", "{} holds an earlier export, as it was."),
    ],
)
def test_an_interrupted_export_says_what_stands(tmp_path, left, said):
    """Ctrl-C at its very end left a whole folder, exit code 130 and no word."""
    folder = tmp_path / "out"
    if left is not None:
        folder.mkdir()
        (folder / "config.json").touch()
        note_written(folder)
    if left in ("this", "another"):
        (folder / VERIFIED).write_text(sealed_text({"origin": left, "files": {}}))
    assert what_stands(folder, "this") == said.format(folder)
