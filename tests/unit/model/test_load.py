"""Loading: the weights of the files, all of them and no others, or a sentence. Never random weights unnoticed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig, ModelKind
from trainer.errors import ModelError
from trainer.model.attention import AttentionChoice
from trainer.model.load import load_model, read_config, router_loss
from trainer.model.tensor_by_tensor import looking_up
from trainer.model.tensor_files import weight_files

UP = "model.layers.1.mlp.up_proj.weight"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a folder with a plain model and one whose head is its embedding."""
    folder = tmp_path_factory.mktemp("models")
    save_llama(folder / "plain", seed=3)
    save_llama(folder / "tied", seed=3, tie_word_embeddings=True)
    return folder


def load(folder, dtype="fp32", **options):
    model = ModelConfig(path=str(folder), **options)
    return load_model(str(folder), model, AttentionChoice("sdpa", "asked for"), dtype, None, CPU)


def tampered(models, tmp_path, edit, base="plain"):
    """Return a copy of a model with its tensors edited."""
    folder = tmp_path / "tampered"
    shutil.copytree(models / base, folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("base", ["plain", "tied"])
def test_a_model_is_loaded_with_the_values_of_its_files(models, base):
    loaded = load(models / base)
    tensors = load_file(models / base / "model.safetensors")
    parameters = dict(loaded.model.named_parameters())
    assert parameters.keys() == tensors.keys()
    assert all(torch.equal(parameters[name], tensors[name]) for name in tensors)
    assert loaded.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    assert loaded.model.config.use_cache is False
    assert loaded.model.config._attn_implementation == "sdpa"
    assert next(load(models / base, "bf16").model.parameters()).dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "edit", "name"),
    [
        ("missing keys", lambda tensors: tensors.pop(UP), UP),
        # Untied, but the class names the head among those that may be tied: it was once let through.
        ("missing keys", lambda tensors: tensors.pop("lm_head.weight"), "lm_head.weight"),
        ("unexpected keys", lambda tensors: tensors.update({"model.extra": torch.ones(2)}), "model.extra"),
        ("mismatched keys", lambda tensors: tensors.update({UP: tensors[UP][:5].clone()}), UP),
    ],
    ids=["missing", "missing head", "unexpected", "mismatched"],
)
def test_weights_that_do_not_fit_are_refused_by_name(models, tmp_path, kind, edit, name):
    folder = tampered(models, tmp_path, edit)
    with pytest.raises(ModelError) as caught:
        load(folder)
    message = str(caught.value)
    assert message.startswith(f"The weights of {folder} must match the model exactly, but there are {kind}: ")
    assert name in message and "would train random weights; use files" in message


def test_a_tied_head_that_is_in_the_file_too_is_not_unexpected(models, tmp_path):
    def add_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    folder = tampered(models, tmp_path, add_head, base="tied")
    model = load(folder).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_many_names_are_cut_short(models, tmp_path):
    def drop_norms(tensors):
        for name in [name for name in tensors if "norm" in name]:
            del tensors[name]

    with pytest.raises(ModelError, match=r"(, [^,]+){3}, \.\.\.\. The run"):
        load(tampered(models, tmp_path, drop_norms))


def test_random_weights_come_from_the_seed_and_not_from_the_files(models):
    first, again, other = (
        load(models / "plain", kind=ModelKind.random, seed=seed).model for seed in (1, 1, 2)
    )
    head, same, another = (model.lm_head.weight for model in (first, again, other))
    assert torch.equal(head, same) and not torch.equal(head, another)
    assert not torch.equal(head, load(models / "plain").model.lm_head.weight)


def test_random_weights_need_no_more_than_a_config_json(models, tmp_path):
    shutil.copy(models / "plain" / "config.json", tmp_path)
    for path in (tmp_path, tmp_path / "config.json"):
        assert load(path, kind=ModelKind.random).num_parameters == load(models / "plain").num_parameters


def test_weight_files_are_found_whole_sharded_and_not_at_all(models, tmp_path):
    plain = weight_files(str(models / "plain"))
    assert set(plain.values()) == {models / "plain" / "model.safetensors"} and UP in plain
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(models / "plain").save_pretrained(tmp_path, max_shard_size="50KB")
    sharded = weight_files(str(tmp_path))
    assert sharded.keys() == plain.keys() and len(set(sharded.values())) > 1
    assert all(path.is_file() for path in sharded.values())
    assert load(tmp_path).num_parameters == load(models / "plain").num_parameters
    assert weight_files("Qwen/Qwen3-8B") == weight_files(str(tmp_path / "nope")) == {}


def test_code_of_strangers_is_not_trusted_by_default():
    assert ModelConfig().trust_remote_code is False


@pytest.mark.parametrize("architectures", [["LlamaModel"], ["LlamaForSequenceClassification"]])
def test_a_model_without_a_causal_head_is_refused(models, tmp_path, architectures):
    record = json.loads((models / "plain" / "config.json").read_text()) | {"architectures": architectures}
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=f"causal language model, but .* is {architectures[0]} instead"):
        read_config(str(tmp_path), ModelConfig())


@pytest.mark.parametrize("damage", ["torn", "gone"])
def test_files_that_cannot_be_read_are_a_sentence(models, tmp_path, damage):
    folder = tmp_path / "damaged"
    shutil.copytree(models / "plain", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    if damage == "gone":
        weights.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        ({"router_aux_loss_coef": 0.02, "output_router_logits": True}, 0.02),
        ({"router_aux_loss_coef": 0.02}, 0.0),
        ({"router_aux_loss_coef": 0.0, "output_router_logits": True}, 0.0),
    ],
)
def test_a_loss_of_routers_belongs_to_training_where_the_configuration_says_so(options, weight):
    assert router_loss(AutoConfig.for_model("mixtral", **options)) == weight
    assert router_loss(AutoConfig.for_model("llama")) == 0


def test_a_look_between_tensors_may_end_the_loading(models):
    """It is called before each of them, and by no other load."""
    seen = []
    model = ModelConfig(path=str(models / "plain"))
    arguments = (str(models / "plain"), model, AttentionChoice("sdpa", "asked for"), "fp32", None, CPU)
    with looking_up(lambda: seen.append(1)):
        loaded = load_model(*arguments)
    assert len(seen) == len(dict(loaded.model.named_parameters()))

    def give_up():
        raise KeyError("asked to stop")

    with pytest.raises(KeyError, match="asked to stop"), looking_up(give_up):
        load_model(*arguments)
    count = len(seen)
    load_model(*arguments)
    assert len(seen) == count
