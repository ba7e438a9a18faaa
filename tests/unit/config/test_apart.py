"""A run, an export or a cache is never written into what is read, nor into a folder that holds something else."""

import pytest

from trainer.command.missing_here import missing
from trainer.config.apart import inputs_of, why_no_cache, why_not_apart
from trainer.config.snapshot import freeze
from trainer.config.store import compose_config
from trainer.errors import ConfigError


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Return a configuration that reads a model, a folder and two files of another."""
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "texts/deep", "notes", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("base/config.json", "texts/a.txt", "notes/a.txt", "notes/b.txt"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "link").symlink_to("texts")
    words = ["data=text", "train.max_steps=4", "model.kind=pretrained", "model.path=./base"]
    return compose_config(
        [*words, "data.sources.corpus.path=texts", "data.sources.more.path=notes/*.txt", "run_dir=new"]
    )


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("base", "is `model.path`"),
        ("base/out", "is in `model.path`"),
        ("link", "is `data.sources.corpus.path`"),
        ("link/../texts/deep/../out", "is in `data.sources.corpus.path`"),
        ("notes/a.txt", "is `data.sources.more.path`"),
        ("notes/out", None),
        ("out", None),
    ],
)
def test_a_place_is_where_its_links_and_dots_lead(config, place, why):
    found = why_not_apart(place, inputs_of(config))
    assert found is None if why is None else str(found).startswith(why)


@pytest.mark.parametrize("place", ["base", "texts/deep", "a", "fine"])
def test_an_export_is_not_written_into_what_its_run_was_made_from(config, tmp_path, place):
    """The base was deleted, and only then said to be missing."""
    config.export.output_dir, config.export.adapters = str(tmp_path / place), [str(tmp_path / "a"), "b"]
    (tmp_path / "a").mkdir()
    said = [one.sentence for one in missing(config, "export") if one.key == "export.output_dir"]
    assert [sentence.split(", but ")[0] for sentence in said] == (
        [] if place == "fine" else ["`export.output_dir` must be a folder that nothing is read from"]
    )


@pytest.mark.parametrize(("place", "count"), [("base/out", 1), ("texts/out", 1), ("out", 0)])
def test_samples_are_not_written_into_what_is_read(config, tmp_path, place, count):
    config.replay.generate.output_dir = str(tmp_path / place)
    found = [one.key for one in missing(config, "replay generate")]
    assert found.count("replay.generate.output_dir") == count


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("base", "is `model.path`"),
        ("texts", "is `data.sources.corpus.path`"),
        ("texts/run", "is in `data.sources.corpus.path`"),
        ("notes", "holds a.txt, which no run wrote"),
        ("theirs", "holds config.yaml, which no run wrote"),
        ("notes/run", None),
        ("empty", None),
        ("begun", None),
        ("new", None),
    ],
)
def test_a_run_is_not_written_into_a_folder_of_something_else(config, tmp_path, place, why):
    """Texts became a run directory, and checkpoints were written into a base model."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text("epochs: 3\n")
    for file in (".lock", "attempts.jsonl", "logs/console.log"):  # what a start leaves that came no further
        (tmp_path / "begun" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "begun" / file).touch()
    if why is None:
        freeze(config, tmp_path / place)
        (tmp_path / place / "more.txt").touch()
        freeze(config, tmp_path / place)
        return
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        freeze(config, tmp_path / place)
    assert str(caught.value).startswith("`run_dir` must be a new folder or that of a run, but")
    assert f"{place} {why}" in str(caught.value) and sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("texts", "is `data.sources.corpus.path`"),
        ("base/cache", "is in `model.path`"),
        ("notes", "holds `data.sources.more.path` (a.txt)"),
        (".", "holds `model.path` (base)"),
        ("cache", None),
        ("used", None),
    ],
)
def test_a_cache_is_not_mixed_with_what_is_read(config, tmp_path, place, why):
    (tmp_path / "used" / "stores").mkdir(parents=True)
    config.data.cache_dir = str(tmp_path / place)
    assert why_no_cache(config) == why or (why and str(why_no_cache(config)).startswith(why))
    said = [one.sentence for one in missing(config, "prepare") if one.key == "data.cache_dir"]
    assert len(said) == (why is not None)
