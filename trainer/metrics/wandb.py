"""The only place that imports wandb, and only when a run wants it.

Never asks, never hangs and never ends a run: online falls back to offline, offline to none.
"""

from __future__ import annotations

import importlib.util
import logging
import netrc
import os
import secrets
import socket
import string
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from trainer.config.train import LogConfig, WandbMode
from trainer.errors import TrainerError
from trainer.metrics.redact import redact
from trainer.metrics.sink import Record

_LOG = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S = 2.0
_FINISH_TIMEOUT_S = 60.0
_OFFLINE_TIMEOUT_S = 300.0
"""No server is asked: only this machine or its disk can be slow."""
_BAD_STATUSES = {"failed", "crashed", "non_finite"}


class WandbSink:
    """Sends records to one wandb run. Built by `build_wandb`.

    Ranks:
        Rank 0 only.
    """

    def __init__(self, run: Any) -> None:
        """Take a started wandb run."""
        self._run = run

    def write(self, step: int, record: Record) -> None:
        """Log one record; after a resume wandb ignores the steps that it already has."""
        texts = redact({key: value for key, value in record.items() if isinstance(value, str)})
        self._run.log({**record, **texts}, step=step)

    def close(self, status: str) -> None:
        """Finish the run and wait for the upload, but not for ever."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=1 if status.lower() in _BAD_STATUSES else 0)


def new_run_id() -> str:
    """Return a fresh wandb run id; keep it in the run directory so a resumed run goes on."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def build_wandb(
    options: LogConfig,
    run_dir: Path,
    run_id: str,
    name: str,
    config: Mapping[str, Any],
    init_timeout_s: float = 30.0,
) -> WandbSink | None:
    """Start or continue a wandb run; None when there is to be none or none could be started.

    `config` is attached to the run with its secrets removed.

    Raises:
        TrainerError: If wandb was asked for by name but is not installed.
    """
    mode = options.wandb
    if mode is WandbMode.disabled:
        return None
    if importlib.util.find_spec("wandb") is None:
        if mode is WandbMode.auto:
            _LOG.info("wandb is not installed; the run is not sent anywhere.")
            return None
        raise TrainerError(
            f"`log.wandb` must be disabled or auto without the wandb package, but is {mode.value} "
            "instead. Run `pip install wandb` or set log.wandb=disabled."
        )
    labels = redact({"name": name, "group": options.wandb_group, "tags": options.wandb_tags or None})
    arguments = {
        "dir": str(run_dir),
        "id": run_id,
        "resume": "allow",
        "project": options.wandb_project,
        "entity": options.wandb_entity,
        "config": redact(config),
        **labels,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    for attempt in _modes_to_try(mode):
        try:
            return WandbSink(
                _start(attempt, arguments, init_timeout_s if attempt == "online" else _OFFLINE_TIMEOUT_S)
            )
        except Exception as error:
            # The message of the server may quote the address, which may carry a password.
            reason = redact({"reason": f"{type(error).__name__}: {error}"})["reason"]
            _LOG.warning("wandb could not start %s: %s", attempt, reason)
            _forget_failed_start()
    _LOG.warning("The run is not sent to wandb; metrics.jsonl has everything.")
    return None


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
    _LOG.info("wandb run %s is %s: %s", run.id, mode, run.url or run.dir)
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
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        entries = netrc.netrc(str(path))
    except (OSError, netrc.NetrcParseError):
        return False
    host = urlsplit(base_url).netloc
    # Since 0.31 the public server has a second address, and the entry of the first still counts.
    hosts = [host, "api.wandb.ai"] if host.endswith("forge.coreweave.com") else [host]
    found = [entries.authenticators(host) for host in hosts]
    return any(entry is not None and bool(entry[2]) for entry in found)


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
