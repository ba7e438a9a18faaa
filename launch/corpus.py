"""The quickstart's corpus: the Python language reference that every Python carries with it.

No network and no licence question. The text is that of the running interpreter, so another minor
version of Python gives slightly other documents. Run `python -m trainer.launch.corpus OUT.jsonl`.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

from trainer.config.snapshot import write_atomic
from trainer.errors import Exit


def corpus_path(cache_dir: Path) -> Path:
    """Return the place of the quickstart's corpus, by the version of this Python."""
    return cache_dir.expanduser() / "corpora" / f"python-reference-{platform.python_version()}.jsonl"


def reference_documents() -> list[dict[str, str]]:
    """Return the topics of the language reference, sorted; of equal texts only the first."""
    from pydoc_data.topics import topics

    by_text: dict[str, str] = {}
    for topic in sorted(topics):
        by_text.setdefault(topics[topic].strip(), topic)
    return [{"text": text, "topic": topic} for text, topic in by_text.items()]


def write_corpus(path: Path) -> int:
    """Write the documents as JSON lines, all or nothing, and return how many they are."""
    documents = reference_documents()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(document, ensure_ascii=False) + "\n" for document in documents)
    write_atomic(path, "".join(lines))
    return len(documents)


def main() -> int:
    """Write the corpus to the file named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m trainer.launch.corpus OUT.jsonl", file=sys.stderr)
        return Exit.mendable
    path = Path(sys.argv[1])
    num_documents = write_corpus(path)
    num_bytes = path.stat().st_size
    print(f"{path}: {num_documents} documents of the Python reference, {num_bytes:,} bytes")
    return Exit.done


if __name__ == "__main__":
    sys.exit(main())
