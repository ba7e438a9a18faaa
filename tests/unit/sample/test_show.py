"""The lines and the table a person reads."""

import io
import json

from rich.console import Console

from trainer.sample.generate import Tally
from trainer.sample.show import ProgressView, progress_line, show_store


def tally_of(kept_tokens, sampled_tokens=100):
    return Tally(num_samples=8, num_kept=6, num_kept_tokens=kept_tokens, num_sampled_tokens=sampled_tokens)


def test_a_line_tells_how_far_how_fast_and_how_long_still():
    line = progress_line(tally_of(1500, 2000), 4000, 10.0, kept_before=500, sampled_before=1000)
    assert line == "kept 1,500 of 4,000 tokens, 2 of 8 samples dropped, 100 tokens/s, ETA 0h00m25s"
    assert progress_line(tally_of(500), 4000, 0.0) == "kept 500 of 4,000 tokens, 2 of 8 samples dropped"
    assert "ETA" not in progress_line(tally_of(4000, 9000), 4000, 9.0)


def test_without_a_terminal_lines_are_plain_and_seldom():
    stream = io.StringIO()
    view = ProgressView(4000, Console(file=stream))
    for kept in (0, 100, 200, 4000):
        view.show(tally_of(kept))
    view.close()
    shown = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in shown] == [
        "kept 0 of 4",
        "kept 4",
    ] and "\x1b" not in stream.getvalue()


def test_on_a_terminal_there_is_a_bar_with_the_line_beside_it():
    stream = io.StringIO()
    view = ProgressView(400, Console(file=stream, force_terminal=True, width=160))
    view.show(tally_of(100))
    view.close()
    assert "sampling" in stream.getvalue() and "kept 100 of 400 tokens" in stream.getvalue()


def test_the_table_counts_reasons_and_samples_cannot_move_the_cursor(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": "why\x1b[2J?\n"},
                {"role": "assistant", "content": "x" * 900},
            ]
        }
    ]
    (tmp_path / "generated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = {"samples": 9, "sampled_tokens": 1234, "kept": 7, "kept_tokens": 1000}
    counts |= {"dropped": {"duplicate": 2}, "sampling_s": 2.0}
    meta = {"counts": counts, "device": "CPU", "engine": "transformers", "batch_size": 4}
    stream = io.StringIO()
    show_store(tmp_path, meta, Console(file=stream))
    shown = stream.getvalue()
    assert "dropped: duplicate" in shown and "1,234" in shown and "617 tokens/s a rank" in shown
    assert "\x1b" not in shown and "sample 1: user: why [2J? | assistant: xxx" in shown and "xxx..." in shown
