"""Whatever the input: a store, or one sentence; and nothing is supervised that should not be."""

from __future__ import annotations

import functools
import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers.odd_inputs import ASIDE, VALUES, make_odd, odd_overrides
from tests.helpers.tokenizers import make_tokenizer
from trainer.command.fitting import fitted
from trainer.config.check import check_config
from trainer.config.data import ColumnsConfig, DataConfig, Format, TokenValue
from trainer.config.store import compose_config, load_config, to_yaml
from trainer.data.prepare import prepare
from trainer.errors import ConfigError, DataError, TrainerError

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@functools.cache
def tokenizer():
    return make_tokenizer()


def prepared(data: DataConfig) -> dict:
    console = Console(file=io.StringIO(), width=200)
    return prepare(data, tokenizer(), tokenizer, None, console)


def outcome_of(seed: int, folder: Path) -> str:
    """Prepare the input of a seed; return what came of it, or fail."""
    folder.mkdir()
    odd = make_odd(seed, folder)
    data = DataConfig(
        sources={"s": odd.source},
        seq_len=4096,
        num_workers=1,
        validation_frac=0.0,
        cache_dir=str(folder / "c"),
        values=[TokenValue.weight] * (seed % 2),
    )
    try:
        store = prepared(data)["s"]
    except DataError as error:
        assert str(error).endswith(".") and "\n" not in str(error), f"seed {seed}: {error}"
        return "refused"
    for index in range(store.train.num_packs if odd.is_judged else 0):
        pack = store.train.pack(index)
        learnt = pack.tokens[pack.supervised].tolist()
        for weights in pack.values.values():
            assert ((weights > 0) == pack.supervised).all(), f"seed {seed}: {weights}"
        if odd.source.format is Format.ids:
            assert all(token < 100 for token in learnt), f"seed {seed}: ids {learnt}"
        else:
            said = tokenizer().decode(learnt)
            assert not set(ASIDE) & set(said), f"seed {seed}: supervised {said!r}"
    return "judged" if odd.is_judged else "read"


def try_seeds(seeds: range, folder: Path) -> Counter[str]:
    outcomes = Counter(outcome_of(seed, folder / str(seed)) for seed in seeds)
    print(f"{len(seeds)} odd inputs: {dict(outcomes)}")
    return outcomes


def test_no_odd_input_gives_a_traceback_or_teaches_what_it_should_not(tmp_path: Path) -> None:
    outcomes = try_seeds(range(150), tmp_path)
    assert outcomes["refused"] > 30 < outcomes["judged"], outcomes


KEYS = [f"columns.{slot}" for slot in ColumnsConfig.__dataclass_fields__]
KEYS += [
    "format",
    "as_chat",
    "split",
    "subset",
    "revision",
    "max_documents",
    "txt_documents",
    "path",
    "dataset",
]
KEYS += [
    "clean.min_chars",
    "clean.max_chars",
    "packing",
    "long_documents",
    "role",
    "columns",
    "columns.nonsense",
]


def outcome_of_overrides(seed: int, folder: Path) -> str:
    """Compose odd overrides of a source, check and prepare them; return what came of it, or fail."""
    draw = random.Random(seed)
    (folder / "in.jsonl").write_text(json.dumps({"messages": TURNS, "text": "x"}) + "\n")
    key = "data.sources.chat"
    chosen = [f"{key}.{draw.choice(KEYS)}={draw.choice(VALUES)}" for _ in range(draw.randint(1, 2))]
    common = ["model=tiny", "data=chat", f"data.cache_dir={folder}/cache", "data.num_workers=1"]
    try:
        config = compose_config([*common, f"{key}.path={folder}/in.jsonl", "data.validation_frac=0", *chosen])
        check_config(config, only=("data",))
        prepared(config.data)
    except TrainerError as error:
        assert str(error).rstrip().endswith((".", "?")), f"{chosen}: {error}"
        return "ConfigError" if isinstance(error, ConfigError) else type(error).__name__
    return "read"


def try_overrides(seeds: range, folder: Path) -> Counter[str]:
    outcomes = Counter(outcome_of_overrides(seed, folder) for seed in seeds)
    print(f"{len(seeds)} odd overrides: {dict(outcomes)}")
    return outcomes


def test_no_odd_override_of_a_source_gives_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(try_overrides(range(110, 130), tmp_path)) == {"ConfigError", "DataError", "read"}


def outcome_of_any(seed: int) -> str:
    """Compose odd overrides of any keys, check and fit them, write them and read that; return what came of it."""
    words = odd_overrides(seed)
    try:
        common = ["model=tiny", "data=chat", "data.sources.chat.path=in.jsonl", "train.max_steps=2"]
        config = compose_config([*common, *words])
        check_config(config, 2)
        config = fitted(config, 2, can_load=False, here_gib=80.0).config
        file = Path(f"{seed}.yaml")
        file.write_text(to_yaml(config), encoding="utf-8")
        assert to_yaml(load_config(file)) == to_yaml(config), words
    except TrainerError as error:
        assert str(error).rstrip().endswith((".", "?")), f"{words}: {error}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"seed {seed}: {words}") from error
    return "taken"


def try_any(seeds: range) -> Counter[str]:
    outcomes = Counter(outcome_of_any(seed) for seed in seeds)
    print(f"{len(seeds)} odd overrides of any keys: {dict(outcomes)}")
    return outcomes


def test_no_odd_override_of_any_key_gives_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcomes: Counter[str] = Counter()
    for first in range(26, 26 + 5 * 12, 12):  # which seeds are taken depends on what keys there are
        outcomes += try_any(range(first, first + 12))
        if outcomes["refused"] > 5 and outcomes["taken"]:
            return
    raise AssertionError(outcomes)


@pytest.mark.slow
def test_no_odd_override_of_any_of_many_does_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try_any(range(1_000, 3_000))


@pytest.mark.slow
def test_no_odd_override_of_many_does_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try_overrides(range(1_000, 3_000), tmp_path)


@pytest.mark.slow
def test_no_odd_input_of_many_does_either(tmp_path: Path) -> None:
    try_seeds(range(1_000, 11_000), tmp_path)
