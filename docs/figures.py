"""Draw the figures of the documentation; a test holds the committed SVG files to what this draws.

    python docs/figures.py             all SVG files of docs/img that are drawn here
    python docs/figures.py --report    also docs/img/report.png, with headless Chromium

Schedules and memory come from the functions that training and `palimpsest plan` use.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.command.counted import find_shape, run_shape, tuned_weights
from trainer.config.replay import RatioSchedule, ReplayConfig
from trainer.config.schema import RunConfig
from trainer.config.snapshot import with_fitted
from trainer.config.store import compose_config
from trainer.forecast.memory import GIB, Parts, forecast
from trainer.mix.ratio import ratio_at
from trainer.report.build import build_report
from trainer.report.element import Html, element, join
from trainer.report.figure import HEIGHT, WIDTH, plot
from trainer.report.series import Series

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "img"
RESULTS = ROOT / "benchmarks" / "results"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REPORT_WIDTH, REPORT_HEIGHT = 1100, 1330

EIGHT_GPUS = (
    "model=llama3_1_8b_instruct",
    "cluster=node8",
    "data=chat",
    "data.sources.chat.path=chats.jsonl",
)
CASES = {
    "full, ZeRO-1": ("full_finetune", 1),
    "full, ZeRO-2": ("full_finetune", 2),
    "full, ZeRO-3": ("full_finetune", 3),
    "LoRA, ZeRO-1": ("lora", 1),
    "QLoRA, ZeRO-1": ("qlora", 1),
}
GPU_GIB = 80.0
PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "buffers": "gathered, buckets",
    "activations": "activations",
    "head": "loss head",
}
NAME_WIDTH, BAR_HEIGHT, BAR_GAP = 104.0, 22.0, 12.0

Box = tuple[str, str]
"""What stands in a box of a flow: a name, and a line below it."""
ROW = [
    ("file", "jsonl, parquet, csv, txt ..."),
    ("row", "columns found and named"),
    ("document", "text, or turns with roles"),
    ("rendered", "each character: turn or template"),
    ("tokens", "learnt, or label -100"),
    ("pack", "rows of data.seq_len tokens"),
    ("store", "on disk, named by a digest"),
]
JOB = [
    ("submit", "rules, memory, partition"),
    ("job.sh", "one script, frozen config.yaml"),
    ("checks", "nodes, GPUs, disk, network"),
    ("ranks", "resume or begin; train"),
    ("signal", "time limit, preemption"),
    ("save", "checkpoint, exit code 75"),
    ("requeue", "the same job goes on"),
]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="take the picture of a report too")
    arguments = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (IMAGES / f"{name}.svg").write_text(draw(), encoding="utf-8")
    if arguments.report:
        take_report()


def ratio() -> str:
    """Return the replay ratio over a run under every schedule."""
    asked = ReplayConfig(ratio=0.1, end_ratio=0.02, points=[[0, 0.15], [0.5, 0.05]])
    lines = []
    places = sorted([*(2.5 * number for number in range(41)), 9.99, 49.99])
    for schedule in RatioSchedule:
        replay = dataclasses.replace(asked, schedule=schedule)
        points = tuple((at, 100 * ratio_at(replay, 0.1, min(at / 100, 0.999))) for at in places)
        lines.append(Series(schedule.value, points))
    inside, described = plot("Replay ratio", "% of the run's tokens", "% of the supervised tokens", lines)
    return _svg(WIDTH + 16, HEIGHT + 8, described, element("g", inside, transform="translate(8 4)"))


def memory() -> str:
    """Return the forecast peak of one of eight GPUs, part by part."""
    configs = {
        recipe: compose_config([f"recipe={recipe}", *EIGHT_GPUS])
        for recipe in {recipe for recipe, _ in CASES.values()}
    }
    bars = {name: _parts(configs[recipe], stage) for name, (recipe, stage) in CASES.items()}
    scale = (WIDTH - NAME_WIDTH - 40) / GPU_GIB
    drawn, top = [], 44.0
    floor = top + len(bars) * (BAR_HEIGHT + BAR_GAP)
    for gib in range(0, int(GPU_GIB) + 1, 20):
        x = NAME_WIDTH + gib * scale
        drawn.append(element("line", x1=x, x2=x, y1=top - 8, y2=floor - 4, class_="grid"))
        drawn.append(element("text", str(gib), x=x, y=floor + 12, text_anchor="middle", class_="unit"))
    for number, (name, parts) in enumerate(bars.items()):
        y = top + number * (BAR_HEIGHT + BAR_GAP)
        x = NAME_WIDTH
        drawn.append(element("text", name, x=x - 8, y=y + 15, text_anchor="end"))
        for place, part in enumerate(PARTS):
            width = getattr(parts, part) / GIB * scale
            hover = element("title", f"{PARTS[part]}: {getattr(parts, part) / GIB:.1f} GiB")
            drawn.append(
                element(
                    "g", element("rect", hover, x=x, y=y, width=width, height=BAR_HEIGHT, class_=f"p{place}")
                )
            )
            x += width
        drawn.append(element("text", f"{parts.total / GIB:.1f}", x=x + 5, y=y + 15, class_="halo"))
    for place, name in enumerate(PARTS.values()):
        x, y = 8 + place % 3 * 132, 6 + place // 3 * 16
        drawn.append(element("rect", x=x, y=y, width=10, height=10, class_=f"p{place}"))
        drawn.append(element("text", name, x=x + 15, y=y + 9))
    middle = NAME_WIDTH + GPU_GIB * scale / 2
    drawn.append(
        element(
            "text",
            "peak of one of eight GPUs, GiB",
            x=middle,
            y=floor + 28,
            text_anchor="middle",
            class_="unit",
        )
    )
    described = "Forecast peak memory of Llama-3.1-8B on eight GPUs. " + "; ".join(
        f"{name} {parts.total / GIB:.1f} GiB" for name, parts in bars.items()
    )
    return _svg(WIDTH + 16, floor + 36, described, *drawn)


def _parts(config: RunConfig, stage: int) -> Parts:
    """Return the parts of a run's peak, nothing recomputed."""
    config = with_fitted(config, stage, 0, "bf16")
    shape, _ = find_shape(config.model)
    return forecast(
        shape, run_shape(config, config.cluster.ranks_per_node), tuned_weights(config, shape)
    ).parts


