"""Rules of the section `replay.generate`. Pure, like check.py, which calls it."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.generate import VLLM_TEMPERATURES, GenerateConfig, Prompts, SampleEngine
from trainer.config.rule import Problem, must

_SECTION = "replay.generate"


def fits_vllm(generate: GenerateConfig) -> bool:
    """Tell whether vLLM samples at this very temperature."""
    return VLLM_TEMPERATURES[0] <= generate.temperature <= VLLM_TEMPERATURES[1]


def generate_problems(generate: GenerateConfig) -> Iterator[Problem]:
    """Yield every broken rule."""
    for key, lowest, fix in (
        ("num_tokens", 1, "Set 1_000_000."),
        ("max_new_tokens", 1, "Set 512."),
        ("min_new_tokens", 0, "Set 8."),
        ("batch_size", 0, "Set 0 to have it chosen."),
        ("max_run_tokens", 1, "Set 32."),
        ("max_compression", 1, "Set 5."),
        ("seed", 0, "Set 0."),
    ):
        if not getattr(generate, key) >= lowest:
            yield must(f"{_SECTION}.{key}", f"at least {lowest}", getattr(generate, key), fix)
    if not 0 < generate.temperature < float("inf"):
        fix = "Set 1.0, the model's own distribution."
        yield must(
            f"{_SECTION}.temperature", "more than 0 (greedy samples are all alike)", generate.temperature, fix
        )
    elif generate.engine is SampleEngine.vllm and not fits_vllm(generate):
        fix = "Set 1.0, or replay.generate.engine=transformers."
        rule = f"in [{VLLM_TEMPERATURES[0]}, {VLLM_TEMPERATURES[1]}] for vLLM"
        yield must(f"{_SECTION}.temperature", rule, generate.temperature, fix)
    if not 0 < generate.top_p <= 1:
        yield must(f"{_SECTION}.top_p", "in (0, 1]", generate.top_p, "Set 1.0, which is off.")
    for key, fix in (("max_repeated_ngrams", "Set 0.5."), ("max_replacement", "Set 0.")):
        if not 0 <= getattr(generate, key) <= 1:
            yield must(f"{_SECTION}.{key}", "in [0, 1]", getattr(generate, key), fix)
    if generate.min_new_tokens > generate.max_new_tokens >= 1:
        rule = f"at most max_new_tokens ({generate.max_new_tokens})"
        yield must(f"{_SECTION}.min_new_tokens", rule, generate.min_new_tokens, "Lower it.")
    if generate.prompt_file is not None and generate.prompts is not Prompts.given:
        fix = f"Set {_SECTION}.prompts=given, or leave it out."
        rule = f"null with {_SECTION}.prompts={generate.prompts.value}"
        yield must(f"{_SECTION}.prompt_file", rule, generate.prompt_file, fix)
    if generate.output_dir == "":
        yield must(f"{_SECTION}.output_dir", "a folder or null", "", "Leave it out.")
