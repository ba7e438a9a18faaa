"""Opens what is behind an address, calls it again where the network failed, and says what is wrong in a sentence.

fsspec knows the protocols; the packages behind them raise whatever they like.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from trainer.config.address import shown_address
from trainer.data.formats.fault import first_line, raise_if_disk
from trainer.errors import DataError, TrainerError

T = TypeVar("T")

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Extras of this package that bring what a protocol needs."""
CREDENTIALS = {
    "s3": "Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for a public bucket FSSPEC_S3_ANON=true.",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login; for a public bucket "
    "FSSPEC_GS_TOKEN=anon.",
    "hf": "Set HF_TOKEN or run hf auth login, and accept the terms of the dataset on its page.",
}
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Before each further try of a piece of a file."""
LOOK_WAITS_S = (1.0, 3.0)
"""Before each further try of a listing."""
LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    TrainerError,
)
LASTING_ERRNOS = {
    errno.EINVAL,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ENOSYS,
    errno.EMSGSIZE,
    errno.ENOSPC,
}
"""As s3fs translates the answers of a store that trying again does not change."""
RETRIED_STATUS = {408, 425, 429}
NO_CREDENTIALS = ("NoCredentials", "PartialCredentials", "DefaultCredentials", "GatedRepo", "Unauthorized")
"""In the names of errors about credentials."""


class Unreachable(DataError):
    """An address that cannot be asked from here; what is behind it may be what it was."""


def open_address(key: str, address: str) -> tuple[Any, str]:
    """Return the file system of an address and the path in it.

    Raises:
        DataError: If nothing knows its protocol.
        Unreachable: If the package for it is missing.
    """
    import fsspec

    with explained(key, address):
        file_system, path = fsspec.core.url_to_fs(address)
        return file_system, str(path)


def tell(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def patiently(what: str, call: Callable[[], T], waits_s: Sequence[float]) -> T:
    """Return what a call gives; where the network failed, try again after each wait, and say so."""
    for number, wait_s in enumerate(waits_s, 1):
        try:
            return call()
        except Exception as error:
            if not is_passing(_behind(error)):
                raise
            tell(
                f"{what}: {shown_address(first_line(error))}; try {number + 1} of {len(waits_s) + 1} in {wait_s:g} s."
            )
        time.sleep(wait_s)
    return call()


def is_passing(error: BaseException) -> bool:
    """Say whether an error may be gone at the next try."""
    if isinstance(error, LASTING) or _is_denied(error) or "Offline" in type(error).__name__:
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status in RETRIED_STATUS
    if isinstance(error, OSError):
        return error.errno not in LASTING_ERRNOS
    # aiohttp, httpx and botocore have errors of their own for lines that break.
    return isinstance(error, EOFError) or any(
        word in type(error).__name__
        for word in ("Timeout", "Connection", "Payload", "Disconnected", "Protocol")
    )


def _behind(error: Exception) -> Exception:
    """Return the error of the line that fsspec's HTTP takes for a missing file."""
    cause = error.__cause__
    is_line = isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and is_passing(cause)
    return cause if is_line and isinstance(cause, Exception) else error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error tells, in whichever way its package does."""
    response = getattr(error, "response", None)
    for owner, name in ((error, "status"), (error, "code"), (response, "status_code"), (response, "status")):
        found = getattr(owner, name, None)
        if isinstance(found, int) and 400 <= found < 600:
            return found
    return None


def _is_denied(error: BaseException) -> bool:
    name = type(error).__name__
    # gcsfs tells a 403 by an OSError without a number.
    is_forbidden = type(error) is OSError and str(error).startswith("Forbidden")
    return is_forbidden or isinstance(error, PermissionError) or any(word in name for word in NO_CREDENTIALS)


@contextmanager
def explained(key: str, address: str) -> Iterator[None]:
    """Turn whatever is raised behind an address into a sentence."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        raise_if_disk(error)
        raise _sentence(key, address, error) from error


def _sentence(key: str, address: str, error: Exception) -> DataError:
    protocol = address.partition("://")[0].lower()
    error = _behind(error)
    address, reason = shown_address(address), shown_address(first_line(error))
    if isinstance(error, ImportError):
        extra = EXTRAS.get(protocol)
        fix = f"pip install 'palimpsest-trainer[{extra}]'" if extra else reason
        return Unreachable(
            f"`{key}` must be an address whose package is installed, but is '{address}', and that for "
            f"{protocol}:// is not. {fix}."
        )
    if isinstance(error, ValueError) and "rotocol" in reason:
        return DataError(
            f"`{key}` must be a path or an address that fsspec knows, but is '{address}' instead: {reason}."
        )
    if _is_denied(error) or _status(error) in (401, 403):
        fix = CREDENTIALS.get(
            EXTRAS.get(protocol, protocol), f"Give credentials as fsspec takes them for {protocol}."
        )
        return DataError(
            f"`{key}` must be an address that may be read from here, but '{address}' may not: {reason}. {fix}"
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError) or _status(error) == 404:
        return DataError(
            f"`{key}` must name a file, a folder or a glob that matches files, but '{address}' does not: there is "
            "none. Check the address, and the credentials: what is private may not be shown without."
        )
    return Unreachable(
        f"`{key}` must be an address that can be read from here, but '{address}' cannot be: "
        f"{type(error).__name__}: {reason}. Check the address and the network, or download it and name the files."
    )
