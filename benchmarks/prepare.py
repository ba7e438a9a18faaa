"""The CPU side: `palimpsest prepare` beside `datasets.map`, its memory on a large corpus, the loader, and the plan.

    python benchmarks/prepare.py --tokenizer FOLDER --file wikitext.txt --file gsm8k.jsonl=question,answer
        [--out OUT.json] [--only compare memory loader plan] [--gb 0.1 1 10] [--processes 2] [--repeat 3]

compare: wall time and memory of whole processes, start and imports with them, from the files to packs of --seq-len on
disk; datasets.map tokenises in batches and joins tokens to packs, as the examples of transformers do it. Files smaller
than --at-least-mb are read several times over. memory: a synthetic corpus of each of --gb, written line by line; the
most memory that all processes of `prepare` had together, each page counted once (PSS). loader: tokens a second of one
process from the largest store that was made. plan: laying out 10^9 packs, the first step, and a step in the middle
after a resume. Nothing else may run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("compare", "memory", "loader", "plan")
BILLION = 10**9
POLL_S = 0.1
MIB = 1 << 20


def main() -> None:
    """Measure what is asked for and write JSON after each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="a model folder: its config.json is read too"
    )
    parser.add_argument("--file", action="append", default=[], metavar="FILE[=COLUMN,...]")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--gb", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--at-least-mb", type=float, default=40.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "prepare.json")
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    work: Path = arguments.work or Path(tempfile.mkdtemp(prefix="palimpsest-prepare-"))
    work.mkdir(parents=True, exist_ok=True)
    out: Path = arguments.out
    record = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    record["environment"] = {
        "processor": processor(),
        "num_cores": os.cpu_count(),
        "processes": arguments.processes,
        "seq_len": arguments.seq_len,
        "python": sys.version.split()[0],
        "versions": {
            name: metadata.version(name) for name in ("datasets", "transformers", "tokenizers", "numpy")
        },
    }
    measures = {"compare": compare, "memory": memory, "loader": loader, "plan": plan}
    for part in arguments.only:
        record[part] = measures[part](arguments, work)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(json.dumps({part: record[part]}, indent=1), flush=True)


def processor() -> str:
    """Return the processor's name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took, with all processes below it."""

    seconds: float
    cpu_s: float
    """Of all processes, which what else runs on the machine moves less."""
    most_mib: float


def run_watched(command: list[str], log: Path) -> Cost:
    """Run a command to its end.

    Raises:
        SystemExit: It failed.
    """
    env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    most, used, began = 0, dict[int, float](), time.perf_counter()
    with log.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=env)
        while process.poll() is None:
            pids = family(process.pid)
            most = max(most, sum(map(pss_bytes, pids)))
            used |= {pid: seconds for pid in pids if (seconds := cpu_seconds(pid)) is not None}
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"{command[:4]} failed:\n{log.read_text(encoding='utf-8')[-3000:]}")
    return Cost(seconds, sum(used.values()), most / MIB)


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process so far; None where it is gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def family(pid: int) -> list[int]:
    """Return a process and all below it."""
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                found += family(int(child))
    return found


def pss_bytes(pid: int) -> int:
    """Return the memory of a process, of pages that several share its part; 0 where it is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def words_of(file: Path, columns: list[str], cache: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the words of `palimpsest prepare`."""
    key = "data.sources.corpus"
    words = [f"{key}.path={file}", f"data.cache_dir={cache}", f"data.seq_len={arguments.seq_len}"]
    words += [f"data.num_workers={arguments.processes}", "data.validation_frac=0", "data=text"]
    words += [f"model.path={arguments.tokenizer}", "recipe=continued_pretrain"]
    if len(columns) == 2:
        words.append(f"{key}.format=completion")  # packed whole, where datasets.map cuts
        words += [f"{key}.columns.prompt={columns[0]}", f"{key}.columns.completion={columns[1]}"]
    return words + ([f"{key}.txt_documents=line"] if file.suffix == ".txt" else [])


