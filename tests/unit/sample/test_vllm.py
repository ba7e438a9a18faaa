"""When vLLM samples, and what it is given on a CPU. What it says itself: tests/dist/test_vllm.py."""

from types import SimpleNamespace

from trainer.config.generate import GenerateConfig, SampleEngine
from trainer.sample.sampler import cache_bytes
from trainer.sample.vllm import choose_engine, cpu_cache_bytes


def test_nobody_gets_vllm_unasked_off_a_gpu():
    plain = SampleEngine.transformers
    assert choose_engine(GenerateConfig(), on_gpu=False) is plain
    assert choose_engine(GenerateConfig(engine=plain), on_gpu=True) is plain
    assert choose_engine(GenerateConfig(temperature=3.0), on_gpu=True) is plain, "vLLM refuses it"


def test_a_cpu_keeps_a_whole_batch_and_little_more():
    smollm2 = SimpleNamespace(
        num_attention_heads=9, num_key_value_heads=3, hidden_size=576, num_hidden_layers=30
    )
    assert cache_bytes(smollm2) == 2 * 2 * 30 * 3 * 64
    assert cpu_cache_bytes(1, longest=128, batch_size=4) == 4 * 256
    assert cpu_cache_bytes(1, longest=129, batch_size=4) == 4 * 384
