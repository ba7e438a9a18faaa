"""A disk that takes no more, as a sentence; what is our own error stays one."""

import errno
import os
from pathlib import Path

import pytest

from trainer.errors import CheckpointError, DataError
from trainer.runtime.disk import disk_errno, disk_explained


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device. Free space"),
        (errno.EDQUOT, "Disk quota exceeded. Free space"),
        (errno.EROFS, "Read-only file system. Mend the disk"),
        (errno.EIO, "Input/output error. Mend the disk"),
    ],
)
def test_an_error_of_the_disk_names_the_file_and_what_to_do(number, words):
    with pytest.raises(CheckpointError) as caught, disk_explained(Path("/run")):
        raise OSError(number, "", "/run/metrics.jsonl")
    assert "/run/metrics.jsonl could not be written: " + words in str(caught.value)
    with pytest.raises(CheckpointError, match="but /run could not be written"), disk_explained(Path("/run")):
        raise OSError(number, "")


@pytest.mark.parametrize("number", [errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.EACCES])
def test_what_is_in_the_place_of_a_file_is_named_with_what_to_do(number):
    """A folder named metrics.jsonl ended training, verify and status in a traceback."""
    with pytest.raises(CheckpointError) as caught, disk_explained(None):
        raise OSError(number, "", "/run/metrics.jsonl")
    assert str(caught.value).startswith("/run/metrics.jsonl must be a file or folder that can be read")
    assert os.strerror(number) in str(caught.value) and "Move away what is in its place" in str(caught.value)
    with (
        pytest.raises(CheckpointError, match=r"File name too long. Give a shorter one.$"),
        disk_explained(None),
    ):
        raise OSError(errno.ENAMETOOLONG, "", "/run/" + "x" * 300)
    with pytest.raises(CheckpointError, match=r"^/run/report.html must be"), disk_explained(None):
        raise OSError(number, "", "/run/.report.html.tmp", None, "/run/report.html")
    with pytest.raises(OSError, match="whose"), disk_explained(None):
        raise OSError(number, "whose?")


def test_only_a_training_is_said_to_go_on_from_a_checkpoint():
    """It was said of a report."""
    said = []
    for trains in (False, True):
        with pytest.raises(CheckpointError) as caught, disk_explained(None, trains):
            raise OSError(errno.EROFS, "", "/run/report.html")
        said.append(str(caught.value))
    assert said[0].endswith("Mend the disk or give another, then give the same command again.")
    assert said[1].endswith("are untouched, and the same command goes on from the last.")


def test_safetensors_tells_of_a_full_disk_in_its_own_words():
    """As version 0.8.0 does on a full tmpfs; another number is not the disk's."""
    from safetensors import SafetensorError

    with pytest.raises(CheckpointError, match="No space left on device"), disk_explained(None):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    tokenizers_own = Exception("No space left on device (os error 28)")
    assert disk_errno(tokenizers_own) == 28 and disk_errno(KeyError("(os error 28)")) is None
    assert disk_errno(SafetensorError("I/O error: No such file or directory (os error 2)")) is None
    assert disk_errno(SafetensorError("header too large")) is None


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, ""), ValueError("No space left"), DataError("x"), BrokenPipeError()],
)
def test_other_errors_stay_what_they_are(error):
    assert disk_errno(error) is None
    with pytest.raises(type(error)) as caught, disk_explained(None):
        raise error
    assert caught.value is error
