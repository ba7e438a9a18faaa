"""What is read from an error that somebody else's code raised."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without a full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


def raise_if_disk(error: BaseException) -> None:
    """Raise OSError if a full disk is behind an error."""
    # A full disk is told of by whoever owns the cache folder, not as a bad file.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and "No space left" in str(cause):
            raise OSError(28, "No space left on device") from error
        cause = cause.__cause__
