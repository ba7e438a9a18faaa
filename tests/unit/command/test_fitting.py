"""What a null zero.stage and model.checkpoint_layers become: the cheapest pair that the forecast fits into a GPU."""

import re

import pytest
from transformers import AutoConfig

from trainer.command.counted import known_shape, run_shape, tuned_weights
from trainer.command.fitting import fitted
from trainer.config.snapshot import freeze, refuse_another
from trainer.config.store import compose_config
from trainer.errors import ConfigError
from trainer.forecast.memory import ERROR_FRAC, forecast
from trainer.model.dtype import BF16_GPU, Hardware

LORA = (
    "recipe=lora",
    "model=llama3_1_8b",
    "data=text",
    "data.sources.corpus.path=x.txt",
)
BATCH = ("train.micro_batch_size=2", "train.global_batch_tokens=65536")
NUM_LAYERS = 32
NAMES = {"jetmoe": "JetMoeForCausalLM", "olmoe": "OlmoeForCausalLM"}


def fit(*overrides, gpu_gib=80.0, num_ranks=8):
    config = compose_config([*LORA, *BATCH, *overrides])
    return fitted(config, num_ranks, can_load=False, here_gib=gpu_gib)


def chosen(*overrides, **options):
    config = fit(*overrides, **options).config
    return config.zero.stage, config.model.checkpoint_layers


def peak_gib(config, num_ranks=8):
    return forecast(
        known_shape(config), run_shape(config, num_ranks), tuned_weights(config, known_shape(config))
    ).gib


def test_lora_of_8b_on_80_gib_is_replicated_and_recomputes_nothing():
    assert chosen() == (1, 0)
    assert fit().sentence.startswith("ZeRO-1, no layer recomputed: a peak of ")


def test_a_smaller_gpu_recomputes_as_few_layers_as_it_needs():
    config = fit(gpu_gib=40).config
    layers = config.model.checkpoint_layers
    assert config.zero.stage in (1, 2) and 0 < layers < NUM_LAYERS
    limit_gib = 40 - 4 - ERROR_FRAC * 40
    assert peak_gib(config) <= limit_gib
    config.model.checkpoint_layers -= 1
    config.zero.stage = 1
    assert peak_gib(config) > limit_gib


def test_a_choice_leaves_what_a_forecast_may_be_off_by_where_it_can_and_says_where_it_cannot():
    """Two experiments were left 0.1 GiB, where `plan` asks for 3 %."""
    least = peak_gib(fit("zero=zero2", "model.checkpoint_layers=-1").config)
    roomy = fit("zero=zero2", gpu_gib=(least + 4) / (1 - ERROR_FRAC) + 0.5)
    assert roomy.config.zero.stage == 2 and "to spare" not in roomy.sentence
    tight = fit("zero=zero2", gpu_gib=least + 4.2)
    assert tight.config.model.checkpoint_layers == -1
    assert tight.sentence.endswith(
        " kept in reserve and only 0.2 to spare, less than the 3 % that a forecast may be off by."
    )


def test_a_base_that_does_not_fit_is_sharded():
    stage, _ = chosen(gpu_gib=20)
    assert stage == 3


def test_what_fits_nowhere_is_said_and_takes_the_least_memory():
    found = fit(gpu_gib=6)
    assert (found.config.zero.stage, found.config.model.checkpoint_layers) == (3, -1)
    assert "even so" in found.sentence and "palimpsest plan" in found.sentence


def timed(*overrides, gpu="H200", gpu_gib=139.8, num_ranks=2):
    """Return a full run's pair where a kind of GPU is known, and the sentence."""
    words = ["recipe=full_finetune", "model=llama3_1_8b", "data=text", "data.sources.corpus.path=x.txt"]
    config = compose_config([*words, "zero=auto", "data.seq_len=4096", *overrides])
    found = fitted(config, num_ranks, can_load=False, here_gib=gpu_gib, gpu_name=gpu)
    return (found.config.zero.stage, found.config.model.checkpoint_layers), found.sentence


def test_of_what_fits_the_shortest_step_is_chosen_where_time_is_forecast():
    """One micro-batch a step: stage 2 updates in one pass, 30 bytes a parameter for 172 (2 x 4e9 x 142 / 3.84e12 s)."""
    words = ("train.micro_batch_size=2", "train.global_batch_tokens=16384", "plan.reserve_gib=1")
    assert timed(*words, gpu=None)[0][0] == timed(*words, gpu="RTX 4090")[0][0] == 1
    pair, sentence = timed(*words)
    assert pair == (2, 0)
    assert re.search(r"; no step of what fits is forecast to be shorter than its 0\.\d\d s\.$", sentence)
    # Where memory is short too, and stage 2 recomputes two layers more for its buffers.
    small = {"gpu_gib": 40, "num_ranks": 8}
    one = ("train.micro_batch_size=1", "train.global_batch_tokens=32768")
    assert timed(*one, gpu=None, **small)[0] == (1, 22)
    assert timed(*one, gpu="H100", **small)[0] == (2, 24)
    kept = timed("plan.gpu=H100", *words, gpu=None)
    assert kept[0] == (2, 0), "what the configuration names counts too"


def test_what_a_person_chose_stays():
    assert chosen("zero=zero3") == (3, 0)
    assert chosen("model.checkpoint_layers=-1") == (1, -1)
    assert fit("zero=zero2", "model.checkpoint_layers=4").reason is None


