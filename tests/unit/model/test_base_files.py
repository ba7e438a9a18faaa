"""Tensors of the files and of the model, by transformers' own rules, there and back."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM

from tests.helpers.families import FAMILIES
from tests.helpers.tiny import save_llama
from tests.helpers.tiny_families import tiny_config
from trainer.config.model import ModelConfig
from trainer.errors import ModelError
from trainer.model.attention import AttentionChoice
from trainer.model.base_files import open_base
from trainer.model.load import load_model

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FIRST_EXPERT = {
    "mixtral": "model.layers.0.block_sparse_moe.experts.0.w1.weight",
    "qwen3_moe": "model.layers.0.mlp.experts.0.gate_proj.weight",
}


def opened(folder):
    return open_base(str(folder), ModelConfig(path=str(folder)))


def load(folder):
    config = ModelConfig(path=str(folder))
    return load_model(
        str(folder), config, AttentionChoice("sdpa", ""), "fp32", None, torch.device("cpu")
    ).model


@pytest.mark.parametrize("kind", sorted(FIRST_EXPERT))
def test_experts_are_read_as_one_and_written_one_by_one(kind, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE, **EXPERTS)).save_pretrained(tmp_path)
    files, model, base = load_file(tmp_path / "model.safetensors"), load(tmp_path), opened(tmp_path)
    assert FIRST_EXPERT[kind] in files and FIRST_EXPERT[kind] not in model.state_dict()
    with base.reader() as read:
        for name, parameter in model.named_parameters():
            assert torch.equal(read(name), parameter), name
    written = dict(
        base.as_files((name, parameter.detach() * 2) for name, parameter in model.named_parameters())
    )
    assert set(written) == set(files) and not base.sentences()
    for name, tensor in files.items():
        assert torch.equal(written[name], tensor * 2), name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("glm4_moe", "model.layers.1.mlp.gate.e_score_correction_bias"),
        ("minimax_m2", "model.layers.1.block_sparse_moe.e_score_correction_bias"),
        ("ernie4_5_moe", "model.layers.1.mlp.moe_statics.e_score_correction_bias"),
        ("mixtral", None),
    ],
)
def test_what_steers_the_choice_of_experts_is_known_by_the_names_of_files(kind, name, tmp_path):
    routed = {"n_routed_experts": 4, "moe_num_experts": 4, "moe_k": 2, "head_dim": 8}
    config = AutoConfig.for_model(kind, **SHAPE, **EXPERTS, **routed)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    files, exact = load_file(tmp_path / "model.safetensors"), opened(tmp_path).exact
    assert (name in files and name in exact) if name else not exact


def test_an_output_layer_under_an_older_name_is_read_and_written_so(tmp_path):
    config = AutoConfig.for_model("gpt_neox", **SHAPE)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    files, model = load_file(tmp_path / "model.safetensors"), load(tmp_path)
    assert "embed_out.weight" in files and "lm_head.weight" in model.state_dict()
    assert set(dict(opened(tmp_path).as_files(model.named_parameters()))) == set(files)


def test_a_tied_output_layer_that_the_files_hold_too_is_written_twice(tmp_path):
    save_llama(tmp_path, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    embed = tensors["model.embed_tokens.weight"]
    save_file(
        tensors | {"lm_head.weight": embed.clone()}, tmp_path / "model.safetensors", metadata={"format": "pt"}
    )
    base = opened(tmp_path)
    assert "model.embed_tokens.weight" in base.names and "lm_head.weight" not in base.names
    model = load(tmp_path)
    written = list(base.as_files((name, p.detach() + 1) for name, p in model.named_parameters()))
    assert sorted(name for name, _ in written) == sorted([*tensors, "lm_head.weight"])
    assert torch.equal(dict(written)["lm_head.weight"], embed.float() + 1)


def test_what_the_model_does_not_take_is_copied_and_told(tmp_path):
    save_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.arange(4.0),
        "mtp.scale": torch.tensor(2.5),
    }
    save_file(tensors | extra, tmp_path / "model.safetensors", metadata={"format": "pt"})
    base = opened(tmp_path)
    assert base.sentences() == ["2 tensors of the base did not train and stay: layers 1, mtp 1."]
    written = dict(base.as_files(tensors.items()))
    assert all(torch.equal(written[name], tensor) for name, tensor in extra.items())


def test_a_checkpoint_without_a_parameter_of_the_base_is_refused(tmp_path):
    save_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    with pytest.raises(ModelError, match=r"must hold every parameter of .*, but has no model.norm.weight"):
        list(opened(tmp_path).as_files(tensors.items()))


def test_what_cannot_be_taken_back_keeps_the_name_of_transformers_and_is_told(tmp_path):
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SHAPE, **EXPERTS)).save_pretrained(
        tmp_path
    )
    tensors = load_file(tmp_path / "model.safetensors")
    fused, lost = "model.layers.0.mlp.experts.gate_up_proj", FIRST_EXPERT["mixtral"]
    save_file(
        {n: t for n, t in tensors.items() if n != lost},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    base = opened(tmp_path)
    assert base.sentences() == [
        f"1 tensors keep transformers' names, such as {fused}: it cannot take back how it made them of the base's "
        "files."
    ]
    whole = AutoModelForCausalLM.from_config(AutoConfig.for_model("mixtral", **SHAPE, **EXPERTS))
    written = dict(base.as_files(whole.named_parameters()))
    assert fused in written and "model.layers.1.block_sparse_moe.experts.0.w1.weight" in written


def test_a_parameter_that_its_class_never_trains_is_the_bases(tmp_path):
    if "hrm_text" not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the family")
    torch.manual_seed(0)
    config = tiny_config(FAMILIES["HRM-Text"])
    config.num_hidden_layers = 1
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.model.z_L_init.normal_()
    model.save_pretrained(tmp_path)
    trained = [(name, p.detach()) for name, p in model.named_parameters() if p.requires_grad]
    assert "model.z_L_init" not in dict(trained)
    written = dict(opened(tmp_path).as_files(iter(trained)))
    assert torch.equal(written["model.z_L_init"], model.model.z_L_init)
    assert set(written) == set(load_file(tmp_path / "model.safetensors"))