def store_facts(cache: Path) -> dict[str, int]:
    """Return tokens, packs and bytes of the only store in a cache."""
    from trainer.data.store.store import open_store

    (folder,) = [path for path in (cache / "stores").iterdir() if (path / "train").is_dir()]
    store = open_store(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "num_tokens": int(store.train.pack_tokens.sum()),
        "num_packs": store.train.num_packs,
        "store_bytes": size,
    }


def compare(arguments: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Time both on every file, in turns."""
    rows = []
    for number, word in enumerate(arguments.file):
        name, _, columns = word.partition("=")
        given = Path(name)
        file = enlarged(given, work / f"{number}{given.suffix}", arguments.at_least_mb)
        picked = columns.split(",") if columns else ["text"]
        row: dict[str, Any] = {"file": given.name, "bytes": file.stat().st_size}
        timed: dict[str, list[Cost]] = {"ours": [], "datasets": []}
        for turn in range(arguments.repeat):
            cache, folder = (work / f"{kind}-{number}-{turn}" for kind in ("ours", "datasets"))
            ours = [sys.executable, "-m", "trainer", "prepare", *words_of(file, picked, cache, arguments)]
            timed["ours"].append(run_watched(ours, work / "ours.log"))
            theirs = [sys.executable, str(HERE / "peer_map.py"), "--file", str(file), "--columns", *picked]
            theirs += ["--tokenizer", str(arguments.tokenizer), "--seq-len", str(arguments.seq_len)]
            theirs += ["--processes", str(arguments.processes), "--out", str(folder)]
            timed["datasets"].append(run_watched(theirs, work / "datasets.log"))
        row |= store_facts(work / f"ours-{number}-0")
        found = json.loads((work / f"datasets-{number}-0" / "counts.json").read_text(encoding="utf-8"))
        row |= {f"datasets_{key}": value for key, value in found.items()}
        for kind, costs in timed.items():
            row[f"{kind}_s"] = round(statistics.median(cost.seconds for cost in costs), 2)
            row[f"{kind}_all_s"] = [round(cost.seconds, 2) for cost in costs]
            row[f"{kind}_cpu_s"] = round(statistics.median(cost.cpu_s for cost in costs), 2)
            row[f"{kind}_mib"] = round(max(cost.most_mib for cost in costs), 1)
        row["times_as_fast"] = round(row["datasets_s"] / row["ours_s"], 3)
        rows.append(row)
    return rows


def enlarged(file: Path, target: Path, at_least_mb: float) -> Path:
    """Write a file's lines several times over, until it has that size."""
    text = file.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    times = max(round(at_least_mb * 1e6 / max(file.stat().st_size, 1)), 1)
    with target.open("w", encoding="utf-8") as stream:
        for _ in range(times):
            stream.writelines(lines)
    return target


def memory(arguments: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Prepare corpora of several sizes; return what each cost."""
    rows = []
    for gigabytes in arguments.gb:
        file, cache = work / f"synthetic-{gigabytes:g}.jsonl", work / f"synthetic-{gigabytes:g}"
        num_documents = write_synthetic(file, int(gigabytes * 1e9))
        words = words_of(file, ["text"], cache, arguments)
        cost = run_watched([sys.executable, "-m", "trainer", "prepare", *words], work / "memory.log")
        row = {"gb": gigabytes, "bytes": file.stat().st_size, "num_documents": num_documents}
        row |= {"seconds": round(cost.seconds, 1), "most_mib": round(cost.most_mib, 1)} | store_facts(cache)
        rows.append(row | {"mb_per_s": round(row["bytes"] / 1e6 / cost.seconds, 2)})
        print(json.dumps(rows[-1]), flush=True)
        file.unlink()
    return rows


def write_synthetic(file: Path, num_bytes: int) -> int:
    """Write documents of 200 to 2,000 words drawn from 20,000, a line each; return their number."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(rng.choices(letters, range(26, 0, -1), k=rng.randint(2, 10))) for _ in range(20_000)]
    size = count = 0
    with file.open("w", encoding="utf-8") as stream:
        while size < num_bytes:
            text = " ".join(rng.choices(words, k=rng.randint(200, 2000)))
            line = f'{{"text": "{text}", "id": {count}}}\n'
            stream.write(line)
            size, count = size + len(line), count + 1
    return count


def loader(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Read a pass of the largest store in one process, at most 400 steps."""
    from trainer.data.store.store import open_store
    from trainer.dist.mesh import ONE_PLACE
    from trainer.mix.loader import TrainLoader
    from trainer.mix.plan import DataPlan, Pool

    folders = [path.parent for path in work.glob("*/stores/*/train") if path.is_dir()]
    if not folders:
        raise SystemExit("the loader reads a store of compare or memory: name one of them in --only as well")
    store = max((open_store(path).train for path in folders), key=lambda split: split.num_packs)
    packs_per_step = min(64, store.num_packs)
    pool = Pool("corpus", False, 1.0, [0], [store.pack_targets])
    data_plan = DataPlan([pool], packs_per_step, arguments.seq_len, lambda step: 0.0, 0)
    loading = TrainLoader(["corpus"], [store], data_plan, ONE_PLACE, 8, 0)
    num_steps = min(max(store.num_packs // packs_per_step - 1, 1), 400)
    loading.read(0)
    began = time.perf_counter()
    num_tokens = sum(loading.read(step).num_tokens_global for step in range(1, num_steps + 1))
    seconds = time.perf_counter() - began
    return {
        "num_packs": store.num_packs,
        "packs_per_step": packs_per_step,
        "num_steps": num_steps,
        "num_tokens": num_tokens,
        "tokens_per_s": round(num_tokens / seconds),
    }


def plan(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Lay out 10^9 packs in a process of its own."""
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import prepare; prepare.plan_a_billion()"
    log = work / "plan.log"
    cost = run_watched([sys.executable, "-c", code], log)
    found: dict[str, Any] = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    return {
        "num_packs": BILLION,
        "process_s": round(cost.seconds, 2),
        "most_mib": round(cost.most_mib, 1),
    } | found


def plan_a_billion() -> None:
    """Print how long each thing took: with one pool, and with a tenth of it as replay at 5 %."""
    import numpy as np

    from trainer.mix.plan import DataPlan, Pool

    def even(num: int) -> Any:
        return np.broadcast_to(np.int32(2048), num)  # no memory: a store's array is a mapped file

    found: dict[str, float] = {}

    def timed(name: str, since: float) -> None:
        found[name] = round(time.perf_counter() - since, 4)

    began = time.perf_counter()
    alone = DataPlan([Pool("target", False, 1.0, [0], [even(BILLION)])], 512, 2048, lambda step: 0.0, 0)
    _ = alone.pools[0].num_targets
    alone.packs_of_step(0)
    timed("first_step_s", began)
    began = time.perf_counter()
    alone.packs_of_step(BILLION // 1024)
    timed("step_in_the_middle_s", began)
    began = time.perf_counter()
    pools = [
        Pool("target", False, 1.0, [0], [even(9 * BILLION // 10)]),
        Pool("replay", True, 1.0, [1], [even(BILLION // 10)]),
    ]
    mixed = DataPlan(pools, 512, 2048, lambda step: 0.05, 0)
    _ = [pool.num_targets for pool in mixed.pools]
    mixed.packs_of_step(0)
    timed("mixed_first_step_s", began)
    began = time.perf_counter()
    mixed.packs_of_step(2000)
    cursor = mixed.cursor
    timed("mixed_million_packs_s", began)
    again = DataPlan(pools, 512, 2048, lambda step: 0.05, 0)
    began = time.perf_counter()
    again.go_to(cursor)
    again.packs_of_step(cursor.step)
    timed("mixed_resumed_step_s", began)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
