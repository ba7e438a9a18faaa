"""A preparation that is killed at any call or write leaves nothing that passes for a store, and the next goes on."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tests.dist.blows import SIGNALS, Counts, counting, struck
from tests.helpers.tokenizers import make_tokenizer
from tests.helpers.wait import wait_until
from trainer.config.data import DataConfig, SourceConfig
from trainer.data.prepare import prepare
from trainer.data.store.prepared import find_store

Tree = dict[str, bytes]
NUM_LINES = 400
TOKENIZER = make_tokenizer()


def data_of(folder: Path, cache: Path) -> DataConfig:
    """Return two sources of the same files, whatever cache they are prepared into."""
    sources = {name: SourceConfig(path=str(folder / f"{name}.jsonl")) for name in ("first", "second")}
    return DataConfig(sources=sources, cache_dir=str(cache), seq_len=64, num_workers=1, validation_frac=0.1)


def run(data: DataConfig) -> None:
    prepare(data, TOKENIZER, lambda: TOKENIZER, None, Console(file=io.StringIO()))


def trees(cache: Path) -> dict[str, Tree]:
    """Return every file of everything that has the name of a store, by store."""
    return {
        store.name: {str(f.relative_to(store)): f.read_bytes() for f in store.rglob("*") if f.is_file()}
        for store in (cache / "stores").glob("[!.]*")
    }


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for name in ("first", "second"):
        rows = ({"text": f"{name} text {number} " * (number % 7 + 1)} for number in range(NUM_LINES))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def whole(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tree], dict[str, int]]:
    """Prepare what nobody touches; return its stores, and the calls and writes that were made for them."""
    cache, counts = tmp_path_factory.mktemp("whole"), Counts()
    with counting(counts):
        run(data_of(texts, cache))
    found = trees(cache)
    assert len(found) == 2 and all("meta.json" in tree for tree in found.values())
    return found, counts.made


def end_at(data: DataConfig, how: str, where: str, at: int) -> int | None:
    """Prepare in a process that is struck; return its exit code."""

    def work() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with struck(how, where, at):
            run(data)
        os._exit(0)

    process = get_context("fork").Process(target=work)
    process.start()
    process.join()
    return process.exitcode


def go_on(data: DataConfig, whole: dict[str, Tree], where: str) -> None:
    """Find whole stores alone, prepare again, and find all of them."""
    cache = Path(data.cache_dir)
    left = trees(cache)
    assert all(tree == whole[name] for name, tree in left.items()), f"{where}: half a store"
    for name, source in data.sources.items():
        place = find_store(name, source, data, TOKENIZER)
        assert place is None or place.name in left, where
    run(data)
    assert trees(cache) == whole, where
    assert all(find_store(name, source, data, TOKENIZER) for name, source in data.sources.items()), where


def strike_all(
    texts: Path,
    whole: tuple[dict[str, Tree], dict[str, int]],
    tmp_path: Path,
    how: str,
    every: dict[str, int],
) -> None:
    stores, made = whole
    assert made["call"] > 30 and made["write"] > 10, made
    for where, step in every.items():
        for at in range(1, made[where] + 1, step):
            data = data_of(texts, tmp_path / f"{where}-{at}")
            assert end_at(data, how, where, at) == -SIGNALS[how], f"{where} {at}"
            go_on(data, stores, f"{how} {where} {at}")


def test_a_kill_at_some_calls_and_writes_leaves_whole_stores_and_the_next_preparation_makes_the_same(
    texts, whole, tmp_path
):
    strike_all(texts, whole, tmp_path, "kill", {"call": 6, "write": 7})
    strike_all(texts, whole, tmp_path / "term", "term", {"call": 50, "write": 30})


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "term"])
def test_a_kill_at_every_call_and_write_leaves_whole_stores(texts, whole, tmp_path, how):
    strike_all(texts, whole, tmp_path, how, {"call": 1, "write": 1})


def test_a_store_that_is_killed_again_and_again_is_made_in_the_end(texts, whole, tmp_path):
    """Each attempt is struck a little later; what the ones before left is met by all that follow."""
    data, stores = data_of(texts, tmp_path), whole[0]
    for at in range(2, whole[1]["call"], 15):
        if end_at(data, "kill", "call", at) == 0:
            break  # of what was made before less is made
        assert all(tree == stores[name] for name, tree in trees(tmp_path).items())
    go_on(data, stores, "at last")


COMMAND = """
import sys
from tests.dist.blows import Counts, counting, struck
from trainer.cli import run_command
from trainer.data import prepare

prepare.PARALLEL_BYTES = 0
how, where, at, *words = sys.argv[1:]
if how == "none":
    counts = Counts()
    with counting(counts):
        code = run_command(words)
    print("made", counts.made[where])
    sys.exit(code)
with struck(how, where, int(at)):
    sys.exit(run_command(words))
"""
MARK = "TEST_OF_KILLED_PREPARATIONS"


def command(folder: Path, cache: Path, how: str, where: str, at: int) -> subprocess.Popen[str]:
    """Start `palimpsest prepare` with two processes that tokenise, to be struck."""
    words = ["prepare", "model=tiny", f"data.cache_dir={cache}", "data.num_workers=2", f"run_dir={cache}/run"]
    words += ["train.max_steps=1", f"data.sources.s.path={folder / 'first.jsonl'}", "data.seq_len=64"]
    environ = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        MARK: str(cache),
    }
    line = [sys.executable, "-c", COMMAND, how, where, str(at), *words]
    return subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def alive(cache: Path) -> list[psutil.Process]:
    """Return the processes of preparations into a cache that have not ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(cache) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "term"])
def test_of_a_command_that_is_killed_no_worker_is_left_and_the_same_command_goes_on(texts, tmp_path, how):
    untouched, said = command(texts, tmp_path / "whole", "none", "call", 0), ""
    said = untouched.communicate()[0]
    assert untouched.returncode == 0, said
    total, stores = int(said.rpartition("made ")[2]), trees(tmp_path / "whole")
    assert len(stores) == 1
    blows = [("call", 1 + round(share * (total - 1))) for share in (0.3, 0.6, 0.9, 1)]
    blows += [("ms", at) for at in (1500, 3000, 4500, 6000)]
    for where, at in blows:
        cache = tmp_path / f"{where}-{at}"
        struck_one = command(texts, cache, how, where, at)
        said = struck_one.communicate()[0]
        assert struck_one.returncode in (-SIGNALS[how], 0), said
        wait_until(lambda cache=cache: not alive(cache), "the end of its workers")
        assert all(tree == stores[name] for name, tree in trees(cache).items()), f"{where} {at}"
        again = command(texts, cache, "none", "call", 0)
        said = again.communicate()[0]
        assert again.returncode == 0 and trees(cache) == stores, f"{where} {at}: {said}"
