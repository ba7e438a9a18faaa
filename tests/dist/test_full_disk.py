"""A full disk, on a real small file system: a sentence on every rank, no hang, and the last checkpoint stays."""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dist import full_disk
from tests.dist.outside import said_in, two_ranks
from tests.dist.session import config_of, session_of, take_steps
from tests.dist.test_resume import saver_of
from tests.helpers.ranks import FOREIGN, ROOT
from tests.helpers.small_disk import PAGE, fill, mounted, pages_free
from trainer.checkpoint.layout import checkpoints_dir
from trainer.checkpoint.state import TrainState
from trainer.checkpoint.verify import newest_verified
from trainer.errors import CheckpointError
from trainer.metrics.jsonl import changed_line, read
from trainer.start.local import rank_processes

LIMIT_S = 240
"""Far below the 1800 s of cluster.comm_timeout_s, for which ranks that hang would wait."""


# ---- saving, on two ranks


def exhaust(folder: Path, left: int) -> Path:
    """Leave so many files and folders to be made."""
    crowd = folder / "crowd"
    crowd.mkdir()
    for number in range(os.statvfs(folder).f_favail - left):
        (crowd / str(number)).touch()
    assert os.statvfs(folder).f_favail == left
    return crowd


def sentence_of(saver: Any, step: int) -> str | None:
    """Save and return the sentence, if it failed."""
    try:
        assert saver.save(TrainState(step=step)) is None
    except CheckpointError as error:
        return str(error)
    return None


