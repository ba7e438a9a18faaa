"""Several adapters as one: against plain peft on a whole model, and against the sum of what they do."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.helpers.tiny import save_llama
from trainer.config.model import ModelConfig
from trainer.config.train import Combination
from trainer.errors import ModelError
from trainer.export.combine import combined, read_folder
from trainer.export.merge import with_base, write_adapter
from trainer.model.base_files import open_base

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_llama(folder)
    return folder


def make_adapter(base, folder, seed, **options):
    """Save an adapter as plain peft does, with factors that are not zero."""
    torch.manual_seed(seed)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**defaults | options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "lora_magnitude" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model(torch.arange(16)[None]).logits[0]


def whole(base, folders, weights, how, **options):
    """Return the logits after peft's own combination on the whole model."""
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), folders[0], adapter_name="0"
    )
    for index, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(index))
    names = [str(index) for index in range(len(folders))]
    model.add_weighted_adapter(names, weights, "both", combination_type=how, **options)
    model.set_adapter("both")
    return logits(model)


@pytest.mark.parametrize(
    ("how", "weights"),
    [("cat", [0.7, 0.3]), ("cat", [1.0, -0.5]), ("linear", [0.7, 0.3]), ("svd", [0.5, 0.5])],
)
def test_layer_by_layer_is_what_peft_does_on_the_whole_model(base, tmp_path, how, weights):
    folders = [make_adapter(base, tmp_path / name, seed) for seed, name in enumerate("ab")]
    tensors, described = combined([read_folder(f) for f in folders], weights, Combination(how), 0.5)
    assert described.r == {"cat": 8}.get(how, 4)
    (tmp_path / "both").mkdir()
    described.base_model_name_or_path = str(base)
    write_adapter(tensors.items(), described, tmp_path / "both", torch.float32)
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "both")
    expected = whole(base, folders, weights, how)
    assert (logits(AutoModelForCausalLM.from_pretrained(base)) - expected).abs().max() > 0.05
    torch.testing.assert_close(logits(reloaded), expected, rtol=1e-4, atol=1e-5)


def test_a_concatenation_merged_into_the_base_is_the_sum_of_the_changes(base, tmp_path):
    """Another rank, rsLoRA and other modules in one of them: the scale or a module is lost if this fails."""
    first = make_adapter(base, tmp_path / "a", 1)
    second = make_adapter(
        base, tmp_path / "b", 2, r=2, use_rslora=True, target_modules=["q_proj", "down_proj"]
    )
    tensors, described = combined([read_folder(first), read_folder(second)], [0.6, 2.0], Combination.cat, 0.5)
    merged = dict(with_base(tensors.items(), open_base(str(base), ModelConfig()), described))
    plain = AutoModelForCausalLM.from_pretrained(base).state_dict()
    expected = {name: tensor.clone() for name, tensor in plain.items()}
    for folder, weight in ((first, 0.6), (second, 2.0)):
        tuned = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), folder
        ).merge_and_unload()
        for name, tensor in tuned.state_dict().items():
            expected[name] += weight * (tensor - plain[name])
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"use_dora": True}, "holds model.layers.0.mlp.down_proj.lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "holds lm_head.weight"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank_pattern"),
    ],
)
def test_what_is_not_two_factors_is_refused_with_its_name(base, tmp_path, options, reason):
    folders = [make_adapter(base, tmp_path / "a", 1), make_adapter(base, tmp_path / "b", 2, **options)]
    with pytest.raises(ModelError, match="must be plain LoRA adapters") as caught:
        combined([read_folder(folder) for folder in folders], [0.5, 0.5], Combination.cat, 0.5)
    assert str(tmp_path / "b") in str(caught.value) and reason in str(caught.value)


def test_other_ranks_are_refused_where_peft_cannot(base, tmp_path):
    folders = [make_adapter(base, tmp_path / "a", 1), make_adapter(base, tmp_path / "b", 2, r=2)]
    with pytest.raises(
        ModelError, match=r"`export.combination` must be one .* is linear instead: .* Set cat"
    ):
        combined([read_folder(folder) for folder in folders], [0.5, 0.5], Combination.linear, 0.5)


def test_a_folder_without_an_adapter_is_refused(base):
    with pytest.raises(ModelError, match=r"`export.adapters` must name run directories or folders with"):
        read_folder(base)
