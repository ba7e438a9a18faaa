"""Odd inputs by seed: rows, files and options that people really have, and damaged ones.

Text that must not be learnt is written in Cyrillic, all other text in Latin letters; ids that must not be learnt are
at least 100. So what is supervised can be judged without knowing what was done to the input.
"""

from __future__ import annotations

import bz2
import copy
import csv
import gzip
import io
import json
import lzma
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from trainer.config.data import ANSWERED, ColumnsConfig, Format, SourceConfig
from trainer.config.describe import NAME, as_word, fields, known_keys

ASIDE, LEARNT = "\u0436\u0448\u044e\u0431\u0433", "abcXYZ"
SPICE = [
    "",
    " ",
    "\n",
    ",",
    '"',
    "'",
    ";",
    "\t",
    "{",
    "<|im_end|>",
    "NA",
    "007",
    "1e5",
    "2020-01-01",
    "\u00e9",
]
SPICE += ["\u2028", "\U0001f600", "\0", "<think>", "\\", "null"]
ODD: list[Any] = [
    None,
    "",
    " ",
    [],
    {},
    [None],
    0,
    1,
    -1,
    True,
    False,
    2.5,
    1e300,
    "x",
    ["x"],
    {"a": None},
    10**30,
]
ODD += ["[1]", "{}", '"', "\ud83d", [[[]]], {"role": "user"}, {"content": "x"}, [{"role": None}], "NaN"]
DAMAGE = [
    b'"',
    b",",
    b"\n",
    b"\0",
    b"\xff",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\r\n",
    b";",
    b"\t",
    b"\\",
    b"\xef\xbb\xbf",
]
MUTES = ("weight", "train", "loss")
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}
VALUES = [
    "null",
    "5",
    "-1",
    "0",
    "true",
    "x",
    "[]",
    "[messages]",
    "[5]",
    "{a: 1}",
    "''",
    "chat",
    "ids",
    "1e9",
    "nan",
]
VALUES += ["\u0436"]
MORE = [
    "0.5",
    "1e-3",
    "-inf",
    "10000000000000000000",
    "[0.9, 0.95]",
    "[[]]",
    "{}",
    "{a: {b: null}}",
    "false",
    "'a b'",
]
MORE += [
    "'[x'",
    "../x",
    "/nowhere/x",
    "a/b",
    "'$(x)'",
    "${seed}",
    "${nowhere.x}",
    "'1:2:3'",
    "0:1:0.5",
    "auto",
]
NAMES = ("chat", "other", "\u0436")


@dataclass
class OddInput:
    """A file, the source that names it, and whether what is supervised can still be judged."""

    path: Path
    source: SourceConfig
    is_judged: bool


def make_odd(seed: int, folder: Path) -> OddInput:
    """Make the input of a seed in a folder."""
    draw = random.Random(seed)
    options = _options(draw)
    layout = _layout(draw, options["format"])
    rows = [_row(draw, options, layout) for _ in range(draw.choice([0, 1, 2, 2, 3, 3, 3, 3, 5, 8]))]
    num_odd = draw.choice([0, 0, 0, 1, 1, 3])
    for _ in range(num_odd if rows else 0):
        _spoil(draw, draw.choice(rows))
    kinds = ["jsonl", "jsonl", "json", "csv", "tsv", "parquet", "parquet"]
    kind = draw.choice(kinds + ["txt"] * (options["format"] is Format.text))
    data = _write(kind, rows, draw)
    num_damaged = draw.choice([0, 0, 0, 0, 0, 1, 1, 4])
    for _ in range(num_damaged):
        data = _damage(draw, data)
    name = f"in.{kind}"
    if kind != "parquet" and draw.random() < 0.15:
        suffix = draw.choice(list(PACK))
        name, data = name + suffix, PACK[suffix](data)
        if draw.random() < 0.3:
            data = _damage(draw, data)
            num_damaged += 4
    path = folder / name
    path.write_bytes(data)
    source = SourceConfig(path=str(path), **options)
    if draw.random() < 0.1:
        _misname(draw, source)
        num_damaged += 4
    # Whoever takes out what mutes a row, or moves its mask, has asked for it.
    is_spoilt = num_odd > 0 and (layout[-1] in MUTES or options["format"] is Format.ids)
    is_judged = num_damaged == 0 or (num_damaged == 1 and layout[-1] not in MUTES)
    return OddInput(path, source, is_judged and not is_spoilt and kind != "txt")


