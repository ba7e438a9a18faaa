"""`palimpsest verify`: what a run consumed is worked out anew, and what is not as it was written is named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from launch.status import run_status
from tests.dist.session import config_of, train_frozen
from tests.dist.test_resealed import seal_anew
from tests.dist.test_spikes import train_through_a_spike, words_of
from tests.helpers.ranks import RankFailure
from trainer.checkpoint.layout import step_dir
from trainer.cli import run_command
from trainer.command.exported import what_stands
from trainer.config.snapshot import freeze
from trainer.config.store import load_config
from trainer.metrics.jsonl import read
from trainer.runtime.seal import read_sealed, sealed_text

WORDS = [
    *("train.max_steps=6", "checkpoint.every_steps=2", "checkpoint.keep_last=2", "zero.stage=2"),
    *("data.sources.text.role=replay", "replay.ratio=0.3", "evaluate.forgetting=false"),
]


@pytest.fixture(scope="module")
def trained(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of two ranks with replay, six steps long."""
    run_dir = tmp_path_factory.mktemp("verify") / "run"
    run_dir.mkdir()
    pool(2).run(train_frozen, workspace=workspace, run_dir=str(run_dir), words=WORDS)
    return run_dir


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_sound_run_is_told_what_it_consumed(trained, capsys):
    assert run_command(["verify", str(trained)]) == 0
    said = capsys.readouterr().out
    state = json.loads((step_dir(trained, 6) / "state.json").read_text())
    assert (
        f"{state['tokens_seen']:,} tokens in 6 steps: those that the configuration draws (3 digests compared)"
        in said
    )
    assert "step-00000006  " in said and "by 2 ranks at ZeRO-2: as written" in said
    assert "1 attempt, 0 steps thrown away, 0 steps skipped" in said
    assert "All is as it was written. The run is finished: 6 of 6 steps." in said


def test_a_flipped_bit_in_a_checkpoint_is_named(run, capsys):
    flip(step_dir(run, 4) / "shards" / "rank-00001.safetensors")
    assert run_command(["verify", f"run_dir={run}"]) == 2
    said = capsys.readouterr()
    assert "step-00000004: shards/rank-00001.safetensors has another content than was written" in said.err
    assert "those that the configuration draws" in said.out


def test_a_ledger_that_was_changed_is_named(run, capsys):
    path = run / "ledger.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"step":2', '"step":3')
    path.write_text("\n".join(lines) + "\n")
    assert run_command(["verify", str(run)]) == 2
    assert "ledger: line 2 is not as it was written" in capsys.readouterr().err


def test_a_run_that_consumed_other_tokens_is_told_so(run, capsys):
    """Its frozen configuration is given another seed, as if the run had drawn in another order."""
    assert run_command(["verify", str(run), "seed=5"]) == 2
    assert (
        "tokens: those of the steps up to 2 are not what the configuration draws. Give the configuration that it"
        in capsys.readouterr().err
    )


def test_another_configuration_than_the_run_was_trained_with_is_named(run, capsys):
    """One that lost its seal with its end is a person's own; its rate says nothing of tokens."""
    path = run / "config.yaml"
    whole = path.read_text()
    assert "  weight_decay:" in whole
    kept = [line for line in whole.splitlines() if not line.startswith(("# sha256", "  weight_decay:"))]
    path.write_text("\n".join(kept) + "\n")
    before = load_config(path).optim.weight_decay
    path.write_text(path.read_text().replace("optim:\n", f"optim:\n  weight_decay: {before / 2 + 0.01}\n"))
    assert run_command(["verify", str(run)]) == 2
    said = capsys.readouterr()
    assert "configuration: is not the one that step-00000006 was saved with. Give the conf" in said.err
    assert "those that the configuration draws" in said.out


def test_a_state_that_somebody_made_is_named(run, capsys):
    """It ended in a traceback."""
    folder = step_dir(run, 6)
    state = folder / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"step": "six"}))
    seal_anew(folder)
    assert run_command(["verify", str(run)]) == 2
    assert f"step-00000006: {state} has a value of another kind for step" in capsys.readouterr().err


