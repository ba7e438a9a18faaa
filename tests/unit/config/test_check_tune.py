"""Rules about what trains."""

import pytest

from trainer.config.check import find_problems
from trainer.config.store import compose_config
from trainer.config.tune import Quantise, TuneMethod

COMMON = ["model=tiny", "data=text", "data.sources.corpus.path=x.txt", "train.max_steps=1"]


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("train.router_bias_rate=-0.001", "train.router_bias_rate"),
        ("train.router_bias_rate=nan", "train.router_bias_rate"),
        ("tune=lora train.router_bias_rate=0.001", "train.router_bias_rate"),
        ("tune=freeze train.router_bias_rate=0.001 tune.last_layers=1", "train.router_bias_rate"),
        ("tune=lora tune.r=0", "tune.r"),
        ("tune=lora tune.alpha=-1", "tune.alpha"),
        ("tune=lora tune.alpha=nan", "tune.alpha"),
        ("tune=lora tune.dropout=1.0", "tune.dropout"),
        ("tune=lora tune.target=[]", "tune.target"),
        ("tune=lora tune.target=[all_linear,q_proj]", "tune.target"),
        ("tune=lora tune.target=[all_linear,experts,q_proj]", "tune.target"),
        ("tune=lora tune.target=[all_linear,experts] tune.dropout=0.1", "tune.dropout"),
        ("tune=dora tune.target=[q_proj,experts]", "tune.dora"),
        ("tune=pissa tune.target=[experts]", "tune.init"),
        ("tune=ia3 tune.target=[k_proj,experts]", "tune.target"),
        ("tune=lora tune.target_pattern='('", "tune.target_pattern"),
        ("tune=lora_plus tune.lora_plus_ratio=0.5", "tune.lora_plus_ratio"),
        ("tune=prefix tune.virtual_tokens=0", "tune.virtual_tokens"),
        ("tune=prefix model.attention=flash_attention_2", "model.attention"),
        ("tune=prompt model.attention=flash_attention_3", "model.attention"),
        ("tune=prefix export.merge=true", "export.merge"),
        ("tune=prompt export.alpha=0.5", "export.alpha"),
        ("tune=prefix export.interpolate=0:1:0.5", "export.interpolate"),
        ("tune=prefix tune.init=pissa", "tune.init"),
        ("tune=lora tune.init=zero", "tune.init"),
        ("tune=pissa zero=zero3", "zero.stage"),
        ("tune=pissa tune.dora=true", "tune.dora"),
        ("tune=pissa replay.kl.beta=0.5", "replay.kl.beta"),
        ("tune=lora tune.modules_to_save=[lm_head] replay.kl.beta=0.5", "replay.kl.beta"),
        ("tune=lora model.new_tokens=[a] replay.kl.beta=0.5", "replay.kl.beta"),
        ("tune=prefix tune.modules_to_save=[lm_head]", "tune.modules_to_save"),
        ("tune=full tune.modules_to_save=[lm_head]", "tune.modules_to_save"),
        ("tune=full model.new_tokens=[a]", "model.new_tokens"),
        ("tune=ia3 model.new_tokens=[a]", "model.new_tokens"),
        ("tune=lora model.new_tokens=[a] export.alpha=0.5", "export.alpha"),
        ("tune=ia3 tune.target=[all_linear]", "tune.target"),
        ("tune=ia3 tune.feedforward=[up_proj]", "tune.feedforward"),
        ("tune=freeze tune.last_layers=0", "tune.train"),
        ("tune=freeze tune.last_layers=-1", "tune.last_layers"),
        ("tune=freeze tune.train=['[']", "tune.train"),
        ("tune=full tune.quantise=nf4", "tune.quantise"),
        ("tune=freeze tune.quantise=nf4", "tune.quantise"),
        ("tune=qlora zero=zero3 zero.offload_param=cpu", "zero.offload_param"),
        ("tune=qlora tune.dora=true zero=zero3", "tune.dora"),
        ("tune=qlora zero=zero0 replay=general replay.kl.beta=0.5", "zero.stage"),
    ],
)
def test_what_cannot_train_is_refused(words, key):
    problems = list(find_problems(compose_config([*COMMON, *words.split()])))
    assert any(problem.sentence.startswith(f"`{key}` must be") for problem in problems), problems


@pytest.mark.parametrize(
    "group",
    ["full", "lora", "qlora", "dora", "rslora", "lora_plus", "pissa", "ia3", "freeze", "prefix", "prompt"],
)
def test_every_group_passes_as_it_is(group):
    assert list(find_problems(compose_config([*COMMON, f"tune={group}", "zero=zero2"]))) == []


@pytest.mark.parametrize("stage", range(4))
def test_a_base_in_4_bits_is_allowed_at_every_stage(stage):
    assert list(find_problems(compose_config([*COMMON, "tune=qlora", f"zero=zero{stage}"]))) == []


def test_the_recipe_is_that_of_lora_beside_a_base_in_4_bits():
    lora, qlora = (compose_config([*COMMON, f"recipe={name}"]) for name in ("lora", "qlora"))
    assert qlora.tune.quantise is Quantise.nf4 and qlora.tune.method is TuneMethod.lora
    assert (
        qlora.zero.stage is None and compose_config([*COMMON, "recipe=qlora", "zero=zero2"]).zero.stage == 2
    )
    qlora.tune.quantise, qlora.kind = Quantise.none, lora.kind
    assert qlora == lora


def test_alpha_is_twice_the_rank_unless_given():
    tune = compose_config([*COMMON, "tune=lora", "tune.r=8"]).tune
    assert tune.scale_alpha == 16
    assert compose_config([*COMMON, "tune=lora", "tune.alpha=5"]).tune.scale_alpha == 5
