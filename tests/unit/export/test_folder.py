"""An exported folder has what any user needs beside the weights, and is read back as they would."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig
from trainer.errors import SelfCheckError
from trainer.export.folder import folder_logits, say_stops, write_model_files, write_tokenizer
from trainer.model.tokenizer import configured_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_llama(folder)
    return folder


def test_config_generation_tokenizer_and_template_are_written(source, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    out = tmp_path / "out"
    out.mkdir()
    model = ModelConfig(path=str(source), chat_template=str(template))
    write_model_files(str(source), model, "bfloat16", pytest.fail, out)
    record = json.loads((out / "config.json").read_text())
    assert (record["dtype"], record["use_cache"]) == ("bfloat16", True)
    assert record["architectures"] == ["LlamaForCausalLM"]
    assert (out / "generation_config.json").is_file() and not [*out.glob("*.safetensors")]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template == template.read_text()
    assert tokenizer("ab")["input_ids"] == AutoTokenizer.from_pretrained(source)("ab")["input_ids"]
    assert (
        configured_tokenizer(ModelConfig(), str(out)).digest
        == configured_tokenizer(ModelConfig(chat_template=str(template)), str(source)).digest
    )


def test_a_model_without_a_generation_config_gets_one(source, tmp_path):
    bare, out = tmp_path / "bare", tmp_path / "out"
    shutil.copytree(source, bare)
    (bare / "generation_config.json").unlink()
    out.mkdir()
    write_model_files(str(bare), ModelConfig(path=str(bare)), "float32", print, out)
    assert (out / "generation_config.json").is_file()


def test_generation_stops_at_the_token_that_ends_answers_in_the_chat_template(source, tmp_path):
    template, out = tmp_path / "template.jinja", tmp_path / "out"
    template.write_text("{% for m in messages %}{{ m.content + '<|im_end|>\n' }}{% endfor %}")
    model = ModelConfig(path=str(source), chat_template=str(template))
    out.mkdir()
    said = []
    write_model_files(str(source), model, "float32", said.append, out)
    assert len(said) == 1 and "<|im_end|>" in said[0]
    end = AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|im_end|>")
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [1, end]
    shutil.rmtree(out)
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    out.mkdir()
    write_model_files(str(source), model, "float32", pytest.fail, out)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1


def test_an_adapter_has_no_file_for_it_so_its_users_are_told_where_generation_must_stop(source, tmp_path):
    """peft and vLLM read generation_config.json of the base."""
    template, out = tmp_path / "template.jinja", tmp_path / "out"
    template.write_text("{% for m in messages %}{{ m.content + '<|im_end|>\n' }}{% endfor %}")
    model = ModelConfig(path=str(source), chat_template=str(template))
    out.mkdir()
    write_tokenizer(str(source), model, out)
    said = []
    say_stops(str(source), model, said.append, out)
    end = AutoTokenizer.from_pretrained(out).convert_tokens_to_ids("<|im_end|>")
    assert (
        len(said) == 1 and f"Give eos_token_id=[1, {end}] to generate(), or stop_token_ids=[{end}]" in said[0]
    )
    assert not (out / "generation_config.json").exists()
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    write_tokenizer(str(source), model, out)
    say_stops(str(source), model, pytest.fail, out)


def test_logits_of_a_folder_are_those_of_its_model(source):
    tokens_T = torch.arange(4, 20)
    logits_TV, exact_TV = folder_logits(source, tokens_T, "float32", trust_remote_code=False)
    assert torch.equal(logits_TV, exact_TV)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(input_ids=tokens_T[None]).logits[0]
    assert logits_TV.shape == (16, 264) and logits_TV.dtype is torch.float32
    device_is_cpu = not torch.cuda.is_available()
    assert (
        torch.equal(logits_TV, expected) if device_is_cpu else torch.allclose(logits_TV, expected, atol=1e-3)
    )


def test_float32_arithmetic_uses_the_rounded_weights(source):
    """A failure points at a parameter that is not widened, or not narrowed again for the next module."""
    tokens_T = torch.arange(4, 20)
    rounded_TV, exact_TV = folder_logits(source, tokens_T, "bfloat16", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).float().eval()
    with torch.no_grad():
        expected = model(input_ids=tokens_T[None]).logits[0]
    assert torch.allclose(exact_TV, expected, atol=1e-6)
    assert 1e-4 < float((rounded_TV - exact_TV).abs().max()) < 0.1


def test_a_folder_that_does_not_load_completely_is_refused(source, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        SelfCheckError, match=r"must load completely, but has missing keys: \['model.norm.weight'\]"
    ):
        folder_logits(tmp_path, torch.arange(4), "float32", trust_remote_code=False)
