"""wandb without a network: modes, fall-backs, and what its files hold. wandb itself is real."""

from __future__ import annotations

import logging
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.wait import LIMIT_S
from trainer.config.log import WandbConfig, WandbMode
from trainer.metrics.tracker import Bookmark, RunCard
from trainer.metrics.wandb import WandbTracker, can_connect, has_wandb_key, login_problems, open_wandb

pytest.importorskip("wandb")

FAKE_KEY = "f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed"


@pytest.fixture(autouse=True)
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers, like a broken proxy."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _open(mode: WandbMode, run_dir: Path, **config: object) -> WandbTracker:
    card = RunCard(run_dir, "test", "palimpsest", None, (), config)
    return open_wandb(WandbConfig(mode), card, Bookmark.read(run_dir, "wandb"), init_timeout_s=2.0)


def _written(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CANARY_RUN = """
import sys
from pathlib import Path
from trainer.config.log import LogConfig, TrackerKind, WandbConfig, WandbMode
from trainer.metrics.trackers import begin, run_card
canary = sys.argv[1]
print("printed", canary)
log = LogConfig(
    trackers=[TrackerKind.wandb], tags=["t-" + canary], group="g " + canary, wandb=WandbConfig(WandbMode.offline)
)
config = {
    "visible": "innocent-text", "api_key": canary, "nested": [{"password": canary}],
    "value": canary, "url": f"https://user:{canary}@host/x", "hub": "hf_" + "aB3" * 8,
}
(tracker,) = begin(log, run_card(log, Path("run"), "n " + canary, config), -1, [])
for step in (1, 2):
    tracker.write(step, {"loss": 1.5, "tokens_per_s": 10.0, "note": "see " + canary})
tracker.close("finished")
"""


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path) -> None:
    """Config, names, records, printed text, command line and environment all carry the canary."""
    canary = "canary-5f0c1d9e-never-leaves"
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "HOME": str(tmp_path),
        "SOME_SERVICE_TOKEN": canary,
        "WANDB_API_KEY": FAKE_KEY,
    }
    subprocess.run(
        [sys.executable, "-c", CANARY_RUN, canary, f"model.token={canary}"],
        cwd=tmp_path,
        env=environment,
        check=True,
        timeout=LIMIT_S,
        capture_output=True,
    )
    written = _written(tmp_path)
    records = [path for path in written if path.suffix == ".wandb"]
    assert len(records) == 1, "the run left no records, so the search below would prove nothing"
    content = written[records[0]]
    for expected in (b"innocent-text", b"tokens_per_s", b"<removed>", b"palimpsest"):
        assert expected in content
    for secret in (canary.encode(), FAKE_KEY.encode(), b"hf_" + b"aB3" * 8):
        assert [path for path, content in written.items() if secret in content] == []


@pytest.mark.parametrize("mode", [WandbMode.auto, WandbMode.online])
def test_without_a_key_the_run_is_offline_and_nobody_is_asked(mode: WandbMode, tmp_path: Path) -> None:
    sink = _open(mode, tmp_path / "run", lr=1e-5)
    sink.write(1, {"loss": 1.0})
    sink.close("finished")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_a_server_that_never_answers_is_given_up_and_the_run_is_offline(
    tmp_path: Path,
    silent_server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without teardown in between, wandb 0.31 refuses the run id of the failed start."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    with caplog.at_level(logging.WARNING):
        sink = _open(WandbMode.auto, tmp_path / "run")
    sink.write(1, {"loss": 1.0})
    sink.close("preempted")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    # Ended by our limit: wandb's own is a minute and a half, in which it asks again and again.
    assert re.search(r"wandb could not start online: .*(deadline exceeded|timed out after 2)", caplog.text)
    wandb.teardown()


def test_a_run_online_needs_a_login_and_no_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = WandbConfig(WandbMode.online)
    (found,) = login_problems(online, {})
    assert re.match(r"`log.wandb.mode` must be .* Run `wandb login`, or set WANDB_API_KEY", found.sentence)
    assert not [*login_problems(WandbConfig(WandbMode.auto), {})]
    assert not [*login_problems(online, {"WANDB_API_KEY": FAKE_KEY})]
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password x\n")
    assert not [*login_problems(online, {})]


def test_credentials_are_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://api.wandb.ai"
    assert not has_wandb_key(url)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert has_wandb_key(url)
    assert has_wandb_key("https://api.forge.coreweave.com")
    assert not has_wandb_key("https://wandb.example.org")
    (tmp_path / "netrc").write_text("this is no netrc file\n")
    assert not has_wandb_key(url)
    monkeypatch.setenv("WANDB_API_KEY", FAKE_KEY)
    assert has_wandb_key(url)


def test_connection_is_tried_through_the_proxy(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_connect(silent_server)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert not can_connect(closed)
        monkeypatch.setenv("https_proxy", silent_server)
        assert can_connect("https://wandb.invalid")
        monkeypatch.setenv("https_proxy", closed)
        assert not can_connect("https://wandb.invalid")


def test_importing_the_sink_does_not_import_wandb() -> None:
    code = "import sys, trainer.metrics.wandb; sys.exit('wandb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=True, timeout=LIMIT_S)
