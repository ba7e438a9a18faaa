"""One bit flipped in every file of a run and of its cache in turn, and what happens: benchmarks/results/flips.json.

    python -m tests.dist.flips [--only PATTERN] [--out FILE]

A small run of four steps with replay, KL to its base and forgetting is trained, its last checkpoint is taken away, and
one bit is flipped; then the run goes on, or for a file of the cache another one begins, which must come to the same.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.helpers.ranks import ROOT, STARTING, only, own_environment, settle_in
from tests.helpers.wait import LIMIT_S
from trainer.runtime.seal import file_digest

RESULTS = ROOT / "benchmarks" / "results" / "flips.json"
LAST = "step-00000004"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
HARMLESS = {
    "run/logs/*": "a log, for people",
    "run/metrics.jsonl": "numbers of steps, for people and trackers; lines that are no JSON are set aside and said",
    "run/report.html": "a page, written anew at every end of a run",
    "run/forgetting.json": "a result, measured anew at every end of a run",
    "run/deepspeed.json": "what DeepSpeed was given, for people; written anew at every start",
    "run/checkpoints/latest": "a name for people; checkpoints are found by their manifests",
    "run/checkpoints/step-00000002/*": "the checkpoint before the newest, verified where a run goes on from it",
    "run/.lock": "the name of who held the directory, for a message",
    "run/.lease/*": "the number is its name; a holder that cannot be read is waited for",
    "run/export/*": "an export is made anew from the checkpoint, whose files are verified",
    "cache/locks/*": "the name of who prepares a source, for a message",
}
"""Files of which a flipped bit changes nothing that a run does."""


@dataclass(frozen=True, slots=True)
class Flip:
    """What became of one flipped bit."""

    file: str
    byte: int
    outcome: str
    """refused, said, made again, not read, taken, unnamed."""
    said: str
    why_harmless: str | None = None

    @property
    def is_sound(self) -> bool:
        """Tell whether nobody can be misled by it."""
        return self.outcome in ("refused", "said", "made again") or (
            self.outcome == "not read" and self.why_harmless is not None
        )


def words_for(work: Path) -> list[str]:
    """Return the run, with all that keeps files."""
    shape = ", ".join(f"{name}: {value}" for name, value in SIZES.items())
    live = work / "live"
    return [
        *("model=tiny", f"model.tiny={{{shape}}}", "data=text", "data.seq_len=64", "zero.dtype=fp32"),
        *(f"data.sources.corpus.path={work}/rows/new.jsonl", f"data.sources.old.path={work}/rows/old.jsonl"),
        *("data.sources.old.role=replay", "data.sources.old.format=text", "replay.ratio=0.4"),
        *("replay.kl.beta=1.0", "train.max_steps=4", "train.global_batch_tokens=256", "zero.stage=1"),
        *("train.micro_batch_size=2", "checkpoint.every_steps=1", "checkpoint.keep_last=3"),
        *("evaluate.kl_packs=1", "evaluate.recovery_steps=0", "log.every_steps=1", "optim.lr=1e-2"),
        *(f"data.cache_dir={live}/cache", "data.num_workers=1", "name=flips", "data.validation_frac=0.1"),
    ]


def make_pristine(work: Path) -> dict[str, Any]:
    """Train the run to its end, keep what it came to, and leave it one step before; return what it came to."""
    rows = work / "rows"
    rows.mkdir(parents=True)
    # So few that four steps read every pack.
    for name, word, count in (("new", "river", 12), ("old", "stone", 10)):
        lines = [json.dumps({"text": f"{word} {n} " * (3 + n % 9)}) for n in range(count)]
        (rows / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    code, said = act(work)
    assert code == 0, said
    found = results(run_of(work, is_fresh=False))
    shutil.rmtree(work / "live" / "run" / "checkpoints" / LAST)
    shutil.copytree(work / "live", work / "pristine")
    return found


def do(commands: list[list[str]], folder: str, environment: dict[str, str], log: str) -> None:
    """Be the process that runs commands as a person types them; one rank, which is this process."""
    settle_in(folder, environment, log)
    from trainer.cli import run_command

    for words in commands:
        print("$", *words)
        if code := run_command(words):
            sys.exit(int(code))


def run_of(work: Path, is_fresh: bool) -> Path:
    """Return the directory of the run that is gone on with, or of another one that uses the same cache."""
    return work / "live" / ("fresh" if is_fresh else "run")


def act(work: Path, is_fresh: bool = False) -> tuple[int, str]:
    """Train to the end and export, in a process of its own; return its exit code and what it printed."""
    run_dir = run_of(work, is_fresh)
    commands = [
        ["train", *words_for(work), f"run_dir={run_dir}"],
        ["export", f"run_dir={run_dir}", "export.dtype=float32"],
    ]
    with tempfile.NamedTemporaryFile("r") as log:
        process = STARTING.Process(target=do, args=(commands, str(work), own_environment(), log.name))
        with only(own_environment()):
            process.start()
        process.join(LIMIT_S)
        process.kill()
        return int(process.exitcode or 0), log.read()


def results(run: Path) -> dict[str, Any]:
    """Return what a run came to."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    state = json.loads((run / "checkpoints" / LAST / "state.json").read_text())
    forgetting = json.loads((run / "forgetting.json").read_text())
    return {
        "losses": [row["loss"] for row in rows if row["step"] == 4 and "loss" in row],
        "tokens": state["data_digest"],
        "forgetting": forgetting["sets"],
        "kl": forgetting.get("kl"),
        "weights": [file_digest(file) for file in sorted((run / "export").glob("*.safetensors"))],
    }


