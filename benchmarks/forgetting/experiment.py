"""The forgetting experiment as one command that goes on where it stopped: what keeps most for least.

    python benchmarks/forgetting/experiment.py --strong strong.jsonl --weak weak.jsonl --chat chat.jsonl \
        --general general.jsonl --probe wikipedia=W.jsonl --probe maths=M.jsonl --probe medicine=D.jsonl \
        --state benchmarks/results/forgetting_runs --budget-s 560

corpora.py makes the files. Every arm (arms.py) is a real run of `python -m trainer` with the same tokens, replay
taking the place of new text, on two shifts of text and a fine-tuning on conversations, three seeds. A run that ended
is a line of STATE/runs.jsonl; samples of the base are beside it. Killed, or out of its budget, and started again it
does what is missing. What it may not mix (another model, other tokens or corpora) it refuses; runs of an arm whose
words were changed are run again, which is said. After each call OUT holds the record of all runs so far, tables are
printed, and FIGURE is drawn (pareto.py).

Sizes, for three calls of 560 s on one H100 or H200. The earlier experiment took 339 s for 25 runs of 1.2 M tokens,
six at once (results/forgetting.json): 13.6 s a run, each a process of its own that read some 0.5 M tokens of held-out
text before and after, which are 6.2 s for a million. Runs here have 0.6 M tokens and read 64 packs of each set, 0.26
M, as often: 1.12 M are 7 s. What is swept reads it eight times more, 2.1 M, 13 s. The first 20 arms on three shifts
with three seeds are 180 runs, 18 of them swept: 180 x 7 + 18 x 13 = 1,494 s, of 1,680 less some 150 for sampling and
three warm starts. That is an estimate from another machine and no measurement: held-out text costs less than
training, starts are warm, but sampling, KL and averages are not in it. Each call prints what a run took and how many
are left; --jobs, --tokens, --most-arms are there where it is wrong. With half the tokens a micro-batch of the earlier
one more than six runs fit on 80 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from arms import ARMS  # noqa: E402
from ended_runs import EndedRuns  # noqa: E402
from judge import (  # noqa: E402
    arms,
    arms_table,
    chosen_and_judged,
    equal_loss,
    equal_table,
    judged_table,
    points_of,
)
from one_run import (  # noqa: E402
    SHIFTS,
    FailedRun,
    Run,
    Settings,
    carry_out,
    command,
    common_words,
    format_words,
    overrides_of,
)
from pareto import figure  # noqa: E402
from starter import Plain, Warm, rank_words, start_warm  # noqa: E402

MOST_FAILURES = 2
"""Of an arm in one call; then it is left out of it."""
LAST_WORDS_S = 10.0
"""Of the budget, to write the record."""


def main() -> None:
    """Run what is missing while the budget lasts, and write the record."""
    arguments = parse()
    started = time.monotonic()
    deadline = started + arguments.budget_s - LAST_WORDS_S
    for folder in (arguments.state, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(arguments)
    refuse_others(settings, arguments)
    runs = [
        Run(shift, arm, seed)
        for arm in ARMS[: arguments.most_arms]
        for seed in range(arguments.seeds)
        for shift in SHIFTS
        if shift in settings.files
    ]
    lines = EndedRuns(arguments.state / "runs.jsonl")
    lines.leave_others({run.arm.name: overrides_of(run, settings) for run in runs})
    missing = [run for run in runs if run.key not in lines.keys]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are there.", flush=True)
    failures: dict[str, list[str]] = {}
    if missing:
        starter = start_warm(arguments.work / "warm.log", arguments.warm)
        ender = threading.Timer(max(deadline - time.monotonic(), 0), starter.end)
        ender.daemon = True
        ender.start()
        try:
            make_ready(settings, arguments, starter)
            failures = run_all(missing, settings, starter, lines, deadline, arguments.jobs)
        except FailedRun as error:
            print(f"Nothing more is run: {error}", flush=True)
        finally:
            ender.cancel()
            starter.end()
    wall = time.monotonic() - started
    write_record(arguments, settings, lines, runs, failures, wall)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, what in (
        ("strong", "text far from the base's"),
        ("weak", "text near it"),
        ("chat", "conversations"),
    ):
        parser.add_argument(f"--{name}", type=Path, help=f"JSONL of {what}; left out, the shift is")
    parser.add_argument("--general", type=Path, required=True, help="JSONL of text to replay")
    parser.add_argument("--probe", action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--model", default="smollm2_135m")
    parser.add_argument("--tokens", type=int, default=600_000, help="of a run, all arms alike")
    parser.add_argument("--batch-tokens", type=int, default=8_192)
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--packs", type=int, default=64, help="held out of each set, at most")
    parser.add_argument(
        "--generated-tokens", type=int, default=120_000, help="at most, of texts and of chats of the base"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most-arms", type=int, default=len(ARMS), help="the first ones of arms.py")
    parser.add_argument("--jobs", type=int, default=6, help="runs at once")
    parser.add_argument("--budget-s", type=float, default=560.0)
    parser.add_argument("--state", type=Path, required=True, help="what a later call goes on from: keep it")
    parser.add_argument("--work", type=Path, default=Path("/tmp/palimpsest-forgetting"), help="may be lost")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "forgetting_arms.json")
    parser.add_argument(
        "--figure", type=Path, default=HERE.parents[1] / "docs" / "img" / "forgetting_arms.svg"
    )
    parser.add_argument("--warm", action=argparse.BooleanOptionalAction, default=True, help="fork runs")
    parser.add_argument("--set", nargs="*", default=[], help="overrides for every run")
    return parser.parse_args()


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return what all runs have in common."""
    files = {shift: getattr(arguments, shift) for shift in SHIFTS if getattr(arguments, shift) is not None}
    files |= {"general": arguments.general}
    files |= {name: arguments.state / f"{name}.jsonl" for name in ("texts", "chats")}
    probes = {name: Path(file) for name, _, file in (word.partition("=") for word in arguments.probe)}
    names = ("model", "tokens", "batch_tokens", "seq_len", "lr", "packs")
    values = {name: getattr(arguments, name) for name in names}
    return Settings(**values, files=files, probes=probes, work=arguments.work, more=tuple(arguments.set))


