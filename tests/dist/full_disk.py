"""A disk that is full from one file of a run on, for every file in turn: benchmarks/results/full_disk.json.

    python -m tests.dist.full_disk [--only PATTERN] [--out FILE]

A small run of eight steps that saves each of them is trained and exported on a real small file system, with its cache.
At the moment a file is opened for writing every free page is taken. Then room is made and the same commands go on: they
must come to what the run comes to whose disk was never full. Needs root, as it mounts.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import SkipTest

from tests.dist import flips
from tests.helpers.ranks import ROOT, STARTING, only, own_environment, settle_in
from tests.helpers.small_disk import PAGE, fill, mounted
from tests.helpers.wait import LIMIT_S
from trainer.checkpoint.layout import find_checkpoints, step_of
from trainer.checkpoint.manifest import read_manifest
from trainer.checkpoint.verify import inspect
from trainer.errors import TrainerError
from trainer.metrics.jsonl import read
from trainer.runtime.seal import file_digest

RESULTS = ROOT / "benchmarks" / "results" / "full_disk.json"
STEPS, MIDDLE = 8, 5
SIZE = "size=32m"
TEARS = ("run/metrics.jsonl", "run/ledger.jsonl")
"""Appended a line at a time: also filled where the next line does not fit into the file's last page."""
TORN = " (a line in two halves)"
LONGEST_LINE = 1200
NAMES = (
    (r"events\.out\.tfevents\..*", "events.out.tfevents.*"),
    (r"[0-9a-f]{12,}", "*"),
    (r"\*\.\*-\d+-\d*\.", "*."),
    (r"\.[0-9a-f]{6}\.tmp", ".*.tmp"),
    (r"tmp[a-z0-9_]{8}", "tmp*"),
    (r"part-\d+-\d+", "part-*"),
)
"""What is drawn anew in the name of a file."""
TROUBLES = re.compile(
    r"Error: |No space left|takes no more|could not|cannot|nothing is saved|failed|\banew\b|\bagain\b"
)


@dataclass(frozen=True, slots=True)
class FullDisk:
    """What became of a run whose disk was full from one file on."""

    file: str
    code: int
    said: str
    """The last sentence about it."""
    newest: str
    """The newest checkpoint, which verifies; or that there was none yet."""
    num_lines: int
    """Whole lines of metrics.jsonl: each is as it is in the run whose disk was never full."""
    problem: str | None

    @property
    def outcome(self) -> str:
        """Return what happened in two words."""
        return self.problem or ("sentence, exit code 2" if self.code else "a warning, goes on")


def words_for(work: Path) -> list[str]:
    """Return the run, with all that keeps files."""
    ours = (f"train.max_steps={STEPS}", "log.trackers=[tensorboard]")
    return [word for word in flips.words_for(work) if not word.startswith("train.max_steps=")] + [*ours]


def name_of(path: str | bytes | os.PathLike[Any], disk: Path) -> str | None:
    """Return the name of a file on the disk without what is drawn anew each time; None elsewhere."""
    place = os.fsdecode(os.path.realpath(os.path.dirname(path)))
    if not Path(place).is_relative_to(disk):
        return None
    name = str(Path(place).relative_to(disk) / os.path.basename(os.fsdecode(path)))
    for pattern, shown in NAMES:
        name = re.sub(pattern, shown, name)
    return name


def watch_files(disk: Path, opened: Callable[[str], None]) -> None:
    """Tell the name of every file on the disk that is about to be opened for writing, as long as this process lives."""
    from safetensors import torch as safetensors_torch
    from transformers import PreTrainedTokenizerFast

    def tell(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike) and (name := name_of(path, disk)) is not None:
            opened(name)

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            tell(arguments[0])

    sys.addaudithook(heard)
    # Rust opens these itself.
    whole, save = safetensors_torch.serialize_file, PreTrainedTokenizerFast._save_pretrained

    def serialize_file(tensors: Any, filename: Any, *rest: Any, **options: Any) -> Any:
        tell(filename)
        return whole(tensors, filename, *rest, **options)

    def save_pretrained(self: Any, save_directory: Any, *rest: Any, **options: Any) -> Any:
        tell(Path(save_directory) / "tokenizer.json")
        return save(self, save_directory, *rest, **options)

    safetensors_torch.serialize_file = serialize_file
    PreTrainedTokenizerFast._save_pretrained = save_pretrained


