"""The only place that imports wandb, and only when a run wants it.

Never asks and never hangs: online falls back to offline.
"""

from __future__ import annotations

import logging
import netrc
import os
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from trainer.config.log import WandbConfig, WandbMode
from trainer.config.rule import Problem, problem
from trainer.metrics.redact import redact
from trainer.metrics.tracker import Bookmark, Conclusion, Numbers, RunCard, Told, new_run_id
from trainer.metrics.wandb_file import newest_step

_LOG = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 2.0
_FINISH_TIMEOUT_S = 60.0
_OFFLINE_TIMEOUT_S = 300.0
"""No server is asked: only this machine or its disk can be slow."""
_KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_BAD_STATUSES = {"failed", "crashed", "non_finite"}


class WandbTracker:
    """Sends numbers to one wandb run.

    Ranks:
        Rank 0 only.
    """

    takes_back: ClassVar = False

    def __init__(self, run: Any) -> None:
        """Take a started wandb run."""
        self._run = run

    def write(self, step: int, numbers: Numbers) -> None:
        """Log the numbers of one step."""
        self._run.log(dict(numbers), step=step)

    def conclude(self, found: Conclusion) -> None:
        """Put the numbers and the words into the summary, and log the table."""
        import wandb

        self._run.log({"forgetting_table": wandb.Table(columns=list(found.columns), data=list(found.rows))})
        self._run.summary.update({**found.numbers, **found.words})

    def close(self, status: str | None) -> None:
        """Finish the run and wait for the upload, but not for ever."""
        if status is not None:
            self._run.summary["status"] = status
        self._run.finish(exit_code=1 if (status or "").lower() in _BAD_STATUSES else 0)


def open_wandb(
    options: WandbConfig, card: RunCard, bookmark: Bookmark, init_timeout_s: float = 30.0
) -> WandbTracker:
    """Begin a run, or go on in the one of the bookmark; online falls back to offline.

    Raises:
        Exception: wandb's own, when nothing could be started.
    """
    run_id = bookmark.run_id or new_run_id()
    arguments = {
        "dir": str(card.run_dir),
        "id": run_id,
        "resume": "allow",
        "project": card.project,
        "entity": options.entity,
        "name": card.name,
        "group": card.group,
        "tags": list(card.tags) or None,
        "config": dict(card.config),
    }
    card.run_dir.mkdir(parents=True, exist_ok=True)
    *firsts, last = _modes_to_try(options.mode)
    for attempt in firsts:
        try:
            run = _start(attempt, arguments, init_timeout_s)
        except Exception as error:
            # The message of the server may quote the address, which may carry a password.
            reason = redact({"reason": f"{type(error).__name__}: {error}"})["reason"]
            _LOG.warning("wandb could not start %s: %s", attempt, reason)
            _forget_failed_start()
        else:
            bookmark.begin(run_id)
            # What the server has: more may have been on its way when a process was killed.
            bookmark.mark = min(bookmark.mark, Told.through(run.starting_step - 1))
            return WandbTracker(run)
    written = newest_step(card.run_dir, run_id)
    run = _start(last, arguments, _OFFLINE_TIMEOUT_S)
    bookmark.begin(run_id)
    if written is not None:
        bookmark.mark = min(bookmark.mark, Told.through(written))
    return WandbTracker(run)


def login_problems(options: WandbConfig, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem where runs must be online and there are no credentials at all; does not import wandb.

    Args:
        environment: Variables of the job to come.
    """
    if options.mode is not WandbMode.online or any(environment.get(name) for name in _KEY_VARIABLES):
        return
    if not _netrc_entries():
        yield problem(
            "log.wandb.mode",
            "must be auto or offline without a login, but is online instead. Run `wandb login`, or set WANDB_API_KEY.",
        )


def _modes_to_try(mode: WandbMode) -> list[Literal["online", "offline"]]:
    if mode is WandbMode.offline:
        return ["offline"]
    url = _base_url()
    problem = None
    if url is None:
        problem = "its settings cannot be read"
    elif not has_wandb_key(url):
        problem = "there is no WANDB_API_KEY and no netrc entry"
    elif not can_connect(url):
        problem = f"{urlsplit(url).hostname} does not answer within {_CONNECT_TIMEOUT_S:.0f} s"
    if problem is None:
        return ["online", "offline"]
    level = logging.INFO if mode is WandbMode.auto else logging.WARNING
    _LOG.log(level, "wandb runs offline: %s. Send it later with `wandb sync`.", problem)
    return ["offline"]


def _start(mode: Literal["online", "offline"], arguments: dict[str, Any], timeout_s: float) -> Any:
    import wandb

    timeouts = {"finish_timeout": _FINISH_TIMEOUT_S}
    settings = wandb.Settings(
        init_timeout=timeout_s,
        login_timeout=timeout_s,
        # Older versions than 0.31 have no limit for the end of a run.
        **{key: value for key, value in timeouts.items() if key in wandb.Settings.model_fields},
        silent=True,
        # Secrets leave through these too: captured output, the command line (in the system
        # metadata), git remotes with a password, and the source of the program.
        console="off",
        x_disable_meta=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
    )
    run = wandb.init(mode=mode, settings=settings, **arguments)
    _LOG.info("wandb run %s is %s: %s", run.id, mode, run.url if mode == "online" else run.dir)
    return run


def _forget_failed_start() -> None:
    """Free the run id: after a failed start wandb refuses it as `in use` (seen in 0.31.0)."""
    import wandb

    try:
        wandb.teardown()
    except Exception as error:
        _LOG.debug("wandb.teardown failed: %s", error)


def _base_url() -> str | None:
    import wandb

    try:
        # Not wandb.Settings(): only this one reads the file that `wandb login --host` writes.
        return str(wandb.setup().settings.base_url)
    except Exception as error:
        _LOG.debug("wandb.setup failed: %s", error)
        return None


def has_wandb_key(base_url: str) -> bool:
    """Tell whether wandb would find credentials without asking."""
    if any(os.environ.get(name) for name in _KEY_VARIABLES):
        return True
    entries = _netrc_entries()
    host = urlsplit(base_url).netloc
    # Since 0.31 the public server has a second address, and the entry of the first still counts.
    hosts = [host, "api.wandb.ai"] if host.endswith("forge.coreweave.com") else [host]
    return any(entries.get(host, ("", "", ""))[2] for host in hosts)


def _netrc_entries() -> dict[str, tuple[str, str, str]]:
    """Return login, account and password by host."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(str(path)).hosts
    except (OSError, netrc.NetrcParseError):
        return {}


def can_connect(base_url: str, timeout_s: float = _CONNECT_TIMEOUT_S) -> bool:
    """Tell whether a TCP connection to the server, or to the proxy before it, opens in time."""
    parts = urlsplit(base_url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), timeout=timeout_s):
            return True
    except (OSError, ValueError):
        return False
