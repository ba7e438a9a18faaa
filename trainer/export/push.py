"""Push an exported folder to the Hugging Face hub: the files of a list, compared with it afterwards.

Whether it can be pushed is asked before the export is computed: that takes seconds, an export may take hours.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.rule import Problem, problem
from trainer.config.train import ExportConfig
from trainer.errors import ConfigError, SelfCheckError, TrainerError

MAIN = "main"
TITLE = "Palimpsest: "
"""How the title of every commit of ours begins."""
_WEIGHTS = re.compile(
    r"(adapter_)?model[^/]*\.(safetensors|bin|gguf)|model\.safetensors\.index\.json|adapter_config\.json"
)
"""Files by which a reader finds weights: those of an earlier push would be taken for this model's."""
_LOGIN = (
    "Run `hf auth login`, or set HF_TOKEN to a token that may write (https://huggingface.co/settings/tokens)."
)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the hub that was found to be writable."""

    name: str
    branch: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push did."""

    url: str
    num_files: int
    removed: tuple[str, ...]
    """Weights of an earlier push that this export has not."""
    others: tuple[str, ...]
    """Files of the repository that are not of this export and were left."""


def open_repository(export: ExportConfig) -> Repository | None:
    """Return the repository of `export.hub`, made if it is not there; None where none is asked for.

    Raises:
        TrainerError: The hub cannot be reached, or does not let this token write there.
    """
    if export.hub is None:
        return None
    from huggingface_hub import HfApi

    for found in login_problems(export):
        raise ConfigError(found.sentence)
    api, name = HfApi(), export.hub
    with _explained(name):
        api.whoami()
        api.create_repo(name, private=export.hub_private, exist_ok=True)
        api.auth_check(name, write=True)
        is_private = bool(api.repo_info(name).private)
    if export.hub_private and not is_private:
        raise ConfigError(
            f"`export.hub_private` must be false for a repository that everybody can read, but is true and {name} is "
            "such a one. Set export.hub_private=false, make it private on the hub, or name another."
        )
    branch = export.hub_revision or MAIN
    if branch == MAIN:
        _refuse_foreign_weights(api, name)
    elif not branch.startswith("refs/"):
        with _explained(name):
            api.create_branch(name, branch=branch, exist_ok=True)
    return Repository(name, branch)


def _refuse_foreign_weights(api: Any, name: str) -> None:
    """Raise for a repository with weights into which no export was pushed: they would be removed."""
    with _explained(name):
        weights = sorted(file for file in api.list_repo_files(name) if _WEIGHTS.fullmatch(file))
        is_ours = (
            any(commit.title.startswith(TITLE) for commit in api.list_repo_commits(name)) if weights else True
        )
    if not is_ours:
        raise ConfigError(
            f"`export.hub` must name a new repository or one that an export was pushed to, but {name} holds weights "
            f"that none pushed ({weights[0]}) instead. Name another, or a branch of it with export.hub_revision=BRANCH."
        )


def login_problems(export: ExportConfig) -> Iterator[Problem]:
    """Yield a problem where a push is asked for and there is no token, or no way to the hub; asks nothing of it."""
    if export.hub is None:
        return
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        yield problem(
            "export.hub",
            "must reach the hub, but HF_HUB_OFFLINE=1 (or TRANSFORMERS_OFFLINE=1) forbids it here. Unset it, or leave "
            "export.hub out: the folder is written all the same.",
        )
    elif get_token() is None:
        yield problem("export.hub", f"must have a token of the hub, but there is none here. {_LOGIN}")


def push(repository: Repository, folder: Path, digests: Mapping[str, str], message: str) -> Pushed:
    """Upload the files of a list, and compare what the hub then has with it.

    What the hub has already is not sent again, so a push that was interrupted goes on where it was.

    Args:
        digests: SHA-256 of each file that may be pushed, by name.
    Raises:
        SelfCheckError: A file is not the one of the list, here or on the hub.
        TrainerError: The hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    changed = [name for name, digest in digests.items() if file_digest(folder / name) != digest]
    if changed:
        raise SelfCheckError(
            f"{folder} must be pushed as it was verified, but {changed[0]} has changed since. Export it again."
        )
    api = HfApi()
    with _explained(repository.name):
        before = set(api.list_repo_files(repository.name, revision=repository.branch)) - set(digests)
        removed = sorted(name for name in before if _WEIGHTS.fullmatch(name))
        commit = api.upload_folder(
            repo_id=repository.name,
            folder_path=folder,
            revision=repository.branch,
            allow_patterns=list(digests),
            delete_patterns=removed or None,
            commit_message=f"{TITLE}{message}",
        )
        listed = api.list_repo_tree(repository.name, revision=repository.branch, recursive=True)
        found = {entry.path: entry for entry in listed}
    for name in digests:
        if not _is_same(found.get(name), folder / name, digests[name]):
            raise SelfCheckError(
                f"{name} on the hub must be the one in {folder}, but is another or is not there. Push again; if it "
                "stays so, somebody else writes to the repository."
            )
    others = tuple(sorted(before - set(removed) - {".gitattributes"}))
    return Pushed(str(commit.commit_url), len(digests), tuple(removed), others)


def file_digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_same(entry: Any, path: Path, digest: str) -> bool:
    """Compare a file of the hub: by SHA-256 where it is a large one, else by git's name of its content."""
    lfs = getattr(entry, "lfs", None)
    if lfs is not None:
        return bool(lfs.sha256 == digest)
    content = path.read_bytes() if hasattr(entry, "blob_id") else b""
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return getattr(entry, "blob_id", None) == blob


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence.

    It raises errors of several libraries and wraps some of them, so the chain is searched for the hub's answer.
    """
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        raise _sentence(name, error) from error


def _sentence(name: str, error: BaseException) -> TrainerError:
    status = next((found for found in map(_status, _chain(error)) if found is not None), None)
    match status:
        case 401:
            return ConfigError(
                f"`export.hub` must have a token that the hub takes, but it refuses this one (401). {_LOGIN}"
            )
        case 403:
            return ConfigError(
                f"`export.hub` must name a repository that the token may write to, but it may not write to {name} "
                "(403). Name one of yours, or take a token with the right to write there."
            )
        case 404:
            return ConfigError(
                f"`export.hub` must name a place that the hub knows, but it does not find {name}, or hides it from "
                "this token (404). Check ORG and export.hub_revision."
            )
        case None:
            said = str(error).strip().splitlines() or [type(error).__name__]
            return TrainerError(
                f"The hub must answer, but it cannot be reached or stopped answering: {said[0]} Check the network and "
                "HF_ENDPOINT, then give the same command again: what was sent is not sent again."
            )
        case _:
            said = str(error).strip().splitlines() or [type(error).__name__]
            return TrainerError(
                f"The hub must take {name}, but answers {status}: {said[0]} Give the same command again later: what "
                "was sent is not sent again."
            )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    found = getattr(getattr(error, "response", None), "status_code", None)
    return found if isinstance(found, int) else None