def watch_lines(disk: Path, file: str, reached: Callable[[], None]) -> None:
    """Tell when the next line of a file does not fit into its last page."""
    from trainer.metrics.line_file import LineFile

    whole = LineFile.add

    def add(self: LineFile, line: str, to_disk: bool) -> None:
        if name_of(self.path, disk) == file and self.path.stat().st_size % PAGE > PAGE - LONGEST_LINE:
            reached()
        whole(self, line, to_disk)

    LineFile.add = add  # type: ignore[method-assign]


def do(
    commands: list[list[str]], folder: str, environment: dict[str, str], log: str, file: str | None
) -> None:
    """Be the process that runs commands as a person types them; its disk is full from one file on.

    Without one it writes the names of all files beside the disk.
    """
    settle_in(folder, environment, log)
    disk, is_busy = Path(folder) / "live", [False]
    names: list[str] = []

    def take_all() -> None:
        if not is_busy[0] and not (disk / "filler").exists():
            is_busy[0] = True
            fill(disk, 0)

    def opened(name: str) -> None:
        if file is None:
            names.append(name)
        elif name == file:
            take_all()

    watch_files(disk, opened)
    if file is not None and file.endswith(TORN):
        watch_lines(disk, file.removesuffix(TORN), take_all)
    from trainer.cli import run_command

    code = 0
    for words in commands:
        print("$", *words)
        if code := int(run_command(words)):
            break
    if file is None:
        (Path(folder) / "names.json").write_text(json.dumps(sorted(set(names))))
    sys.stdout.flush()
    sys.exit(code)


def act(work: Path, file: str | None = "") -> tuple[int, str]:
    """Train to the end and export, in a process of its own; return its exit code and what it printed."""
    run_dir = work / "live" / "run"
    commands = [
        ["train", *words_for(work), f"run_dir={run_dir}"],
        ["export", f"run_dir={run_dir}", "export.dtype=float32"],
    ]
    with tempfile.NamedTemporaryFile("r") as log:
        arguments = (commands, str(work), own_environment(), log.name, file)
        process = STARTING.Process(target=do, args=arguments)
        with only(own_environment()):
            process.start()
        process.join(LIMIT_S)
        process.kill()
        return process.exitcode if process.exitcode is not None else -9, log.read()


def come_to(run: Path) -> dict[str, Any]:
    """Return what a run came to: weights and optimizer, losses, tokens, forgetting and the export."""
    newest = find_checkpoints(run)[0]
    assert step_of(newest) == STEPS
    forgetting = json.loads((run / "forgetting.json").read_text())
    return {
        "checkpoint": {
            name: digest for name, (_, digest) in read_manifest(newest).files.items() if name != "state.json"
        },
        "tokens": json.loads((newest / "state.json").read_text())["data_digest"],
        "losses": losses(run),
        "forgetting": [forgetting["sets"], forgetting.get("kl")],
        "export": {file.name: file_digest(file) for file in sorted((run / "export").glob("*.safetensors"))},
    }


def losses(run: Path) -> list[Any]:
    """Return the step and the loss of every line, or what was held out."""
    return [[row["step"], row.get("loss", row.get("eval_mean"))] for row in read(run / "metrics.jsonl")]


