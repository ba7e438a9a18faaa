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
from trainer.config.train import LogConfig, WandbMode
from trainer.metrics.wandb import (
    WandbSink,
    build_wandb,
    can_connect,
    has_wandb_key,
    new_run_id,
)

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


def _build(mode: WandbMode, run_dir: Path, **config: object) -> WandbSink | None:
    return build_wandb(
        LogConfig(wandb=mode),
        run_dir=run_dir,
        run_id=new_run_id(),
        name="test",
        config=config,
        init_timeout_s=2.0,
    )


def _written(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    assert _build(WandbMode.disabled, tmp_path / "run") is None
    assert not (tmp_path / "run").exists()


CANARY_RUN = """
import sys
from pathlib import Path
from trainer.config.train import LogConfig, WandbMode
from trainer.metrics.wandb import build_wandb
canary = sys.argv[1]
print("printed", canary)
options = LogConfig(wandb=WandbMode.offline, wandb_tags=["t-" + canary], wandb_group="g " + canary)
sink = build_wandb(
    options, run_dir=Path("run"), run_id="canary01", name="n " + canary,
    config={
        "visible": "innocent-text", "api_key": canary, "nested": [{"password": canary}],
        "value": canary, "url": f"https://user:{canary}@host/x", "hub": "hf_" + "aB3" * 8,
    },
)
for step in (1, 2):
    sink.write(step, {"loss": 1.5, "tokens_per_s": 10.0, "note": "see " + canary})
sink.close("finished")
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
    records = [path for path in written if path.name == "run-canary01.wandb"]
    assert records, "the run left no records, so the search below would prove nothing"
    content = written[records[0]]
    for expected in (b"innocent-text", b"tokens_per_s", b"<removed>", b"palimpsest"):
        assert expected in content
    for secret in (canary.encode(), FAKE_KEY.encode(), b"hf_" + b"aB3" * 8):
        assert [path for path, content in written.items() if secret in content] == []


@pytest.mark.parametrize("mode", [WandbMode.auto, WandbMode.online])
def test_without_a_key_the_run_is_offline_and_nobody_is_asked(mode: WandbMode, tmp_path: Path) -> None:
    sink = _build(mode, tmp_path / "run", lr=1e-5)
    assert sink is not None
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
        sink = _build(WandbMode.auto, tmp_path / "run")
    assert sink is not None
    sink.write(1, {"loss": 1.0})
    sink.close("preempted")
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    # Ended by our limit: wandb's own is a minute and a half, in which it asks again and again.
    assert re.search(r"wandb could not start online: .*(deadline exceeded|timed out after 2)", caplog.text)
    wandb.teardown()


def test_when_nothing_starts_the_run_goes_on_without_wandb(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    with caplog.at_level(logging.WARNING):
        sink = build_wandb(
            LogConfig(wandb=WandbMode.offline),
            run_dir=run_dir,
            run_id="not/a/valid id",
            name="test",
            config={},
        )
    assert sink is None
    assert "The run is not sent to wandb" in caplog.text


def test_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    run_id = new_run_id()
    for first_step in (1, 101):
        sink = build_wandb(
            LogConfig(wandb=WandbMode.offline),
            run_dir=tmp_path,
            run_id=run_id,
            name="test",
            config={},
        )
        assert sink is not None
        sink.write(first_step, {"loss": 1.0})
        sink.write(first_step, {"eval/web": 1.0})
        sink.close("finished")
    assert list(tmp_path.glob(f"wandb/offline-run-*-{run_id}"))


def test_run_ids_differ_and_are_plain() -> None:
    ids = {new_run_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[a-z0-9]{8}", text) for text in ids)


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


def test_missing_wandb_is_an_error_only_when_it_was_asked_for(tmp_path: Path) -> None:
    code = """
import importlib.util, sys
from pathlib import Path
# An isolated interpreter without site-packages has no wandb.
assert importlib.util.find_spec("wandb") is None
sys.path.insert(0, sys.argv[1])
from trainer.config.train import LogConfig, WandbMode
from trainer.errors import TrainerError
from trainer.metrics.wandb import build_wandb
def build(mode):
    return build_wandb(LogConfig(wandb=mode), Path(sys.argv[2]), run_id="a", name="n", config={})
assert build(WandbMode.auto) is None
for mode in (WandbMode.online, WandbMode.offline):
    try:
        build(mode)
    except TrainerError as error:
        assert "`log.wandb` must be" in str(error) and mode.value in str(error)
    else:
        raise AssertionError(mode)
"""
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-I", "-S", "-c", code, root, str(tmp_path)], check=True, timeout=LIMIT_S)