def test_full_fine_tuning_keeps_its_stage_and_recomputes_what_it_must():
    stage, layers = chosen("recipe=full_finetune")
    assert stage == 3 and layers == 0
    assert chosen("recipe=full_finetune", num_ranks=2)[1] != 0


def test_without_a_known_gpu_nothing_is_sharded_and_every_layer_is_recomputed():
    found = fit(gpu_gib=None)
    assert (found.config.zero.stage, found.config.model.checkpoint_layers) == (1, -1)
    assert "no GPU's memory is known" in found.sentence


@pytest.mark.parametrize("gpu_gib", [None, 80.0, 0.1])
@pytest.mark.parametrize(("kind", "layers"), [("jetmoe", {0}), ("olmoe", {-1, 0})])
def test_layers_that_transformers_does_not_recompute_are_left_as_they_are(tmp_path, gpu_gib, kind, layers):
    """JetMoE's class recomputes none. Of a GPU's memory nothing is known, it is enough, or not."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
    AutoConfig.for_model(kind, **sizes, architectures=[NAMES[kind]]).save_pretrained(tmp_path)
    words = [*LORA[2:], *BATCH, f"model.path={tmp_path}", "data.seq_len=64"]
    found = fitted(compose_config(words), 1, can_load=True, here_gib=gpu_gib).config.model.checkpoint_layers
    assert found in layers and (gpu_gib is not None or found == min(layers))
    assert fitted(compose_config([*words, "model.checkpoint_layers=1"]), 1, can_load=True).config.model == (
        compose_config([*words, "model.checkpoint_layers=1"]).model
    )


def test_a_stage_that_the_method_refuses_is_passed_over():
    """DoRA on a base in NF4 is refused at stage 3, so that a GPU that is too small ends at stage 2."""
    assert chosen("recipe=qlora", "tune.dora=true", gpu_gib=4)[0] == 2


def test_a_run_that_has_begun_keeps_what_it_was_frozen_with(tmp_path):
    run = f"run_dir={tmp_path}"
    freeze(fit(run, gpu_gib=40).config, tmp_path)
    assert chosen(run, gpu_gib=80) == (1, 0), "nothing was trained yet"
    before = chosen(gpu_gib=40)
    (tmp_path / "metrics.jsonl").write_text("")
    assert chosen(run, gpu_gib=80) == before
    assert "as the run began" in fit(run, gpu_gib=80).sentence
    freeze(fit(run, gpu_gib=80).config, tmp_path)  # the same configuration: not refused
    refuse_another(compose_config([*LORA, *BATCH, run]), tmp_path)
    refuse_another(compose_config([*LORA, *BATCH, run, "zero=zero3"]), tmp_path)  # any stage goes on
    with pytest.raises(ConfigError, match=r"zero.dtype: bf16 -> fp32"):
        refuse_another(compose_config([*LORA, *BATCH, run, "zero.dtype=fp32"]), tmp_path)


V100 = Hardware((7, 0), False)


def test_the_dtype_is_that_of_the_hardware_and_memory_follows_it():
    config = compose_config([*LORA, *BATCH, "zero=zero2", "model.checkpoint_layers=-1"])
    narrow, wide = (fitted(config, 8, can_load=False, hardware=hardware) for hardware in (BF16_GPU, V100))
    assert (narrow.config.zero.dtype, wide.config.zero.dtype) == ("bf16", "fp32")
    assert narrow.dtype and wide.dtype and narrow.reason is wide.reason is None
    run = run_shape(wide.config, 8)
    assert (run.element_bytes, run.is_flash) == (4, False) and run_shape(narrow.config, 8).is_flash
    frozen = [tuned_weights(fit.config, known_shape(config)).frozen_bytes for fit in (narrow, wide)]
    assert frozen[1] == 2 * frozen[0]
    assert narrow.left_to_first_rank == config


@pytest.mark.parametrize("asked", ["bf16", "fp32"])
def test_a_dtype_that_was_asked_for_stays_whatever_the_hardware(asked):
    config = compose_config([*LORA, *BATCH, f"zero.dtype={asked}"])
    for hardware in (BF16_GPU, V100):
        fit = fitted(config, 8, can_load=False, here_gib=80.0, hardware=hardware)
        assert fit.config.zero.dtype == asked and fit.dtype is None
        assert fit.left_to_first_rank == fit.config


def test_a_run_keeps_its_dtype_on_other_hardware(tmp_path):
    config = compose_config([*LORA, *BATCH, "zero=zero2", "model.checkpoint_layers=0", f"run_dir={tmp_path}"])
    freeze(fitted(config, 8, can_load=False, hardware=V100).config, tmp_path)
    assert fitted(config, 8, can_load=False).config.zero.dtype == "bf16", "nothing was trained yet"
    (tmp_path / "metrics.jsonl").touch()
    again = fitted(config, 8, can_load=False)
    assert (again.config.zero.dtype, again.dtype) == ("fp32", None)
    refuse_another(config, tmp_path)
    config.zero.dtype = "bf16"
    with pytest.raises(ConfigError, match=r"zero\.dtype: fp32 -> bf16"):
        refuse_another(config, tmp_path)


@pytest.mark.parametrize("value", ["zero.dtype=fp16", "zero.stage=4", "model.checkpoint_layers=-2"])
def test_wrong_values_are_still_found(value):
    from trainer.config.check import find_problems

    assert len(list(find_problems(compose_config([*LORA, *BATCH, value]), 8))) == 1
