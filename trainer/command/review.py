"""`palimpsest data review`: a sample of rows for people to read, their verdicts back, and what they come to."""

from __future__ import annotations

import csv
import datetime
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.data import SourceConfig
from trainer.config.many import many
from trainer.config.snapshot import write_atomic
from trainer.data.rows.verdicts import (
    ACCEPT,
    REJECT,
    RowVerdict,
    add_verdicts,
    check_about,
    sample_rows,
    verdicts_file,
)
from trainer.errors import ConfigError, DataError, Exit
from trainer.evaluate.wilson import wilson_interval
from trainer.report.review_page import ReviewSheet, review_page

NUM, SEED = 100, 0
USAGE = (
    f"palimpsest data review export FILE.jsonl [num={NUM}] [seed={SEED}] [output=FOLDER], or "
    "palimpsest data review import FILE.jsonl VERDICTS.json|VERDICTS.csv [reviewer=NAME]"
)
HEADER = ("line", "digest", "verdict", "note", "row")
WORDS = {
    "accept": ACCEPT,
    "accepted": ACCEPT,
    "yes": ACCEPT,
    "reject": REJECT,
    "rejected": REJECT,
    "no": REJECT,
}


def review(words: Sequence[str]) -> int:
    """Run what the words after `data review` say; return the exit code."""
    places = [word for word in words if "=" not in word or Path(word).exists()]
    options = dict(word.split("=", 1) for word in words if word not in places)
    match places:
        case ["export", source]:
            _refuse_options(options, ("num", "seed", "output"))
            _export(_source(source), options)
        case ["import", source, given]:
            _refuse_options(options, ("reviewer",))
            _import(_source(source), Path(given), options.get("reviewer"))
        case _:
            raise ConfigError(
                f"`data review` must be given what to do and a file, but is given {' '.join(words) or 'nothing'} "
                f"instead. Write: {USAGE}"
            )
    return Exit.done


def _refuse_options(options: dict[str, str], known: tuple[str, ...]) -> None:
    other = sorted(set(options) - set(known))
    if other:
        raise ConfigError(
            f"`data review` must be given {', '.join(known)} alone, but is given {other[0]}. Write: {USAGE}"
        )


def _source(word: str) -> Path:
    path = Path(word).expanduser()
    if path.suffix != ".jsonl" or not path.is_file():
        what = "is no file" if path.suffix == ".jsonl" else "is none"
        raise ConfigError(f"`data review` must be given a .jsonl file of rows, but {path} {what}. Name one.")
    return path


def _number(options: dict[str, str], key: str, default: int, least: int) -> int:
    word = options.get(key, str(default))
    if not word.isascii() or not word.isdigit() or int(word) < least:
        raise ConfigError(
            f"`{key}` must be a whole number from {least} up, but is {word!r}. Set {key}={default}."
        )
    return int(word)


def _export(source: Path, options: dict[str, str]) -> None:
    num, seed = _number(options, "num", NUM, 1), _number(options, "seed", SEED, 0)
    rows, num_rows = sample_rows(source, num, seed)
    folder = Path(options.get("output") or f"{source.stem}-review").expanduser()
    sheet = ReviewSheet(source.name, num_rows, seed, rows)
    folder.mkdir(parents=True, exist_ok=True)
    page, table = folder / f"{source.stem}.html", folder / f"{source.stem}.csv"
    write_atomic(page, review_page(sheet))
    write_atomic(table, _table(sheet))
    print(
        f"{many(len(rows), 'row')} of {num_rows:,}: {page} to read and tick in a browser, {table} for a spreadsheet."
    )
    bound = SourceConfig().min_acceptance or 0.0
    needed = next((n for n in range(len(rows) + 1) if wilson_interval(n, len(rows))[0] >= bound), None)
    said = (
        f"no number of accepted rows brings the lower end of the interval to {bound:g}: take more with num=N"
        if needed is None
        else f"{needed} of {len(rows)} must be accepted for a lower end of {bound:g}, which training asks for"
    )
    print(f"{said[0].upper()}{said[1:]} (data.sources.NAME.min_acceptance).")
    print(f"Then: palimpsest data review import {source} VERDICTS")


