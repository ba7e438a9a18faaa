from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from tests.helpers.templates import CHATML
from tests.helpers.tokenizers import make_tokenizer
from trainer.config.data import DataConfig, Format, LongDocuments, Packing, SourceConfig
from trainer.data.prepare import prepare
from trainer.data.store.summary import SAMPLE_TOKENS, describe_store, render_sample
from trainer.data.types import Pack


def make_piece(text: str, first: int, last: int) -> Pack:
    (ids,) = make_tokenizer().encode_fragments([text])
    supervised = np.zeros(len(ids), dtype=np.bool_)
    supervised[first:last] = True
    return Pack(np.array(ids), supervised, [len(ids)])


def test_supervised_tokens_stand_in_marks_where_there_is_no_colour() -> None:
    shown = render_sample(make_piece("question answer", 9, 15), make_tokenizer(), in_colour=False)
    assert shown.plain == "question \u27e6answer\u27e7"


def test_supervised_tokens_are_coloured_on_a_terminal_and_others_dim() -> None:
    shown = render_sample(make_piece("question answer", 9, 15), make_tokenizer(), in_colour=True)
    assert shown.plain == "question answer"
    assert [(span.start, span.end, span.style) for span in shown.spans] == [
        (0, 9, "dim"),
        (9, 15, "green"),
    ]


def test_a_long_sample_shows_both_ends_and_says_how_much_is_left_out() -> None:
    piece = make_piece("q" * 10_000 + "a", 10_000, 10_001)
    shown = render_sample(piece, make_tokenizer(), in_colour=False).plain
    assert f"... {10_001 - SAMPLE_TOKENS:,} tokens ..." in shown
    assert shown.startswith("q") and shown.endswith("\u27e6a\u27e7")


def test_documents_that_were_cut_are_told_with_pieces_and_tokens(tmp_path: Path) -> None:
    """In packs of 64: 150 tokens are 3 pieces, 70 are 2; a document of 8 is whole. EOS ends each."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * length}) + "\n" for length in (149, 69, 7)))
    source = SourceConfig(path=str(path), packing=Packing.best_fit, long_documents=LongDocuments.split)
    cache = str(tmp_path / "cache")
    data = DataConfig(sources={"s": source}, seq_len=64, validation_frac=0.0, cache_dir=cache, num_workers=1)
    tokenizer = make_tokenizer()
    cells = describe_store(
        prepare(data, tokenizer, lambda: tokenizer, None, Console(file=io.StringIO()))["s"]
    )
    assert (cells["documents"], cells["tokens"], cells["longest document"]) == ("3", "228", "150 tokens")
    assert cells["training packs"] == "4 (228 tokens)"
    said = "2 documents longer than a pack cut into 5 pieces of 220 tokens together, all kept"
    assert said in cells["dropped, and other counts"]


def test_a_terminal_gets_a_bar_and_the_table_names_every_source(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(50)))
    sources = {name: SourceConfig(path=str(path)) for name in ("first", "second")}
    data = DataConfig(sources=sources, seq_len=64, cache_dir=str(tmp_path / "cache"), num_workers=1)
    console = Console(file=io.StringIO(), force_terminal=True, width=150, record=True)
    tokenizer = make_tokenizer()
    stores = prepare(data, tokenizer, lambda: tokenizer, None, console)
    shown = console.export_text()
    assert stores["first"].digest == stores["second"].digest
    for part in ("first", "second", "documents", "supervised", "fill", "held-out packs", "(100%)"):
        assert part in shown
    assert "first, sample 3" in shown


def test_what_a_terminal_would_act_on_is_written_out_in_samples() -> None:
    """A conversation with an escape sequence cleared the screen, or named the window."""
    said = "\x1b]0;mine\x07 \x9b2J \u202eback"
    for in_colour in (False, True):
        shown = render_sample(make_piece(f"a{said}b", 0, 0), make_tokenizer(), in_colour).plain
        assert "\\x1b]0;mine\\x07 \\x9b2J \\u202eback" in shown and not set(shown) & set("\x1b\x07\x9b\u202e")


def test_a_row_with_what_not_every_row_has_is_among_the_samples_wherever_it_stands(tmp_path: Path) -> None:
    """The first, a middle and the last row are plain; one of the others calls tools, and one of those is held out."""
    plain = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "rain"}}}
    rows = [[*plain[:1], {"role": "assistant", "content": f"Hello {number}."}] for number in range(40)]
    rows[3] = [{"role": "system", "content": "Be brief."}, *plain]
    rows[7] = [plain[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    rows[12] = [plain[0], {"role": "assistant", "content": "<think>A greeting.</think>Hello."}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    source = SourceConfig(path=str(path), format=Format.chat)
    tokenizer = make_tokenizer(CHATML)
    shown = []
    for frac in (0.0, 0.5):
        cache = str(tmp_path / "cache")
        data = DataConfig(
            sources={"s": source}, seq_len=256, validation_frac=frac, cache_dir=cache, num_workers=1
        )
        console = Console(file=io.StringIO(), width=150, record=True)
        prepare(data, tokenizer, lambda: tokenizer, None, console)
        samples = console.export_text().split("s, sample ")[1:]
        for said, words in (
            ("a system turn", "Be brief."),
            ("tool calls", "rain"),
            ("reasoning", "A greeting."),
        ):
            (sample,) = [one for one in samples if f": a row with {said} " in one]
            assert words in sample
        shown.append(len(samples))
    assert shown[0] == 6
