"""Self-generated replay over ranks: the same bytes from any number of them, and through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dist.session import config_of
from tests.helpers.ranks import FOREIGN, ROOT
from tests.helpers.wait import LIMIT_S, wait_until

LOOSE = ("max_replacement=1", "max_repeated_ngrams=1")
"""Random weights seldom write valid UTF-8."""


def generate(mesh: Any, workspace: str, folder: str, prompts: str) -> dict[str, Any]:
    """Generate under a folder; return the bytes of the samples and what ranks did."""
    from trainer.command.replay import generate_on
    from trainer.runtime.signals import StopFlag
    from trainer.sample.sampler import TransformersSampler

    wanted = ["batch_size=8", "seed=5", f"prompts={prompts}", *LOOSE]
    if prompts == "text":
        wanted += ["num_tokens=1000", "max_new_tokens=40"]
    else:
        wanted += ["num_tokens=300", "max_new_tokens=150", "min_new_tokens=2"]
    if prompts == "given":
        rows = [{"prompt": "a" * (number + 1)} for number in range(5)]
        if mesh.is_first:
            (Path(folder).parent / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        mesh.barrier()
        wanted.append(f"prompt_file={Path(folder).parent}/asked.jsonl")
    config = config_of(
        workspace,
        folder,
        f"data.cache_dir={folder}",
        f"model.path={workspace}/model",
        *(f"replay.generate.{one}" for one in wanted),
    )
    numbers: list[int] = []
    original = TransformersSampler.sample

    def noted(self: Any, number: int, should_stop: Any) -> Any:
        numbers.append(number)
        return original(self, number, should_stop)

    TransformersSampler.sample = noted  # type: ignore[method-assign]
    try:
        assert generate_on(mesh, config, StopFlag())
        first = len(numbers)
        assert generate_on(mesh, config, StopFlag()), "the finished store was not found"
    finally:
        TransformersSampler.sample = original  # type: ignore[method-assign]
    assert len(numbers) == first, "a finished store was sampled again"
    (store,) = (Path(folder) / "generated").glob("[!.]*")
    meta = json.loads((store / "meta.json").read_text())
    return {
        "samples": (store / "generated.jsonl").read_text(),
        "key": meta["key"],
        "counts": {k: v for k, v in meta["counts"].items() if k != "sampling_s"},
        "examples": meta["dropped_examples"],
        "numbers": numbers,
    }


@pytest.mark.parametrize(
    "prompts", ["text", *(pytest.param(one, marks=pytest.mark.slow) for one in ("chat", "given"))]
)
def test_one_rank_and_two_make_the_same_store(pool, workspace, tmp_path, prompts):
    (alone,) = pool(1).run(generate, workspace=workspace, folder=str(tmp_path / "one"), prompts=prompts)
    both = pool(2).run(generate, workspace=workspace, folder=str(tmp_path / "two"), prompts=prompts)
    for one in both:
        assert {k: one[k] for k in one if k != "numbers"} == {k: alone[k] for k in alone if k != "numbers"}
    assert alone["numbers"] == list(range(alone["counts"]["batches"]))
    assert sorted(both[0]["numbers"] + both[1]["numbers"])[: len(alone["numbers"])] == alone["numbers"]
    assert both[0]["numbers"] and both[1]["numbers"]
    rows = [json.loads(line) for line in alone["samples"].splitlines()]
    assert len(rows) == alone["counts"]["kept"] > 1
    if prompts == "text":
        assert all(list(row) == ["text"] for row in rows)
    else:
        assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
        if prompts == "given":
            assert {row["messages"][0]["content"] for row in rows} <= {"a" * (n + 1) for n in range(5)}
        assert alone["counts"]["dropped"]["not ended"] > 0


def test_what_was_sampled_goes_on_when_more_is_asked_for_and_not_under_other_options(workspace, tmp_path):
    from trainer.command.replay import make_request

    def keys(*words: str) -> tuple[str, str]:
        words = (f"model.path={workspace}/model", *(f"replay.generate.{word}" for word in words))
        request = make_request(config_of(workspace, tmp_path, *words))
        return request.key, request.samples_key

    first = keys("prompts=text", "max_new_tokens=8")
    more = keys("prompts=text", "max_new_tokens=8", "num_tokens=99")
    assert more[0] != first[0] and more[1] == first[1]
    assert keys("prompts=text", "max_new_tokens=9")[1] != first[1]
    assert keys("prompts=text", "max_new_tokens=8", "seed=7")[1] != first[1]


def start(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    words = [
        "model=tiny",
        f"data.cache_dir={folder}/cache",
        *(f"replay.generate.{one}" for one in ("prompts=text", "max_new_tokens=24", *LOOSE)),
        *overrides,
    ]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "replay", "generate", *words],
        env=environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill launcher and ranks at once, as a node that dies does."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.kill()
    process.communicate()


def finished(process: subprocess.Popen[str]) -> str:
    shown = process.communicate(timeout=LIMIT_S)[0]
    assert process.returncode == 0, shown
    return shown


@pytest.mark.slow
def test_a_killed_command_goes_on_and_makes_the_store_of_one_that_was_not(tmp_path):
    goal = "replay.generate.num_tokens=20000"
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir(), whole.mkdir()
    process = start(killed, goal, "cluster.ranks_per_node=2")
    generated = killed / "cache" / "generated"
    parts = ".*.work/part-*.jsonl"
    wait_until(
        lambda: sum(part.read_bytes().count(b"\n") for part in generated.glob(parts)) >= 6,
        "six batches",
        process=process,
    )
    kill_tree(process)
    assert list(generated.glob("[!.]*")) == []
    shown = finished(start(killed, goal, "cluster.ranks_per_node=1"))
    assert "dropped: special tokens inside" in shown and "sample 3: text: " in shown
    finished(start(whole, goal, "cluster.ranks_per_node=1"))
    bytes_of = [next(f.glob("cache/generated/*/generated.jsonl")).read_bytes() for f in (killed, whole)]
    assert bytes_of[0] == bytes_of[1] and len(bytes_of[0]) > 20_000
    again = finished(start(whole, goal))
    assert "These samples are there already." in again


@pytest.mark.slow
def test_two_commands_at_once_leave_one_whole_store(tmp_path):
    goal = "replay.generate.num_tokens=2000"
    both = [start(tmp_path, goal, "cluster.ranks_per_node=1") for _ in range(2)]
    for process in both:
        assert "sample 1: text: " in finished(process)
    generated = tmp_path / "cache" / "generated"
    (store,) = generated.glob("[!.]*")
    assert sorted(path.name for path in store.iterdir()) == ["generated.jsonl", "meta.json"]
    assert sorted(path.name for path in generated.iterdir()) == sorted([store.name, f".{store.name}.lock"])
