"""Reward models are transformers' own classifiers of one label; what is none is refused in a sentence."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaForSequenceClassification

from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig, ModelHead
from trainer.errors import ModelError
from trainer.export.pooled import fill_of, head_of_folder
from trainer.model.attention import AttentionChoice
from trainer.model.base_files import open_base
from trainer.model.load import load_model, read_config
from trainer.model.scorer import begin_score, check_scorer, left_out, output_layer
from trainer.model.tokenizer import configured_tokenizer

SCORED = ModelConfig(head=ModelHead.score)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_llama(folder / "plain", seed=3)
    config = AutoConfig.from_pretrained(folder / "plain", num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder / "scorer")
    config = AutoConfig.from_pretrained(folder / "plain", num_labels=3)
    LlamaForSequenceClassification(config).save_pretrained(folder / "labels")
    return folder


def loaded(folder):
    attention = AttentionChoice("sdpa", "test")
    return load_model(str(folder), SCORED, attention, "fp32", None, torch.device("cpu"))


def test_a_language_model_becomes_one_with_its_body_and_without_its_output_layer(models):
    found = loaded(models / "plain")
    tensors = load_file(models / "plain" / "model.safetensors")
    assert found.has_new_score and type(found.model) is LlamaForSequenceClassification
    named = dict(found.model.named_parameters())
    assert "score.weight" in named and not any("lm_head" in name for name in named)
    assert all(torch.equal(named[name], tensor) for name, tensor in tensors.items() if "lm_head" not in name)
    assert output_layer(found.model) is found.model.score


def test_a_reward_model_goes_on_with_its_own_layer(models):
    found = loaded(models / "scorer")
    tensors = load_file(models / "scorer" / "model.safetensors")
    assert not found.has_new_score and torch.equal(found.model.score.weight, tensors["score.weight"])


def test_a_reward_model_that_has_lost_its_layer_is_refused(models, tmp_path):
    folder = tmp_path / "lost"
    folder.mkdir()
    tensors = load_file(models / "scorer" / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((models / "scorer" / "config.json").read_text())
    with pytest.raises(ModelError, match=r"missing keys: score\.weight"):
        loaded(folder)


def test_a_missing_layer_of_the_body_is_refused_as_of_a_language_model(models, tmp_path):
    folder = tmp_path / "lost"
    folder.mkdir()
    tensors = load_file(models / "plain" / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((models / "plain" / "config.json").read_text())
    with pytest.raises(ModelError, match=r"missing keys: model\.norm\.weight"):
        loaded(folder)


def test_what_can_be_no_reward_model_is_refused(models, tmp_path):
    with pytest.raises(ModelError, match="is a classifier of 3 instead"):
        read_config(str(models / "labels"), SCORED)
    with pytest.raises(ModelError, match="goes on training with objective=reward"):
        read_config(str(models / "scorer"), ModelConfig())
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    )
    with pytest.raises(ModelError, match="must be a causal language model"):
        read_config(str(folder), SCORED)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "granite", "architectures": ["GraniteForCausalLM"]})
    )
    with pytest.raises(ModelError, match="granite has none instead"):
        read_config(str(folder), SCORED)


def test_a_model_that_also_sees_is_refused():
    from transformers import Gemma3Config

    with pytest.raises(ModelError, match="must be a model of text alone"):
        check_scorer(Gemma3Config(architectures=["Gemma3ForConditionalGeneration"]), "gemma")


def test_the_files_of_a_base_have_no_output_layer_to_write(models):
    base = open_base(str(models / "plain"), SCORED)
    assert "model.norm.weight" in base.names and "score.weight" not in base.names
    stream = [(name, torch.zeros(1)) for name in [*base.names, "score.weight"]]
    assert sorted(name for name, _ in base.as_files(iter(stream))) == sorted([*base.names, "score.weight"])
    assert left_out(["lm_head.weight", "h.9.mlp.weight", "model.x"], "model") == ["lm_head.weight"]


def test_a_new_layer_depends_on_the_seed_alone():
    config = AutoConfig.for_model("llama", initializer_range=0.5)
    first, second, other = (torch.nn.Parameter(torch.empty(1, 64)) for _ in range(3))
    torch.manual_seed(1)
    begin_score(first, config, 4)
    torch.manual_seed(2)
    begin_score(second, config, 4)
    begin_score(other, config, 5)
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert 0.4 < float(first.std()) < 0.6


def test_batches_are_filled_with_a_token_that_ends_no_text(models, tmp_path):
    """TRL and transformers pool the token before padding: with EOS as padding it would be another one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models / "plain")
    assert head_of_folder(models / "plain") is ModelHead.language
    assert head_of_folder(models / "scorer") is ModelHead.score
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path)
    found = configured_tokenizer(ModelConfig(), str(tmp_path))
    filling = fill_of(found)
    assert filling is not None and filling not in (found.eos_id, found.turn_end_id)
