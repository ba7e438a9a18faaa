"""Which models' packs ranks may share the tokens of."""

from types import SimpleNamespace

import pytest
from transformers import BloomConfig, LlamaConfig, Qwen3NextConfig

from trainer.dist.mesh import Axis
from trainer.errors import ConfigError, ModelError
from trainer.model.around_attention import around_all, let_attention_be_told, told
from trainer.model.token_slices import TokenSlices, check_slices


def test_ranks_must_divide_the_heads_of_attention():
    check_slices(4, LlamaConfig(hidden_size=96, num_attention_heads=12, num_key_value_heads=3))
    check_slices(1, LlamaConfig(hidden_size=112, num_attention_heads=7))
    with pytest.raises(
        ConfigError, match=r"a divisor of the model's 12 heads .* but is 8 instead. Set .*=6\."
    ):
        check_slices(8, LlamaConfig(hidden_size=96, num_attention_heads=12, num_key_value_heads=3))


@pytest.mark.parametrize("config", [Qwen3NextConfig(), BloomConfig()])
def test_a_model_that_carries_something_along_a_row_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"`train.sequence_parallel` must be 1 for this model, but is 2 instead"
    ):
        check_slices(2, config)


def test_a_layer_whose_attention_did_not_see_the_whole_pack_is_noticed():
    model = SimpleNamespace(config=LlamaConfig(num_hidden_layers=3))
    slices = TokenSlices(Axis(0, 2), None)
    with around_all(slices, model):
        slices.num_calls = 3
    slices.num_calls = 2
    with (
        pytest.raises(ModelError, match="the attention of 1 of its 3 layers"),
        around_all(slices, model),
    ):
        pass
    # What is wrong after some layer came to it is told as it is, and so is everything where nobody shares.
    for given in (slices, None):
        with pytest.raises(RuntimeError, match="broken"), around_all(given, model):
            raise RuntimeError("broken")
    slices.num_calls = 0
    with pytest.raises(ModelError, match="of 3 of its 3 layers"), around_all(slices, model):
        raise RuntimeError("The size of tensor a (64) must match the size of tensor b (128)")


def test_attention_in_the_models_own_code_is_refused():
    with pytest.raises(ModelError, match="must be 1 with eager attention"):
        let_attention_be_told("eager", "train.sequence_parallel", "1", "more")


def test_attention_with_a_number_for_each_head_is_refused_and_is_as_it_was_without_slices():
    def attend(module, query, key, value, mask, **options):
        return options, None

    assert told(attend)(None, None, None, None, None, s_aux=1, position_ids=2) == (
        {"s_aux": 1, "position_ids": 2},
        None,
    )
    with pytest.raises(ModelError, match="a number of its own for each head"):
        told(attend)(None, None, None, None, None, s_aux=1, around_attention=TokenSlices(Axis(0, 2), None))