def save_on_a_full_disk(mesh: Any, workspace: str, disk: str, stage: int) -> dict[str, Any]:
    """Save step 1 whole, then step 2 with ever more room, until it fits."""
    folder, answers = Path(disk), {}
    with session_of(
        config_of(workspace, folder / "run", f"zero.stage={stage}", "zero.dtype=bf16")
    ) as session:
        take_steps(session, 1)
        saver = saver_of(session)
        saver.resume(goes_on=True)
        before = mesh.broadcast(pages_free(folder))
        assert sentence_of(saver, 1) is None
        mesh.barrier()
        total = mesh.broadcast(before - pages_free(folder))
        room = [0, 1, 2, total // 4, total // 2, total - 3, total - 2]
        cases = {f"{left} of {total} pages": (fill, left) for left in room}
        cases |= {f"{left} inodes": (exhaust, left) for left in (0, 1, 2, 3, 5)}
        cases |= {"room for all but the pointer": (fill, total - 1), "room enough": (fill, total)}
        for name, (take, left) in cases.items():
            taken = mesh.from_first(lambda take=take, left=left: take(folder, left))
            answers[name] = sentence_of(saver, 2)
            mesh.from_first(lambda taken=taken: remove(taken))
            if answers[name] is not None:
                left_over = sorted(path.name for path in checkpoints_dir(folder / "run").iterdir())
                assert left_over == ["latest", "step-00000001"], (name, left_over)
                assert newest_verified(folder / "run", pytest.fail)[1].step == 1  # type: ignore[index]
        answers["rank 1 alone"] = sentence_on_rank_1(mesh, saver)
    return answers


def remove(taken: Path) -> None:
    if taken.is_dir():
        for entry in taken.iterdir():
            entry.unlink()
        taken.rmdir()
    else:
        taken.unlink()


def sentence_on_rank_1(mesh: Any, saver: Any) -> str | None:
    """Save while one rank may write only so much of a file, as under a quota of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        if not mesh.is_first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (3 * PAGE, before[1]))
        return sentence_of(saver, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_checkpoint_that_finds_no_room_at_any_point_is_a_sentence_on_both_ranks(
    pool, workspace, tmp_path, stage
):
    """DeepSpeed's own save hung in all of seven tries: it makes folders and copies a script between barriers."""
    with mounted(tmp_path / "disk", "size=8m,nr_inodes=400") as disk:
        first, second = pool(2).run(
            save_on_a_full_disk, timeout_s=LIMIT_S, workspace=workspace, disk=str(disk), stage=stage
        )
        assert first == second
        assert first.pop("room enough") is None and first.pop("room for all but the pointer") is None
        assert "File too large" in first.pop("rank 1 alone")
        assert len(first) == 12
        for name, sentence in first.items():
            assert sentence is not None, name
            assert "No space left on device" in sentence and "Free space or set run_dir" in sentence, name
            assert sentence.endswith("the last checkpoint is untouched.")
        assert newest_verified(disk / "run", pytest.fail)[1].step == 2


# ---- everything else, through the command with two ranks


def start(workspace: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *words[:1], "--config", f"{workspace}/config.yaml", *words[1:]],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def endless(run_dir: Path) -> list[str]:
    return [
        "train",
        f"run_dir={run_dir}",
        "cluster.ranks_per_node=2",
        "train.max_steps=20000",
        "log.every_steps=1",
    ]


def wait_for_steps(process: subprocess.Popen[str], run_dir: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not (run_dir / "metrics.jsonl").exists() or '"loss"' not in (run_dir / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


def stop(process: subprocess.Popen[str]) -> None:
    """Kill what a failed test has left of its own."""
    if process.poll() is None:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        process.wait()


def command(workspace: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return subprocess.run(
        [sys.executable, "-m", "trainer", *words[:1], "--config", f"{workspace}/config.yaml", *words[1:]],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def assert_one_sentence(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == 2, said
    assert "Traceback" not in said and done.stderr.count("Error: ") == 1, said
    assert all(part in done.stderr for part in ("No space left on device", *parts)), said


def train_with_records_on(mesh: Any, workspace: str, folder: str, room_at: int) -> list[str]:
    """Train eight steps, of which each second is saved, on two full disks of records that get room at one of them.

    Returns:
        What was said of files that could not be written, or are whole.
    """
    from trainer.run import loop, training

    said, whole = Heard(), loop.advance

    def advance(state: TrainState, *rest: Any) -> None:
        if mesh.is_first and state.step == room_at:
            (Path(folder) / "disk" / "filler").unlink()
        whole(state, *rest)

    words = [
        "train.max_steps=8",
        "log.every_steps=1",
        "checkpoint.every_steps=2",
        "evaluate.forgetting=false",
    ]
    logger = logging.getLogger("trainer")
    loop.advance = advance
    logger.addHandler(said)
    try:
        config = config_of(workspace, Path(folder) / "run", *words, "checkpoint.keep_last=9")
        assert training.run_training(config).value == "finished"
    finally:
        logger.removeHandler(said)
        loop.advance = whole
    return said.lines


class Heard(logging.Handler):
    """Keeps what is told of records."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if ".jsonl" in line:
            self.lines.append(line)


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.jsonl"])
def test_training_goes_on_while_records_wait_for_room_and_saves_when_they_have_it(
    pool, workspace, tmp_path, name
):
    """No checkpoint is committed whose steps are not recorded, and in the end nothing is missing."""
    with mounted(tmp_path / "disk", f"size={PAGE * 20}") as disk:
        fill(disk, 0)
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        (run_dir / name).symlink_to(disk / name)
        said = pool(2).run(
            train_with_records_on, timeout_s=LIMIT_S, workspace=workspace, folder=str(tmp_path), room_at=4
        )[0]
        events = read(run_dir / "ledger.jsonl")
        steps = [row["step"] for row in read(run_dir / "metrics.jsonl") if "loss" in row]
        assert changed_line(run_dir / "ledger.jsonl") is None
    assert steps == list(range(1, 9))
    saves = [(event["event"], event["step"]) for event in events if "save" in event["event"]]
    assert ("not_saved", 2) in saves and saves[-1] == ("saved", 8), saves
    assert min(step for event, step in saves if event == "saved") >= 4, saves
    why = next(event["why"] for event in events if event["event"] == "not_saved")
    assert f"No space left on device: '{run_dir / name}'" in why and "tried again after step" in why
    of_file = [line for line in said if line.startswith(str(run_dir / name))]
    assert [line[len(str(run_dir / name)) + 1 :].split()[0] for line in of_file] == ["could", "is"], said


@pytest.mark.parametrize("name", [pytest.param("metrics.jsonl", marks=pytest.mark.slow), "ledger.jsonl"])
def test_records_that_find_no_room_until_the_end_are_a_sentence_on_both_ranks(workspace, tmp_path, name):
    """Rank 0 alone writes them, while rank 1 waits in the next step."""
    with mounted(tmp_path / "disk", f"size={PAGE}") as disk:
        (disk / "filler").write_bytes(b"\0" * PAGE)
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        (run_dir / name).symlink_to(disk / name)
        words = ["train", "--config", f"{workspace}/config.yaml", f"run_dir={run_dir}", "train.max_steps=5"]
        with two_ranks([*words, "log.every_steps=1"], tmp_path / "logs") as ranks:
            for rank in ranks:
                rank.join(LIMIT_S)
            assert [rank.exitcode for rank in ranks] == [2, 2], said_in(tmp_path / "logs")
        said = said_in(tmp_path / "logs")
        assert "Traceback" not in said and said.count("\nError: ") in (1, 2), said
        assert said.count(f"{run_dir / name} could not be written: No space left on device") >= 1, said
        assert newest_verified(run_dir, pytest.fail) is None, "no checkpoint without its records"


@pytest.mark.slow
@pytest.mark.parametrize("num_pages", [0, 3, 12, 20, 28, 40])
def test_a_run_directory_that_fills_up_before_the_end_is_a_sentence(workspace, tmp_path, num_pages):
    """From freezing the configuration over logs, the base's evaluation and forgetting.json to the report."""
    with mounted(tmp_path / "disk", f"size={PAGE * 1000}") as disk:
        fill(disk, num_pages)
        words = ("cluster.ranks_per_node=2", "train.max_steps=3", "checkpoint.enabled=false")
        done = command(workspace, tmp_path, "train", f"run_dir={disk / 'run'}", *words)
        print(num_pages, done.returncode, done.stderr[-600:])
        assert_one_sentence(done)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other(workspace, tmp_path):
    """It is no error that a person mends: exit code 2 would keep a job from starting again."""
    run_dir = tmp_path / "run"
    with start(workspace, tmp_path, *endless(run_dir)) as process:
        try:
            wait_for_steps(process, run_dir)
            rank = next(r for r in rank_processes(process.pid) if r.environ()["RANK"] == "1")
            rank.kill()
            _, said = process.communicate(timeout=LIMIT_S)
        finally:
            stop(process)
    assert process.returncode not in (0, 2), said
    assert "Rank 1 is gone without a word (killed, or its node)" in said


@pytest.mark.slow
def test_an_export_to_a_full_disk_is_a_sentence_and_leaves_nothing(workspace, tmp_path):
    run_dir = tmp_path / "run"
    words = (f"run_dir={run_dir}", "cluster.ranks_per_node=1", "train.micro_batch_size=4")
    done = command(workspace, tmp_path, "train", *words, "train.max_steps=2")
    assert done.returncode == 0, done.stderr
    with mounted(tmp_path / "disk", f"size={PAGE * 1000}") as disk:
        for num_pages in (0, 10, 20):
            filler = fill(disk, num_pages)
            assert_one_sentence(
                command(
                    workspace, tmp_path, "export", f"run_dir={run_dir}", f"export.output_dir={disk / 'out'}"
                )
            )
            assert [entry.name for entry in disk.iterdir()] == ["filler"]
            filler.unlink()


# ---- every file in turn: `python -m tests.dist.full_disk`


KINDS = (
    *(
        "run/.config.yaml.*",
        "run/metrics.jsonl*",
        "run/ledger.jsonl*",
        "run/.report.html.*",
        "run/logs/*/*.log",
    ),
    *("run/.provenance.json.*", "run/.forgetting.json.*", "run/.lease/*", "run/tensorboard/*"),
    *(
        f"run/checkpoints/.step-0000000{step}.*/{name}"
        for step in (5, 8)
        for name in ("shards/*", "manifest.json", "state.json", "fingerprint.safetensors", "rng-*")
    ),
    *("run/.export.*/part-*", "run/.export.*/tokenizer.json", "run/.export.*/config.json"),
    *("cache/stores/*", "cache/references/*", "cache/evaluations/*", "cache/models/*/model.safetensors"),
)


@pytest.mark.skipif(not full_disk.RESULTS.exists(), reason="no record: run python -m tests.dist.full_disk")
def test_the_record_is_of_every_kind_of_file_and_no_disk_was_too_full_at_any() -> None:
    """Each went on to the same bits when there was room; a checkpoint that was there before still verified."""
    recorded = json.loads(full_disk.RESULTS.read_text())
    files = {line["file"]: line for line in recorded["files"]}
    for kind in KINDS:
        assert fnmatch.filter(files, kind), kind
    assert recorded["problems"] == [] and len(files) > 45
    for name, line in files.items():
        assert line["code"] in (0, 2) and line["said"] and line["problem"] is None, name
        if name.startswith(f"run/checkpoints/.step-{full_disk.STEPS:08d}") and line["code"]:
            assert line["newest"] == f"step-{full_disk.STEPS - 1:08d}", name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> full_disk.Whole:
    return full_disk.Whole(tmp_path_factory.mktemp("full"))


@pytest.mark.parametrize("file", ["run/metrics.jsonl" + full_disk.TORN, "run/.export.*.tmp/tokenizer.json"])
def test_a_run_goes_on_to_the_same_when_there_is_room_again(whole: full_disk.Whole, file: str) -> None:
    found = whole.meet(file)
    assert found.problem is None and found.code == 2 and found.newest != "none yet", found