def _options(draw: random.Random) -> dict[str, Any]:
    format_ = draw.choice(list(Format))
    options: dict[str, Any] = {"format": format_}
    if format_ in ANSWERED:
        options["as_chat"] = draw.random() < 0.5
    return options


def _say(draw: random.Random, letters: str) -> str:
    words = ["".join(draw.choices(letters, k=draw.randint(1, 5))) for _ in range(draw.randint(1, 4))]
    if draw.random() < 0.4:
        words.insert(draw.randrange(len(words) + 1), draw.choice(SPICE))
    return " ".join(words)


def _turn(draw: random.Random, role: str, letters: str) -> dict[str, Any]:
    if draw.random() < 0.7:
        return {"role": role, "content": _say(draw, letters)}
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turn = {"from": names[role], "value": _say(draw, letters)}
    return {"role": None, "content": None, **turn} if draw.random() < 0.3 else turn


def _layout(draw: random.Random, format_: Format) -> list[str]:
    """Return the columns that hold the data, and further ones that some rows have."""
    layouts = {
        Format.text: [["text"], ["content"]],
        Format.chat: [["messages"], ["conversations"]],
        Format.ids: [["input_ids", m] for m in ("labels", "loss_mask", "completion_mask", "assistant_masks")],
        Format.completion: [["prompt", "completion"], ["instruction", "output"], ["question", "answer"]],
        Format.preference: [["prompt", "chosen", "rejected"]],
        Format.unpaired: [["prompt", "completion", "label"]],
    }
    more = [name for name in ("id", "url", "system", "history", "input", "functions") if draw.random() < 0.07]
    if draw.random() < 0.1 and format_ not in (Format.preference, Format.unpaired):
        more.append(draw.choice(MUTES))
    return [*draw.choice(layouts[format_]), *more]


def _row(draw: random.Random, options: dict[str, Any], layout: list[str]) -> dict[str, Any]:
    is_muted = layout[-1] in MUTES and draw.random() < 0.5
    row = _plain_row(draw, options, layout, ASIDE if is_muted else LEARNT)
    for name in layout[len(row) :]:
        if name in MUTES:
            row[name] = int(not is_muted)
        elif draw.random() < 0.5:
            row[name] = _say(draw, ASIDE)
    return row


def _plain_row(
    draw: random.Random, options: dict[str, Any], layout: list[str], learnt: str
) -> dict[str, Any]:
    match options["format"]:
        case Format.text:
            return {layout[0]: _say(draw, learnt)}
        case Format.chat:
            turns = [_turn(draw, "system", ASIDE)] if draw.random() < 0.3 else []
            for _ in range(draw.randint(1, 3)):
                turns += [_turn(draw, "user", ASIDE), _turn(draw, "assistant", learnt)]
            return {layout[0]: turns}
        case Format.ids:
            low = 100 if learnt is ASIDE else 0
            ids = [draw.randint(low, 199) for _ in range(draw.randint(1, 9))]
            mask = [int(i < 100) for i in ids]
            labels = [i if i < 100 else -100 for i in ids]
            return {"input_ids": ids, layout[1]: labels if layout[1] == "labels" else mask}
        case Format.preference:
            return _pair(draw, options["as_chat"], learnt)
        case Format.unpaired:
            said = _say(draw, learnt)
            row = {"prompt": _say(draw, ASIDE), "completion": said, "label": draw.random() < 0.5}
            if options["as_chat"] and draw.random() < 0.5:
                row |= {
                    "prompt": [_turn(draw, "user", ASIDE)],
                    "completion": [_turn(draw, "assistant", learnt)],
                }
            return row
        case _:
            if options["as_chat"] and draw.random() < 0.2:
                asked, said = [_turn(draw, "user", ASIDE)], [_turn(draw, "assistant", learnt)]
                return {layout[0]: asked, layout[1]: said}
            return {layout[0]: _say(draw, ASIDE), layout[1]: _say(draw, learnt)}


