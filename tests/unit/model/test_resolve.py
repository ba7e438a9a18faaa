"""What transformers is told to load, for every kind of model."""

import pytest

from trainer.config.model import ModelConfig, ModelKind
from trainer.errors import ModelError
from trainer.model.resolve import resolve_model


@pytest.mark.parametrize("kind", [ModelKind.pretrained, ModelKind.random])
def test_a_name_stays_a_name_and_a_folder_becomes_its_path(kind, tmp_path, monkeypatch):
    def resolved(path):
        return resolve_model(ModelConfig(kind=kind, path=path), tmp_path / "cache")

    assert resolved("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert resolved("~/model") == resolved(str(tmp_path / "model")) == str(tmp_path / "model")
    assert resolved("./model") == resolved("model") == "model"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("path", ["/nope/model", "./nope", "../nope", "~/nope"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ModelError, match=r"`model\.path` must be a model name or an existing folder"
    ) as caught:
        resolve_model(ModelConfig(path=path), tmp_path)
    assert f"'{path}' instead. Check the path." in str(caught.value)
