"""The JSON schema for editors: valid itself, takes what ships and what is frozen, refuses what composing refuses."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from trainer.cli import run_command
from trainer.config.describe import NAME, fields, sections
from trainer.config.json_schema import json_schema
from trainer.config.options import PACKAGE, group_options
from trainer.config.store import compose_config, to_yaml

jsonschema = pytest.importorskip("jsonschema")
CONF = Path(__file__).resolve().parents[3] / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if path.parent != CONF)
SECTIONS = [section.key for section in sections()]


def errors(key, value):
    return [error.json_path for error in jsonschema.Draft202012Validator(json_schema(key)).iter_errors(value)]


def loaded(path):
    # As Hydra reads it: 1e-5 is a number there.
    return OmegaConf.to_container(OmegaConf.load(path)) or {}


@pytest.mark.parametrize("key", SECTIONS)
def test_the_schema_of_every_section_is_valid(key):
    jsonschema.Draft202012Validator.check_schema(json_schema(key))
    assert json_schema(key)["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_key_is_in_it_with_meaning_and_default_and_nothing_else_may_be():
    schema = json_schema()
    for field in fields().values():
        at = schema
        for part in field.key.split("."):
            at = at["additionalProperties"] if part == NAME else at["properties"][part]
        assert at["description"].startswith(field.meaning) and "default" in at, field.key
    assert schema["additionalProperties"] is schema["properties"]["optim"]["additionalProperties"] is False


def test_every_file_that_ships_fits_the_schema_of_its_place():
    assert len(FILES) > 40
    groups = set(group_options())
    for path in FILES:
        is_global = path.read_text(encoding="utf-8").startswith(f"{PACKAGE}_global_")
        assert path.parent.name in groups
        assert errors("" if is_global else path.parent.name, loaded(path)) == [], path


def test_a_frozen_configuration_fits(tmp_path):
    words = ["experiment=quickstart", "model.chat_template_date=2026-11-28", "gate=default", "cluster=slurm"]
    tree = yaml.safe_load(to_yaml(compose_config([*words, f"run_dir={tmp_path}/run"])))
    assert errors("", tree) == [] and tree["gate"]["sets"]


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"optim": {"lrr": 1}}, "$.optim"),
        ({"optm": {}}, "$"),
        ({"optim": {"lr": "much"}}, "$.optim.lr"),
        ({"optim": {"lr": None}}, "$.optim.lr"),
        ({"train": {"max_steps": 1.5}}, "$.train.max_steps"),
        ({"data": {"sources": {"a": {"format": "chats"}}}}, "$.data.sources.a.format"),
        ({"data": {"sources": {"a": {"pth": "x"}}}}, "$.data.sources.a"),
        ({"gate": {"sets": {"general": {"max_rise": 1}}}}, "$.gate.sets.general"),
        ({"model": {"tiny": {"hidden_size": "x"}}}, "$.model.tiny.hidden_size"),
        ({"log": {"tags": "a"}}, "$.log.tags"),
    ],
)
def test_a_wrong_key_or_value_is_found_where_it_stands(tree, place):
    assert errors("", tree) == [place]


def test_what_stands_for_a_value_is_taken():
    tree = {"train": {"max_steps": "${seed}", "max_tokens": None}, "data": {"seq_len": "???"}}
    assert (
        errors("", tree | {"defaults": ["a", {"override /model": "tiny"}], "hydra": {"searchpath": []}}) == []
    )


def test_a_section_is_printed_alone_and_an_unknown_one_is_named(capsys, refuse):
    assert run_command(["schema", "cluster.container"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["properties"]) == {"defaults", "runtime", "image", "mounts", "options", "python"}
    assert "Did you mean `checkpoint`? Sections: model, data" in refuse("schema", "chekpoint")
    assert "must be given one section or none" in refuse("schema", "model", "data")
    assert "`optim.lr` must be a section" in refuse("schema", "optim.lr")
