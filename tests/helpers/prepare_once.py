"""Prepare one text source in a process of its own: `prepare_once.py SOURCE CACHE TOKENIZER [GO]`.

With GO it waits for that file first, so that several processes can start together.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.helpers.tokenizers import load_saved
from trainer.config.data import DataConfig, SourceConfig
from trainer.data.prepare import prepare


def main() -> None:
    """Prepare what the command line says."""
    source, cache, folder, *go = sys.argv[1:]
    make = partial(load_saved, folder)
    tokenizer = make()
    data = DataConfig(
        sources={"corpus": SourceConfig(path=source, txt_documents="line")},
        seq_len=256,
        cache_dir=cache,
        num_workers=1,
    )
    print("ready", flush=True)
    while go and not Path(go[0]).exists():
        time.sleep(0.01)
    prepare(data, tokenizer, make, None, Console())


if __name__ == "__main__":
    main()
