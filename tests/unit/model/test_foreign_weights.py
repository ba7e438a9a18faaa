"""Weights of a stranger are data: a pickle in any of their places does not run."""

import json
import os
import pickle

import pytest
import torch

from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig, ModelKind
from trainer.errors import TrainerError
from trainer.model.attention import AttentionChoice
from trainer.model.load import load_model, read_config
from trainer.model.tokenizer import configured_tokenizer


class Touch:
    """Unpickled, it makes a folder: the code of a stranger."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def model(tmp_path):
    save_llama(tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    config = ModelConfig(kind=ModelKind.pretrained, path=str(folder))
    return load_model(
        str(folder), config, AttentionChoice("sdpa", "asked for"), "fp32", None, torch.device("cpu")
    )


@pytest.mark.parametrize("is_bare", [False, True])
def test_code_in_weights_of_a_base_does_not_run(model, tmp_path, is_bare):
    (model / "model.safetensors").unlink()
    weights = model / "pytorch_model.bin"
    if is_bare:
        weights.write_bytes(pickle.dumps({"lm_head.weight": Touch(tmp_path / "made")}))
    else:
        torch.save({"lm_head.weight": Touch(tmp_path / "made")}, weights)
    with pytest.raises(TrainerError):
        load(model)
    assert not (tmp_path / "made").exists()


def test_code_of_a_model_does_not_run_unless_it_is_asked_for(model, tmp_path):
    code = f"import os\nos.mkdir({str(tmp_path / 'made')!r})\nclass C: pass\n"
    (model / "modeling_own.py").write_text(code)
    described = json.loads((model / "config.json").read_text())
    described |= {"auto_map": {"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.C"}}
    for kind in ("llama", "own"):
        (model / "config.json").write_text(json.dumps(described | {"model_type": kind}))
        try:
            read_config(str(model), ModelConfig(path=str(model)))
            load(model)
        except TrainerError as error:
            assert "trust_remote_code" in str(error)
    described = json.loads((model / "tokenizer_config.json").read_text())
    described |= {"auto_map": {"AutoTokenizer": ["modeling_own.C", "modeling_own.C"]}}
    (model / "tokenizer_config.json").write_text(json.dumps(described))
    try:
        configured_tokenizer(ModelConfig(), str(model))
    except TrainerError as error:
        assert "model.tokenizer" in str(error)
    assert not (tmp_path / "made").exists()