def refuse_others(settings: Settings, arguments: argparse.Namespace) -> None:
    """End where the state is of other settings or corpora: their runs cannot be compared."""
    given = {name: file for name, file in settings.files.items() if name not in ("texts", "chats")}
    now = {
        **{
            name: getattr(settings, name)
            for name in ("model", "tokens", "batch_tokens", "seq_len", "lr", "packs")
        },
        "more": list(settings.more),
        "generated_tokens": arguments.generated_tokens,
        "corpora": {name: digest(file) for name, file in sorted((given | settings.probes).items())},
    }
    path = arguments.state / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        differ = [key for key in now if before.get(key) != now[key]]
        if differ:
            raise SystemExit(
                f"--state must be of the same experiment, but {path} has another {', '.join(differ)}. Give the same "
                "words, or another folder."
            )
    path.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")


def digest(file: Path) -> str:
    """Return what names a file's contents."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def make_ready(settings: Settings, arguments: argparse.Namespace, starter: Plain | Warm) -> None:
    """Sample the base where that was not done, and prepare every source.

    Raises:
        FailedRun: One of it failed.
    """
    shift = next(name for name in SHIFTS if name in settings.files)
    for name, prompts in (("texts", "text"), ("chats", "chat")):
        if settings.files[name].is_file():
            continue
        folder, began = settings.work / name, time.monotonic()
        words = [
            *common_words(settings, shift),
            f"replay.generate.num_tokens={min(arguments.generated_tokens, drawn(name, settings.tokens))}",
            f"replay.generate.max_new_tokens={settings.seq_len // 2}",
            f"replay.generate.output_dir={folder}",
            f"replay.generate.prompts={prompts}",
        ]
        words += (
            []
            if any("replay.generate.batch_size" in one for one in words)
            else ["replay.generate.batch_size=512"]
        )
        command(starter, ["replay", "generate", *words], settings.work / f"{name}.log", rank_words())
        staged = settings.files[name].with_suffix(".staged")
        shutil.copyfile(folder / "generated.jsonl", staged)
        staged.replace(settings.files[name])
        print(f"{name} of the base: {time.monotonic() - began:.0f} s", flush=True)
    for shift in (name for name in SHIFTS if name in settings.files):
        words = common_words(settings, shift)
        for name in ("texts", "chats", "general"):
            key = f"data.sources.{name}"
            words += [f"{key}.path={settings.files[name].resolve()}", f"{key}.role=replay"]
            words += format_words(key, name == "chats")
        command(starter, ["prepare", *words], settings.work / f"prepare-{shift}.log", {})


def drawn(name: str, tokens: int) -> int:
    """Return the tokens of `texts` or `chats` that a run of the arm that draws most of them draws."""
    return math.ceil(tokens * max(arm.ratio for arm in ARMS if arm.replay == name))


def run_all(
    missing: list[Run],
    settings: Settings,
    starter: Plain | Warm,
    lines: EndedRuns,
    deadline: float,
    jobs: int,
) -> dict[str, list[str]]:
    """Run what is missing in its order while the budget lasts; return why runs failed, by arm."""
    failures: dict[str, list[str]] = {}
    took: list[float] = []
    lock, left = threading.Lock(), iter(missing)

    def work(number: int) -> None:
        time.sleep(0.3 * number)
        while True:
            with lock:
                run = next(left, None)
                usual = max(took[-2 * jobs :], default=0.0)
            if run is None or time.monotonic() + usual > deadline:
                return
            if len(failures.get(run.arm.name, ())) >= MOST_FAILURES:
                continue
            try:
                line = carry_out(run, settings, starter)
            except FailedRun as error:
                if time.monotonic() < deadline:
                    with lock:
                        failures.setdefault(run.arm.name, []).append(f"{run.folder}: {error}")
                    print(f"{run.folder} failed: {error}", flush=True)
                continue
            lines.add(line)
            with lock:
                took.append(line["seconds"])
            print(f"{run.folder}: {line['seconds']:.1f} s", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(jobs)))
    return failures


def write_record(
    arguments: argparse.Namespace,
    settings: Settings,
    lines: EndedRuns,
    runs: list[Run],
    failures: dict[str, list[str]],
    wall: float,
) -> None:
    """Write the JSON, print the tables, draw the figure, and say what is left."""
    wanted = {run.key for run in runs}
    done = [line for line in lines.all if (line["shift"], line["arm"], line["seed"]) in wanted]
    points = points_of(done)
    record: dict[str, Any] = {
        "environment": here(),
        "settings": json.loads((arguments.state / "settings.json").read_text(encoding="utf-8")),
        "steps_per_run": settings.num_steps,
        "overrides": {run.arm.name: overrides_of(run, settings) for run in runs},
        "num_runs": len(done),
        "num_asked": len(runs),
        "seconds_of_runs": round(sum(line["seconds"] for line in done), 1),
        "failures": failures,
        "equal_loss": equal_loss(points),
        "arms": arms(points),
        "chosen": chosen_and_judged(points),
        "runs": done,
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if record["arms"]:
        arguments.figure.write_text(figure(record) + "\n", encoding="utf-8")
    for text in (
        equal_table(record["equal_loss"]),
        arms_table(record["arms"]),
        judged_table(record["chosen"]),
    ):
        print(f"{text}\n")
    seconds = statistics.mean(line["seconds"] for line in done) if done else 0.0
    print(
        f"{len(done)} of {len(runs)} runs are there after {wall:.0f} s of this call; a run takes {seconds:.1f} s, "
        f"{arguments.jobs} at once."
    )
    if len(done) < len(runs):
        print("Start the same command again for the rest.")


def here() -> dict[str, Any]:
    """Return hardware and versions, asked in a process of its own: this one uses no GPU."""
    code = (
        "import json, sys, argparse; from pathlib import Path; from run import environment; "
        "print(json.dumps(environment(argparse.Namespace(gpus=1, shape=Path('smollm2_135m')))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"not known": done.stderr.strip().splitlines()[-1:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for key in ("warmup_steps", "statistic", "shape"):
        found.pop(key, None)
    return found


if __name__ == "__main__":
    main()
