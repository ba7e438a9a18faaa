"""Widths of attention, of configurations whose layers are alike and differ."""

import pytest
from transformers import LlamaConfig, MambaConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from trainer.model.widths import attention_widths
from trainer.sample.sampler import cache_bytes


def test_alike_layers_have_the_width_of_their_heads():
    sizes = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert attention_widths(LlamaConfig(**sizes)) == (4096, 1024)
    assert attention_widths(LlamaConfig(**sizes, head_dim=64)) == (2048, 512)


def test_layers_with_wider_heads_count_as_they_are():
    """Gemma 4: five layers of heads of 256 and one of 512."""
    if "gemma4_text" not in CONFIG_MAPPING:
        pytest.skip("this transformers does not have the family")
    config = CONFIG_MAPPING["gemma4_text"](
        num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2, head_dim=256, global_head_dim=512
    )
    assert attention_widths(config) == (8 * (5 * 256 + 512) / 6, 2 * (5 * 256 + 512) / 6)
    assert cache_bytes(config) == 2 * 2 * 2 * (5 * 256 + 512)


def test_a_model_without_attention_has_none():
    assert attention_widths(MambaConfig()) is None