def _pair(draw: random.Random, as_chat: bool, learnt: str) -> dict[str, Any]:
    """Return a pair as texts, as turns after a prompt, or as two conversations."""
    way = draw.choice(["texts", "turns", "conversations"]) if as_chat else "texts"
    if way == "texts":
        return {
            "prompt": _say(draw, ASIDE),
            "chosen": _say(draw, learnt),
            "rejected": _say(draw, learnt),
        }
    asked = [_turn(draw, "system", ASIDE)] if draw.random() < 0.3 else []
    for _ in range(draw.randint(0, 2)):
        asked += [_turn(draw, "user", ASIDE), _turn(draw, "assistant", ASIDE)]
    asked.append(_turn(draw, "user", ASIDE))
    first, second = ([_turn(draw, "assistant", learnt)] for _ in range(2))
    if way == "turns":
        return {"prompt": asked, "chosen": first, "rejected": second}
    return {"prompt": "", "chosen": [*asked, *first], "rejected": [*copy.deepcopy(asked), *second]}


def _spoil(draw: random.Random, row: dict[str, Any]) -> None:
    """Change one value somewhere in a row, or take one out."""
    at: Any = row
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = draw.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and draw.random() < 0.7:
            at = at[key]
            continue
        if draw.random() < 0.3:
            del at[key]
        else:
            at[key] = copy.deepcopy(draw.choice(ODD))
        return


def _write(kind: str, rows: list[dict[str, Any]], draw: random.Random) -> bytes:
    match kind:
        case "jsonl" | "json":
            lines = [json.dumps(row, ensure_ascii=True) for row in rows]
            if kind == "json" and draw.random() < 0.7:
                return ("[" + ",\n".join(lines) + "]").encode()
            return "".join(line + draw.choice(["\n", "\n", "\r\n", "\n\n"]) for line in lines).encode()
        case "txt":
            return "\n".join(map(repr, rows)).encode("utf-8", "replace")
        case "parquet":
            return _write_parquet(rows)
        case _:
            text = io.StringIO(newline="")
            columns = sorted({key for row in rows for key in row})
            writer = csv.writer(text, delimiter="," if kind == "csv" else "\t", lineterminator="\n")
            writer.writerow(columns)
            for row in rows:
                cells = (row.get(column) for column in columns)
                writer.writerow(
                    [c if isinstance(c, str) else "" if c is None else json.dumps(c) for c in cells]
                )
            return text.getvalue().encode("utf-8", "replace")


def _write_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    columns = sorted({key for row in rows for key in row})
    arrays = {}
    for column in columns:
        values = [row.get(column) for row in rows]
        try:
            arrays[column] = pa.array(values)
        except (pa.ArrowException, ValueError, OverflowError, TypeError):
            # What Arrow cannot hold in one column people write as JSON strings.
            arrays[column] = pa.array(
                [v if isinstance(v, str) and v.isprintable() else json.dumps(v) for v in values]
            )
    try:
        pq.write_table(pa.table(arrays), file)
    except (pa.ArrowException, ValueError):
        return b""
    return file.getvalue()


def _damage(draw: random.Random, data: bytes) -> bytes:
    at = draw.randrange(len(data) + 1)
    match draw.choice(["insert", "insert", "cut", "drop"]):
        case "insert":
            return data[:at] + draw.choice(DAMAGE) + data[at:]
        case "cut":
            return data[:at]
        case _:
            return data[:at] + data[at + 1 :]


def _misname(draw: random.Random, source: SourceConfig) -> None:
    columns = ["messages", "prompt", "labels", "input_ids", "text", "none", "id"]
    slots = ["text", "prompt", "completion", "messages", "tools", "system", "loss_mask", "labels", "input"]
    named = {draw.choice(slots): draw.choice(columns) for _ in range(draw.randint(1, 2))}
    source.columns = ColumnsConfig(
        **named, ignore=draw.sample(["id", "weight", "history"], draw.randint(0, 2))
    )


def odd_overrides(seed: int, names: tuple[str, ...] = NAMES) -> list[str]:
    """Draw words for a command line from all keys of the configuration, sections too, each with an odd value.

    One in three has the value of another key, one in ten a key that is none.

    Args:
        names: Of entries, such as sources.
    """
    draw = random.Random(seed)
    keys, usual = known_keys(), list(fields().values())
    words = []
    for _ in range(draw.choice([1, 1, 2, 3])):
        key = draw.choice(keys).replace(NAME, draw.choice(names))
        if draw.random() < 0.1:
            key += draw.choice([".x", "x", ".", ".0", "[0]"])
        value = as_word(draw.choice(usual).default) if draw.random() < 1 / 3 else draw.choice(VALUES + MORE)
        words.append(f"{key}={value}")
    return words
