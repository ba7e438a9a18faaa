"""What zero.dtype=auto becomes, by GPU, processor and the switch that hides bf16."""

import os
import subprocess
import sys

import pytest
import torch

from trainer.config.generate import SampleEngine
from trainer.model.dtype import NO_BF16, Hardware, choose_dtype, hardware_here

CASES = [
    # GPU's capability, processor's instructions, hidden, dtype, a word of the reason
    ((9, 0), False, False, "bf16", "GPU"),
    ((8, 0), False, False, "bf16", "GPU"),
    ((10, 0), False, False, "bf16", "GPU"),
    ((7, 5), False, False, "fp32", "capability 7.5 and bf16 needs 8.0"),
    ((7, 0), True, False, "fp32", "capability 7.0"),
    (None, True, False, "bf16", "processor"),
    (None, False, False, "fp32", "no instructions"),
    ((9, 0), True, True, "fp32", NO_BF16),
    (None, True, True, "fp32", NO_BF16),
]


@pytest.mark.parametrize(("capability", "has_instructions", "is_hidden", "name", "word"), CASES)
def test_bf16_is_taken_where_the_hardware_computes_in_it(capability, has_instructions, is_hidden, name, word):
    choice = choose_dtype(Hardware(capability, has_instructions, is_hidden))
    assert choice.name == name and word in choice.reason
    assert choice.sentence.endswith(f"(zero.dtype={name}).")


@pytest.mark.parametrize(
    ("value", "hides"), [("1", True), ("yes", True), ("0", False), ("", False), (None, False)]
)
def test_the_switch_hides_bf16_unless_it_is_empty_or_0(value, hides):
    environ = {"DS_ACCELERATOR": "cpu"} | ({} if value is None else {NO_BF16: value})
    found = hardware_here(environ)
    assert found.capability is None and found.is_hidden == hides


@pytest.mark.parametrize(("hides", "meant"), [(None, "bf16"), ("1", "fp32")])
def test_the_model_is_sampled_in_what_it_would_train_in(monkeypatch, hides, meant):
    """By vLLM; plain transformers samples in float32 on any processor."""
    from trainer.command.replay import sampling_dtype

    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr("trainer.model.dtype._has_instructions", lambda: True)
    monkeypatch.delenv(NO_BF16, raising=False) if hides is None else monkeypatch.setenv(NO_BF16, hides)
    assert sampling_dtype(SampleEngine.vllm, torch.device("cpu")) == meant
    assert sampling_dtype(SampleEngine.transformers, torch.device("cpu")) == "fp32"


@pytest.mark.parametrize("isa", ["AVX2"])
def test_a_processor_whose_bf16_is_emulated_has_no_instructions(isa):
    """oneDNN is told that it runs on an older processor."""
    words = "from trainer.model.dtype import hardware_here; print(hardware_here({'DS_ACCELERATOR': 'cpu'}))"
    environ = os.environ | {"ONEDNN_MAX_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", words], env=environ, capture_output=True, text=True, check=True
    )
    assert "has_instructions=False" in done.stdout


def test_choosing_loads_no_torch():
    words = "import sys, trainer.model.dtype; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