def test_a_run_whose_checkpoints_are_gone_is_not_all_that_it_was(run, capsys):
    shutil.rmtree(run / "checkpoints")
    assert run_command(["verify", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "though the ledger knows that step 6 was saved" in said
        and "All that is here is as it was written" in said
    )


def test_data_that_is_no_longer_what_the_run_read_is_told_so_and_with_the_right_advice(run, capsys):
    """A failure: that it must be prepared, or that `train` with the same words goes on, which refuses it."""
    path = run / "provenance.json"
    record = json.loads(path.read_text())
    record["inputs"]["data"]["chat"]["origin"] = "of other bytes"
    path.write_text(json.dumps(record))
    assert run_command(["verify", str(run)]) == 2
    said = capsys.readouterr().err
    assert (
        "but is not: data: `data.sources.chat` no longer holds what the run read. Bring back the data" in said
    )
    assert "prepare" not in said and "same words" not in said


def test_a_source_that_was_only_touched_is_the_same(run, workspace, capsys):
    """It was to be prepared anew: "has no token store for it with these options and files"."""
    file = Path(workspace) / "chat.jsonl"
    was = file.stat()
    os.utime(file, (1, 1))
    try:
        assert run_command(["verify", str(run)]) == 0
    finally:
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert "those that the configuration draws" in capsys.readouterr().out


def test_a_flipped_bit_in_a_store_is_named(run, capsys, workspace, tmp_path):
    """Of a pack that the run drew; its metadata has the digest."""
    cache = Path(shutil.copytree(Path(workspace) / "cache", tmp_path / "cache"))
    for path in cache.glob("stores/*/train/tokens.bin"):
        content = bytearray(path.read_bytes())
        content[::8] = bytes(byte ^ 1 for byte in content[::8])  # in every pack
        path.write_bytes(bytes(content))
    assert run_command(["verify", str(run), f"data.cache_dir={cache}"]) == 2
    said = capsys.readouterr().err
    assert "tokens: " in said and "train/tokens.bin" in said


def test_every_export_of_a_run_is_looked_at_wherever_it_is(run, tmp_path, capsys):
    """One that `export.output_dir` had put elsewhere was not: "export none"."""
    outside = tmp_path / "elsewhere" / "model"
    assert run_command(["export", f"run_dir={run}"]) == 0
    assert run_command(["export", f"run_dir={run}", f"export.output_dir={outside}"]) == 0
    assert run_command(["verify", str(run)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"export {run / 'export'}: as written" in said and f"export {outside}: as written" in said
    for folder in (run / "export", outside):
        (path,) = folder.glob("*.safetensors")
        flip(path)
        assert run_command(["verify", str(run)]) == 2
        assert f"export: {path.name} in {folder} is not as it was written" in capsys.readouterr().err
        flip(path)
    (outside / ".verified.json").unlink()
    assert run_command(["verify", str(run)]) == 2
    assert f"{outside} has no .verified.json any more. Export again" in capsys.readouterr().err


def test_an_export_that_is_gone_or_anothers_is_said_and_a_moved_run_takes_its_own_along(run, capsys):
    assert run_command(["export", f"run_dir={run}"]) == 0
    moved = run.rename(run.with_name("moved"))
    assert run_command(["verify", str(moved)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"export {moved / 'export'}: as written" in said and "All is as it was written." in said
    listed = moved / "export" / ".verified.json"
    record = read_sealed(listed)
    listed.write_text(sealed_text(record | {"origin": "of another run"}))
    assert run_command(["verify", str(moved)]) == 0
    assert "holds another export by now than this run wrote there" in " ".join(
        capsys.readouterr().out.split()
    )
    shutil.rmtree(moved / "export")
    assert run_command(["verify", str(moved)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{moved / 'export'} is gone: it was removed" in said and "All that is here is as it" in said
    (note,) = (moved / "exported").iterdir()
    flip(note)
    assert run_command(["verify", str(moved)]) == 2
    assert f"export: exported/{note.name} cannot be read" in capsys.readouterr().err


def test_a_run_that_was_killed_rewound_and_gone_on_with_by_one_rank_is_told_what_that_cost(
    pool, workspace, tmp_path, capsys
):
    """Killed in its fourth step with two saved, and rewound from the ninth to the fourth: six steps thrown away."""
    run_dir = tmp_path / "run"
    freeze(config_of(workspace, run_dir, *words_of("rewind")), run_dir)
    words = {"workspace": workspace, "run_dir": str(run_dir), "policy": "rewind"}
    with pytest.raises(RankFailure, match="died with -9"):
        pool(2).run(train_through_a_spike, **words, kill_at=[3, 1])
    assert pool(1).run(train_through_a_spike, **words) == ["finished"]
    rows = [row for row in read(run_dir / "metrics.jsonl") if "step_time_s" in row]
    assert [row["step"] for row in rows] == list(range(1, 13))
    times = [row["time"] for name in ("metrics", "ledger") for row in read(run_dir / f"{name}.jsonl")]
    ratio = sum(row["step_time_s"] for row in rows) / (max(times) - min(times))
    assert 0 < ratio < 1 and run_status(run_dir).effective == pytest.approx(ratio)
    assert run_command(["verify", str(run_dir)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 attempts, 6 steps thrown away, 1 step skipped" in said
    assert run_status(run_dir).num_attempts == 2
    assert f"{ratio:.1%} of the time in steps that stayed (ETTR)" in said
    assert "those that the configuration draws" in said and "by 1 rank at" in said and "by 2 ranks at" in said


def test_a_folder_that_holds_no_run_is_a_sentence(tmp_path, capsys):
    assert run_command(["verify", str(tmp_path)]) == 2
    assert "`run_dir` must hold a run, but" in capsys.readouterr().err


def test_an_export_that_is_interrupted_says_what_stands_and_is_made_again(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C had one word, whatever was there."""
    ends = threading.Event()

    def interrupt() -> None:
        while not ends.wait(0.001):
            if any(run.glob(".export.*.tmp")) or (run / "export").exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    code = run_command(["export", f"run_dir={run}"])
    ends.set()
    watcher.join()
    assert code == 130
    assert f"Interrupted. {what_stands(run / 'export', '')}" in capsys.readouterr().err
    assert run_command(["export", f"run_dir={run}"]) == 0
