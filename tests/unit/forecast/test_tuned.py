"""What every method trains, counted from config.json alone, against peft and against the run's own tuning."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.command.counted import tuned_weights
from trainer.config.store import compose_config
from trainer.forecast.shapes import decoder_shape
from trainer.forecast.tuned import count_trained
from trainer.model.meta import meta_trained

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 100}
MODELS = {
    "llama": {"model_type": "llama"},
    "tied": {"model_type": "llama", "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
}
COMMON = ["model=tiny", "data=text", "data.sources.corpus.path=x.txt", "train.max_steps=1"]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCALES = ["k_proj", "v_proj", "down_proj"]


def peft_config(words):
    kind = {"task_type": "CAUSAL_LM"}
    return {
        "tune=lora tune.r=4": LoraConfig(r=4, target_modules=ALL, **kind),
        "tune=rslora tune.r=8 tune.target=[q_proj,v_proj]": LoraConfig(
            r=8, target_modules=["q_proj", "v_proj"], **kind
        ),
        "tune=dora tune.r=4": LoraConfig(r=4, target_modules=ALL, use_dora=True, **kind),
        "tune=pissa tune.r=4": LoraConfig(r=4, target_modules=ALL, **kind),
        "tune=lora tune.r=4 tune.target_pattern='.*\\.1\\..*_proj'": LoraConfig(
            r=4, target_modules=r".*\.1\..*_proj", **kind
        ),
        "tune=lora tune.r=4 tune.modules_to_save=[norm]": LoraConfig(
            r=4, target_modules=ALL, modules_to_save=["model.norm"], **kind
        ),
        "tune=ia3": IA3Config(target_modules=SCALES, feedforward_modules=["down_proj"], **kind),
        "tune=prefix tune.virtual_tokens=7": PrefixTuningConfig(num_virtual_tokens=7, **kind),
        "tune=prompt tune.virtual_tokens=7": PromptTuningConfig(num_virtual_tokens=7, **kind),
    }[words]


WORDS = [
    "tune=lora tune.r=4",
    "tune=rslora tune.r=8 tune.target=[q_proj,v_proj]",
    "tune=dora tune.r=4",
    "tune=pissa tune.r=4",
    "tune=lora tune.r=4 tune.target_pattern='.*\\.1\\..*_proj'",
    "tune=lora tune.r=4 tune.modules_to_save=[norm]",
    "tune=ia3",
    "tune=prefix tune.virtual_tokens=7",
    "tune=prompt tune.virtual_tokens=7",
]


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("own", MODELS.values(), ids=MODELS)
def test_every_method_trains_what_peft_trains(own, words):
    config = SIZES | own
    tune = compose_config([*COMMON, *words.split()]).tune
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        wrapped = get_peft_model(model, peft_config(words))
    expected = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    counted = count_trained(decoder_shape(config, "here"), tune)
    built = meta_trained(config, tune)
    assert built.num_trainable == expected
    assert counted is None or counted == built
    assert (counted is None) == ("pattern" in words or "modules_to_save" in words)


@pytest.mark.parametrize(
    "words", ["tune=freeze tune.last_layers=2", "tune=freeze tune.last_layers=0 tune.train=[mlp,norm]"]
)
@pytest.mark.parametrize(("dtype", "element_bytes"), [("bf16", 2), ("fp32", 4)])
def test_frozen_layers_are_left_out_and_trained_ones_counted_once(words, dtype, element_bytes):
    config = compose_config([*COMMON, f"zero.dtype={dtype}", *words.split()])
    built = meta_trained({"model_type": "llama", "vocab_size": 264, **config.model.tiny}, config.tune)
    layer = 2 * 64 + 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    expected = 2 * layer if "=2" in words else 2 * (2 * 64 + 3 * 64 * 128) + 64
    assert built.num_added == 0 and built.num_own == expected
    shape = decoder_shape({"model_type": "llama", "vocab_size": 264, **config.model.tiny}, "here")
    weights = tuned_weights(config, shape)
    assert weights.num_trainable + weights.num_frozen == shape.num_params
    assert weights.num_trainable == expected
    assert weights.frozen_bytes == element_bytes * weights.num_frozen


@pytest.mark.parametrize("own", MODELS.values(), ids=MODELS)
def test_new_tokens_count_a_row_in_every_matrix_they_have(own):
    config = SIZES | own
    tune = compose_config([*COMMON, "tune=lora", "tune.r=4"]).tune
    counted = count_trained(decoder_shape(config, "here"), tune, 3)
    assert counted == meta_trained(config, tune, 3)
    without = count_trained(decoder_shape(config, "here"), tune)
    rows = counted.num_trainable - without.num_trainable
    assert rows == 3 * 48 * (1 if own.get("tie_word_embeddings") else 2)