def row() -> str:
    """Return the way of a row."""
    return _flow("The way of a row", ROW)


def job() -> str:
    """Return the life of a job."""
    return _flow("The life of a SLURM job", JOB, back=(6, 2))


def _flow(title: str, boxes: Sequence[Box], back: tuple[int, int] | None = None) -> str:
    """Return boxes one below the other with arrows between; `back` is one more arrow, from a box to an earlier one."""
    width, height, gap, left = 300.0, 34.0, 14.0, 40.0
    drawn = []
    for number, (name, what) in enumerate(boxes):
        y = 6 + number * (height + gap)
        drawn.append(element("rect", x=left, y=y, width=width, height=height, rx=4, class_="box"))
        drawn.append(element("text", name, x=left + 10, y=y + 21, class_="name"))
        drawn.append(element("text", what, x=left + 84, y=y + 21))
        if number:
            drawn.append(_arrow([(left + 20, y - gap), (left + 20, y)]))
    if back is not None:
        start, end = (6 + number * (height + gap) + height / 2 for number in back)
        drawn.append(
            _arrow(
                [
                    (left + width, start),
                    (left + width + 22, start),
                    (left + width + 22, end),
                    (left + width, end),
                ]
            )
        )
    described = f"{title}: " + ", then ".join(f"{name} ({what})" for name, what in boxes)
    return _svg(WIDTH + 16, len(boxes) * (height + gap), described, *drawn)


def _arrow(places: Sequence[tuple[float, float]]) -> Html:
    path = "M" + "L".join(f"{x:g},{y:g}" for x, y in places)
    (x0, y0), (x, y) = places[-2:]
    head = (
        f"M{x - 4:g},{y - 6:g}L{x:g},{y:g}L{x + 4:g},{y - 6:g}"
        if x == x0
        else f"M{x + 6:g},{y - 4:g}L{x:g},{y:g}L{x + 6:g},{y + 4:g}"
    )
    assert x == x0 or y == y0
    return element("path", d=path + head, class_="arrow")


STYLE = """
:root {
  --page: #ffffff; --text: #1c2126; --soft: #59636e; --edge: #d5dae0; --box: #f4f6f8;
  --c1: #0b62b8; --c2: #b3480b; --c3: #0f7a5c; --c4: #8a3b8f; --c5: #7a6200; --c6: #b02a4c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181c; --text: #e6e9ec; --soft: #a0aab4; --edge: #3a424a; --box: #1c2228;
    --c1: #6cb2ff; --c2: #ff9d5c; --c3: #4fd1a5; --c4: #dc9be0; --c5: #e0c04a; --c6: #ff8ba3;
  }
}
text { font-size: 11px; fill: var(--text); }
text.unit { fill: var(--soft); }
text.name { font-size: 12px; font-weight: 600; }
text.halo { paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
line { stroke: var(--edge); }
line.axis { stroke: var(--soft); }
path { fill: none; stroke: var(--line); stroke-width: 1.75; stroke-linejoin: round; }
path.arrow { stroke: var(--soft); }
circle { fill: transparent; }
rect.plate { fill: var(--page); }
rect.box { fill: var(--box); stroke: var(--edge); }
"""
"""Of these figures alone: a change of the report's must not draw them anew."""
COLOURS = "".join(
    f".s{n} {{ --line: var(--c{n}); }} text.s{n} {{ fill: var(--c{n}); }} .p{n - 1} {{ fill: var(--c{n}); }}\n"
    for n in range(1, len(PARTS) + 1)
)


def _svg(width: float, height: float, described: str, *inside: Html) -> str:
    drawn = element(
        "svg",
        element("title", described),
        element("style", Html(STYLE + COLOURS)),
        element("rect", width=width, height=height, class_="plate"),
        join(*inside),
        xmlns="http://www.w3.org/2000/svg",
        viewbox=f"0 0 {width:.0f} {height:.0f}",
        width=round(1.6 * width),
        font_family="system-ui, sans-serif",
        role="img",
        aria_label=described,
    )
    return f"{drawn}\n"


FIGURES: dict[str, Callable[[], str]] = {"ratio": ratio, "memory": memory, "row": row, "job": job}


def take_report() -> None:
    """Build the report of the measured quickstart and photograph its top."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit(f"Chromium must be on PATH, but none of {', '.join(BROWSERS)} is. Install it.")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        run = Path("runs/quickstart")  # as the page shows it
        run.mkdir(parents=True)
        for name in ("forgetting.json", "metrics.jsonl"):
            shutil.copy(RESULTS / f"quickstart_2_cpu_ranks.{name}", run / name)
        words = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += [f"--window-size={REPORT_WIDTH},{REPORT_HEIGHT}", f"--screenshot={IMAGES / 'report.png'}"]
        words += [f"--user-data-dir={folder}/profile", build_report(run).resolve().as_uri()]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