def _table(sheet: ReviewSheet) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(HEADER)
    for row in sheet.rows:
        # JSON begins with a bracket: no cell is computed by a spreadsheet.
        writer.writerow((row.line, row.digest, "", "", json.dumps(row.row, ensure_ascii=False)))
    return text.getvalue()


def _import(source: Path, given: Path, reviewer: str | None) -> None:
    verdicts, num_sampled = _read(given, reviewer)
    if not verdicts:
        raise DataError(
            f"{given} must hold verdicts, but has none. Judge some rows, save, and import that file."
        )
    check_about(source, verdicts, str(given))
    kept = add_verdicts(source, verdicts)
    accepted, judged = kept.counted()
    low, high = wilson_interval(accepted, judged)
    left = num_sampled - len(verdicts)
    if left > 0:
        print(
            f"{many(left, 'sampled row')} without a verdict: the interval is true only if they are like the others."
        )
    who = ", ".join(sorted({one.reviewer for one in kept.verdicts}))
    print(f"{many(len(verdicts), 'verdict')} of {verdicts[0].reviewer} kept in {verdicts_file(source)}.")
    print(
        f"{source.name}: {accepted} of {many(judged, 'row')} accepted, {accepted / judged:.1%} "
        f"(95 % interval {low:.3f} to {high:.3f}), by {who}."
    )


def _read(given: Path, reviewer: str | None) -> tuple[list[RowVerdict], int]:
    """Return the verdicts of a file that the page saved or that a person filled in, and how many rows were sampled."""
    try:
        text = given.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(
            f"{given} must be a file of verdicts, but cannot be read ({why}). Check the path."
        ) from error
    if not text.strip():
        raise DataError(
            f"{given} must hold verdicts, but is empty. Save them on the page, or fill in the table, and import that."
        )
    if reviewer is not None and not reviewer.strip():
        raise ConfigError("`reviewer` must be a name, but is empty. Set reviewer=NAME.")
    return (
        _read_table(given, text, reviewer) if given.suffix == ".csv" else _read_saved(given, text, reviewer)
    )


def _read_saved(given: Path, text: str, reviewer: str | None) -> tuple[list[RowVerdict], int]:
    try:
        plain = json.loads(text)
        who = reviewer or str(plain["reviewer"])
        found = [_saved(one, who) for one in plain["verdicts"]]
        return [one for one in found if one.verdict], int(plain["num_sampled"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{given} must be what the review page saved, or a .csv of the table, but is not ({error}). Save it again."
        ) from error


def _saved(one: dict[str, Any], who: str) -> RowVerdict:
    if one["verdict"] not in (ACCEPT, REJECT, ""):
        raise ValueError(f"the verdict {one['verdict']!r}")
    time = datetime.datetime.fromisoformat(one["time"]).astimezone(datetime.UTC)
    return RowVerdict(
        int(one["line"]),
        str(one["digest"]),
        one["verdict"],
        str(one["note"]),
        who,
        f"{time:%Y-%m-%dT%H:%M:%SZ}",
    )


def _read_table(given: Path, text: str, reviewer: str | None) -> tuple[list[RowVerdict], int]:
    if reviewer is None:
        raise ConfigError(f"`reviewer` must be given for {given}, which says none. Add reviewer=NAME.")
    now = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
    csv.field_size_limit(1 << 30)
    found, num_sampled = [], 0
    try:
        table = csv.DictReader(io.StringIO(text), strict=True)
        if missing := set(HEADER[:4]) - set(table.fieldnames or ()):
            raise DataError(
                f"{given} must have the columns {', '.join(HEADER)}, but has no {sorted(missing)[0]}. Fill in "
                "the table that was exported, and keep its first line."
            )
        for one in table:
            num_sampled += 1
            said = (one["verdict"] or "").strip().lower()
            if not said:
                continue
            if said not in WORDS:
                raise DataError(
                    f"{given}, line {table.line_num} must have one of {', '.join(WORDS)} as its verdict, or nothing, "
                    f"but has {said!r} instead. Mend it."
                )
            found.append(
                RowVerdict(int(one["line"]), one["digest"], WORDS[said], one["note"] or "", reviewer, now)
            )
    except (csv.Error, ValueError, TypeError) as error:
        raise DataError(f"{given} cannot be read as a table: {error}. Export it as CSV again.") from error
    return found, num_sampled
