"""Words that Hydra's lexer cannot read bare are given as they are typed, and a sweep stays a sweep."""

import pytest

from trainer.config.override import is_swept, readable
from trainer.config.store import compose_config
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("run_dir=runs/é", "run_dir='runs/é'"),
        ("run_dir=my runs/é x", "run_dir='my runs/é x'"),
        ("run_dir=runs/a(b)", "run_dir='runs/a(b)'"),
        ("run_dir=runs/a=b", "run_dir='runs/a=b'"),
        ("run_dir=a\\,é", "run_dir='a,é'"),
        ("run_dir=runs/${name}/é", "run_dir='runs/${name}/é'"),
        ("name=l'été", "name='l\\'été'"),
        ("run_dir=~/runs", "run_dir='~/runs'"),
        ("log.trackers=[é,b]", "log.trackers=['é',b]"),
        ("zero.extra={a: é, b: 1}", "zero.extra={a: 'é', b: 1}"),
        ("name=é,ü", "name='é','ü'"),
        ("name=choice(é,b)", "name=choice('é',b)"),
        ("name='é'", "name='é'"),
        ("optim.lr=1e-5,2e-5", "optim.lr=1e-5,2e-5"),
        ("seed=range(1,3)", "seed=range(1,3)"),
        ("name=sort(é,b,reverse=true)", "name=sort('é',b,reverse=true)"),
    ],
)
def test_what_needs_quotes_gets_them(word, read):
    assert readable(word) == read and readable(read) == read


@pytest.mark.parametrize("word", ["name=é,ü", "optim.lr=1e-5,2e-5", "name=choice(é,b)", "seed=range(1,3)"])
def test_a_sweep_stays_one(word):
    assert is_swept(word)


@pytest.mark.parametrize("name", ["é", "日本", "a b", "a(b)", "a#b", "a=b", "l'été", "a[1]"])
def test_a_place_is_taken_as_it_is_typed(name):
    config = compose_config([f"run_dir=/runs/{name}", f"data.cache_dir=/cache/{name}"])
    assert (config.run_dir, config.data.cache_dir) == (f"/runs/{name}", f"/cache/{name}")


def test_a_key_of_other_letters_is_unknown():
    with pytest.raises(ConfigError, match="Unknown key `größe`"):
        compose_config(["größe=1"])