def flip(work: Path, file: str, expected: dict[str, Any]) -> Flip:
    """Flip the lowest bit in the middle of a file, go on, and tell what became of it.

    What is of the cache is used by a run that begins: the one that goes on has its own copies of some.
    """
    shutil.rmtree(work / "live")
    shutil.copytree(work / "pristine", work / "live")
    path = work / "live" / file
    content = bytearray(path.read_bytes())
    at = len(content) // 2
    content[at] ^= 1
    path.write_bytes(bytes(content))
    is_fresh = file.startswith("cache/")
    code, said = act(work, is_fresh)
    said = said.replace(str(work), "WORK")
    line = _naming(said, file)
    why = next((why for pattern, why in HARMLESS.items() if fnmatch.fnmatch(file, pattern)), None)
    if code:
        return Flip(file, at, "refused" if line else "unnamed", line or said[-300:], why)
    if _differ(results(run_of(work, is_fresh)), expected):
        return Flip(file, at, "taken", line or "", why)
    if line:
        return Flip(file, at, "said", line, why)
    now = path.read_bytes() if path.is_file() else b""
    return Flip(file, at, "not read" if now == bytes(content) else "made again", "", why)


def _differ(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return json.dumps(found, sort_keys=True) != json.dumps(expected, sort_keys=True)


def _naming(said: str, file: str) -> str | None:
    """Return the line that names a file, its folder in the cache, or its checkpoint."""
    parts = Path(file).parts
    keys = (part[:12] for part in parts[2:-1] if re.fullmatch(r"[0-9a-f]{16,}", part))
    names = [parts[-1], *keys, *(part for part in parts[2:-1] if part.startswith("step-"))]
    troubles = re.compile(
        r"Error|cannot|not as it was|damaged|must|changed|set aside|again|anew", re.IGNORECASE
    )
    lines = [line for line in said.splitlines() if not line.startswith("$") and troubles.search(line)]
    return next((line.strip()[:300] for name in names for line in lines if name in line), None)


def files_of(work: Path) -> list[str]:
    """Return every file of the run and of its cache that has a bit to flip."""
    pristine = work / "pristine"
    return sorted(
        str(path.relative_to(pristine))
        for path in pristine.rglob("*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size
    )


def main() -> None:
    """Flip a bit in every file, print what happens, and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory(prefix="flips-") as folder:
        work = Path(os.path.realpath(folder))
        expected = make_pristine(work)
        for file in files_of(work):
            if fnmatch.fnmatch(file, options.only):
                found.append(flip(work, file, expected))
                print(
                    found[-1].outcome, file, "|", found[-1].said or found[-1].why_harmless or "", flush=True
                )
    print(
        f"{len(found)} files, {sum(not one.is_sound for one in found)} of them taken, or refused without a name"
    )
    if options.out:
        write_record(options.out, found)


def write_record(path: Path, found: list[Flip]) -> None:
    """Write what became of files; of those that were not tried the record keeps its line."""
    before = json.loads(path.read_text())["files"] if path.exists() else []
    lines = {one["file"]: one for one in before}
    lines |= {one.file: {key: value for key, value in asdict(one).items() if value} for one in found}
    unsound = [one.file for one in found if not one.is_sound]
    record = {"unsound": unsound, "files": [lines[file] for file in sorted(lines)]}
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
