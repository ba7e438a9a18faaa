"""A mistyped path is answered with the place that is like it."""

import pytest

from trainer.config.nearby import near_place


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in ("models/llama-instruct", "models/Qwen3-8B", "data"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("models/llama-instuct", "models/llama-instruct"),
        ("model/llama-instruct", "models/llama-instruct"),
        ("models/qwen3", "models/Qwen3-8B"),
        ("MODELS/qwen3-8b", "models/Qwen3-8B"),
        ("somebody/llama", None),
        ("models/gpt", None),
        ("nowhere", None),
    ],
)
def test_a_place_that_is_like_it_is_named_as_it_was_typed(here, typed, meant):
    assert near_place(typed) == meant
    assert near_place(f"{here}/{typed}") == (meant and f"{here}/{meant}")
    assert near_place(f"./{typed}") == meant


def test_a_folder_that_cannot_be_read_is_like_nothing(here):
    (here / "file").touch()
    assert near_place("file/inside") is None