class Whole:
    """The run whose disk was never full."""

    def __init__(self, work: Path) -> None:
        """Write rows, train, and note the names of all files."""
        self.work = work = Path(os.path.realpath(work))
        rows = work / "rows"
        rows.mkdir(parents=True)
        for name, word, count in (("new", "river", 24), ("old", "stone", 20)):
            lines = [json.dumps({"text": f"{word} {n} " * (3 + n % 9)}) for n in range(count)]
            (rows / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        with mounted(work / "live", SIZE) as disk:
            code, said = act(work, None)
            assert code == 0, said
            self.found = come_to(disk / "run")
            # Most files are of the run alone, and begin with what the cache held.
            shutil.copytree(disk / "cache", work / "cache")
        self.files = [name for name in json.loads((work / "names.json").read_text()) if self._is_tried(name)]
        self.files += [name + TORN for name in TEARS]

    def _is_tried(self, name: str) -> bool:
        """Tell whether a file is tried: of the checkpoints those of two."""
        step = re.search(r"step-0*(\d+)", name)
        return step is None or int(step.group(1)) in (MIDDLE, STEPS)

    def meet(self, file: str) -> FullDisk:
        """Let a run find its disk full at a file, make room, and go on."""
        with mounted(self.work / "live", SIZE) as disk:
            if not file.startswith("cache/"):
                shutil.copytree(self.work / "cache", disk / "cache")
            code, said = act(self.work, file)
            said = said.replace(str(self.work), "WORK")
            was_full = (disk / "filler").exists()
            is_done = not code and come_to(disk / "run") == self.found
            newest, num_lines, problem = "none yet", 0, None
            try:
                newest, num_lines = self._look(disk / "run")
            except (AssertionError, TrainerError, OSError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            (disk / "filler").unlink(missing_ok=True)
            if not was_full:
                problem = "was never full"
            elif "Traceback" in said or code not in (0, 2):
                problem = f"ended with {code}: {said[-1500:]}"
            elif not (line := _last_sentence(said) or ("nothing that was still to write" if is_done else "")):
                problem = f"said nothing: {said[-1500:]}"
            again, told = act(self.work)
            if again:
                problem = problem or f"did not go on: {told[-1500:]}"
            elif come_to(disk / "run") != self.found:
                problem = problem or "came to something else"
        return FullDisk(file, code, line if problem is None else "", newest, num_lines, problem)

    def _look(self, run: Path) -> tuple[str, int]:
        """Return the newest checkpoint and the number of whole lines; all that is there must be whole."""
        found = find_checkpoints(run)
        for folder in found:
            damage = inspect(folder)[1]
            assert damage is None, f"{folder.name}: {damage}"
        saved = [event["step"] for event in read(run / "ledger.jsonl") if event["event"] == "saved"]
        assert not saved or (found and (step_of(found[0]) or 0) >= max(saved)), "a checkpoint is lost"
        lines = losses(run)
        assert lines == self.found["losses"][: len(lines)], "a line is not as it was written"
        return found[0].name if found else "none yet", len(lines)


def _last_sentence(said: str) -> str:
    """Return the last line that tells of trouble."""
    lines = [line for line in said.splitlines() if not line.startswith("$") and TROUBLES.search(line)]
    return re.sub(r"^\d\d:\d\d:\d\d ", "", lines[-1].strip())[:400] if lines else ""


def outcomes(only_like: str) -> Iterator[FullDisk]:
    """Yield what became of every file."""
    with tempfile.TemporaryDirectory(prefix="full-disk-") as folder:
        whole = Whole(Path(folder))
        for file in whole.files:
            if fnmatch.fnmatch(file, only_like):
                yield whole.meet(file)


def main() -> int:
    """Fill the disk at every file, print what happens, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="*")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = []
    try:
        for one in outcomes(options.only):
            found.append(one)
            print(
                f"{one.file} | {one.outcome} | {one.newest}, {one.num_lines} lines | {one.said}", flush=True
            )
    except SkipTest as why:
        print(f"Nothing was tried: {why}.")
        return 0
    wrong = [one.file for one in found if one.problem]
    print(f"{len(found)} files, {len(wrong)} of them with a problem: {options.out}")
    write_record(options.out, found)
    return int(bool(wrong))


def write_record(path: Path, found: list[FullDisk]) -> None:
    """Write what became of files; of those that were not tried the record keeps its line."""
    before = json.loads(path.read_text())["files"] if path.exists() else []
    lines = {one["file"]: one for one in before} | {one.file: asdict(one) for one in found}
    record = {
        "command": "python -m tests.dist.full_disk",
        "problems": [file for file, line in lines.items() if line["problem"]],
        "files": [lines[file] for file in sorted(lines)],
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
