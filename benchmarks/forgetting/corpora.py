"""Make the corpora of the forgetting experiment from text that anyone can get; one document a line of JSONL.

    apt-get download manpages-de python3.11-doc && for p in *.deb; do dpkg -x "$p" debian; done
    python benchmarks/forgetting/corpora.py --manpages debian/usr/share/man/de --rst debian/usr/share/doc/python3.11 \
        --wikitext wikitext2_valid.txt wikitext2_test.txt --gsm8k gsm8k_train.jsonl \
        --pubmedqa pubmedqa_labelled.json --out corpora

strong.jsonl: German manual pages (another language); weak.jsonl: the documentation of Python (English, a kind of
text the model has seen); general.jsonl and probe_wikipedia.jsonl: different Wikipedia articles; the other probes:
school maths and medical abstracts; chat.jsonl: those problems as conversations. A corpus whose text is not given is not
made.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

MIN_CHARS = 400


def main() -> None:
    """Write one JSONL file a corpus and print its size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("manpages", "rst", "gsm8k", "pubmedqa"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wikitext", type=Path, nargs="+")
    parser.add_argument(
        "--max-mb", type=float, default=8.0, help="of a corpus; documents are drawn at random"
    )
    parser.add_argument("--max-probe-mb", type=float, default=0.6)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, given, read, limit in (
        ("strong", args.manpages, manual_pages, args.max_mb),
        ("weak", args.rst, rst_pages, args.max_mb),
        ("chat", args.gsm8k, conversations, args.max_mb),
        ("general", args.wikitext, partial(articles, is_probe=False), args.max_mb),
        ("probe_wikipedia", args.wikitext, partial(articles, is_probe=True), args.max_probe_mb),
        ("probe_maths", args.gsm8k, problems, args.max_probe_mb),
        ("probe_medicine", args.pubmedqa, abstracts, args.max_probe_mb),
    ):
        if given is None:
            print(f"{name}: not given")
            continue
        write(args.out / f"{name}.jsonl", read(given), int(limit * 1e6))


def write(file: Path, documents: Iterator[str] | Iterator[list[dict[str, str]]], max_bytes: int) -> None:
    """Write distinct documents, or conversations, in random order until the file has its size."""
    known = {one.strip() if isinstance(one, str) else json.dumps(one): one for one in documents}
    chosen = sorted(known)
    random.Random(0).shuffle(chosen)
    size = count = 0
    with file.open("w", encoding="utf-8") as stream:
        for key in chosen:
            row = {"text": key} if isinstance(known[key], str) else {"messages": known[key]}
            line = json.dumps(row, ensure_ascii=False) + "\n"
            if size + len(line.encode()) > max_bytes:
                break
            stream.write(line)
            size, count = size + len(line.encode()), count + 1
    print(f"{file}: {count:,} documents, {size / 1e6:.2f} MB")


def manual_pages(folder: Path) -> Iterator[str]:
    """Yield the text of roff pages: macros and font changes removed."""
    for file in sorted(folder.rglob("*.gz")):
        if not file.is_symlink():
            text = plain_roff(gzip.decompress(file.read_bytes()).decode("utf-8", errors="replace"))
            if len(text) >= MIN_CHARS:
                yield text


def plain_roff(page: str) -> str:
    """Return a manual page without its markup: what stays is its headings and its sentences."""
    lines = []
    for line in page.splitlines():
        if line.startswith((r".\"", r"'\"", ".TH", ".Dd", ".Dt", ".Os")):
            continue
        heading = re.match(r"\.(?:SH|SS|Sh|Ss)\s+(.*)", line)
        if heading:
            lines += ["", heading[1].strip('" ')]
        elif re.match(r"\.(?:PP|P|LP|TP|IP|HP|Pp)\b", line):
            lines.append("")
        elif not line.startswith((".", "'")):
            lines.append(line)
        elif (spoken := re.match(r"\.(?:B|I|BR|IR|RB|RI|BI|IB|SM)\s+(.*)", line)) is not None:
            lines.append(spoken[1].replace('"', ""))
    text = re.sub(r"\\f(?:\[\w*\]|\(..|.)", "", "\n".join(lines))
    text = (
        re.sub(r"\\[,/&:]|\\s[-+]?\d", "", text)
        .replace(r"\-", "-")
        .replace(r"\(bu", "*")
        .replace(r"\e", "\\")
    )
    text = re.sub(r"\\\((?:aq|cq)", "'", text).replace("\\ ", " ").replace("\\~", " ")
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def rst_pages(folder: Path) -> Iterator[str]:
    """Yield reStructuredText sources in pieces of about 4,000 characters, cut at blank lines."""
    for file in sorted(folder.rglob("_sources/**/*.rst.txt")):
        piece = ""
        for paragraph in file.read_text(encoding="utf-8").split("\n\n"):
            piece += paragraph + "\n\n"
            if len(piece) >= 4000:
                yield piece
                piece = ""
        if len(piece) >= MIN_CHARS:
            yield piece


def articles(files: list[Path], is_probe: bool) -> Iterator[str]:
    """Yield tokenised Wikipedia articles as plain text; every sixth is a probe. Sentences with <unk> are left out."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    number, article = 0, list[str]()
    for line in [*lines, " = end = "]:
        if re.fullmatch(r" = [^=].* = ?", line):
            text = "\n\n".join(article)
            if len(text) >= MIN_CHARS and (number % 6 == 0) == is_probe:
                yield text
            number, article = number + 1, []
        elif line.strip() and not line.startswith(" = "):
            sentences = re.split(r"(?<= [.!?]) ", line)
            article.append(detokenise(" ".join(s for s in sentences if "<unk>" not in s)))


def detokenise(line: str) -> str:
    """Return a line of WikiText as it was written."""
    line = re.sub(r" @([-,.])@ ", r"\1", line.strip())
    line = re.sub(r" ([.,;:?!)\]%]|'s\b|'t\b|n't\b)", r"\1", line)
    line = re.sub(r"([(\[$]) ", r"\1", line)
    return re.sub(r'" ([^"]*?) "', r'"\1"', line)


def problems(file: Path) -> Iterator[str]:
    """Yield school problems with their solutions."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield f"Question: {row['question']}\nAnswer: {row['answer']}"


def conversations(file: Path) -> Iterator[list[dict[str, str]]]:
    """Yield school problems as a turn of the user and one of the assistant."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]


def abstracts(file: Path) -> Iterator[str]:
    """Yield medical abstracts with their question and long answer."""
    for row in json.loads(file.read_text(encoding="utf-8")).values():
        yield "\n".join([*row["CONTEXTS"], row["QUESTION"], row["LONG_ANSWER"]])


if __name__ == "__main__":
    main()
