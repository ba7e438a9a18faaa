"""A real vLLM, where one is installed: its samples follow the model, and it takes exported adapters as they are."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist.session import config_of
from tests.helpers.tiny import save_llama

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed"),
]
SHAPE = {"hidden_size": 128, "intermediate_size": 128}
"""Four heads of 32: vLLM on a CPU knows no smaller ones."""


class Recorder:
    """A vLLM engine that keeps what it was asked and what it said."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.said: list[tuple[list[int], list[int]]] = []

    def generate(self, requests: list[Any], parameters: list[Any], use_tqdm: bool) -> Any:
        outputs = self.llm.generate(requests, parameters, use_tqdm=use_tqdm)
        for request, output in zip(requests, outputs, strict=True):
            self.said.append((request["prompt_token_ids"], list(output.outputs[0].token_ids)))
        return outputs


def sample_store(mesh: Any, workspace: str, folder: str, prompts: str) -> dict[str, Any]:
    """Generate with vLLM; return the store and how far its tokens are from those of the model."""
    from trainer.command import replay
    from trainer.runtime.signals import StopFlag

    path = Path(folder)
    save_llama(path / "model", **SHAPE)
    # What instruct models ask for; samples must not heed it.
    narrow = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.1, "eos_token_id": 1}
    (path / "model" / "generation_config.json").write_text(json.dumps(narrow))
    wanted = ["engine=vllm", "batch_size=32", "num_tokens=1500", f"prompts={prompts}", "max_new_tokens=150"]
    wanted += ["max_replacement=1", "max_repeated_ngrams=1", "min_new_tokens=2"]
    config = config_of(
        workspace,
        folder,
        f"data.cache_dir={folder}",
        f"model.path={folder}/model",
        *(f"replay.generate.{one}" for one in wanted),
    )
    recorders: list[Recorder] = []
    original = replay.start_engine

    def recorded(*arguments: Any) -> Recorder:
        recorders.append(Recorder(original(*arguments)))
        return recorders[0]

    replay.start_engine = recorded
    try:
        assert replay.generate_on(mesh, config, StopFlag())
    finally:
        replay.start_engine = original
    (store,) = (path / "generated").glob("[!.]*")
    rows = [json.loads(line) for line in (store / "generated.jsonl").read_text().splitlines()]
    surprise, num_tokens = surprise_of(path / "model", recorders[0].said)
    meta = json.loads((store / "meta.json").read_text())
    return {"rows": rows, "meta": meta, "surprise": surprise, "num_tokens": num_tokens}


def surprise_of(model_dir: Path, said: list[tuple[list[int], list[int]]]) -> tuple[float, int]:
    """Return by how many standard errors the tokens' negative log-likelihood misses the model's entropy."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    missed = variance = 0.0
    num_tokens = 0
    for prompt, tokens in said:
        with torch.no_grad():
            logits_TV = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        nats_TV = -logits_TV.double().log_softmax(-1)
        probs_TV = (-nats_TV).exp()
        entropy_T = (probs_TV * nats_TV).sum(-1)
        missed += float((nats_TV[range(len(tokens)), tokens] - entropy_T).sum())
        variance += float((probs_TV * nats_TV.square()).sum() - entropy_T.square().sum())
        num_tokens += len(tokens)
    return missed / math.sqrt(variance), num_tokens


@pytest.mark.parametrize("prompts", ["text", "chat"])
def test_samples_of_vllm_follow_the_models_own_distribution(pool, workspace, tmp_path, prompts):
    """A surprise far from 0: another temperature, a top-k, or the model's generation_config shaped the samples."""
    arguments = {"workspace": workspace, "folder": str(tmp_path), "prompts": prompts}
    (found,) = pool(1).run(sample_store, **arguments)
    print(found["surprise"], found["num_tokens"], found["meta"]["counts"])
    assert abs(found["surprise"]) < 4 and found["num_tokens"] > 1500
    meta, rows = found["meta"], found["rows"]
    assert meta["engine"] == "vllm" and meta["versions"]["vllm"]
    assert meta["counts"]["sampled_tokens"] == found["num_tokens"]
    assert len(rows) == meta["counts"]["kept"] > 1
    if prompts == "chat":
        assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
        assert meta["counts"]["dropped"]["not ended"] > 0


def train_adapter(mesh: Any, workspace: str, folder: str, overrides: list[str]) -> int:
    """Train an adapter and export it; return the exit code."""
    from trainer.command.export import export_model
    from trainer.config.snapshot import freeze
    from trainer.config.store import load_config
    from trainer.run import training

    path = Path(folder)
    save_llama(path / "model", **SHAPE)
    steps = ["train.max_steps=6", "checkpoint.every_steps=6", "optim.lr=0.02"]
    config = config_of(workspace, path / "run", f"model.path={folder}/model", *overrides, *steps)
    freeze(config, path / "run")
    assert training.run_training(config).value == "finished"
    asked = [f"export.output_dir={folder}/adapter", "export.dtype=float32"]
    return export_model(load_config(path / "run" / "config.yaml", asked))


def speak(mesh: Any, folder: str) -> dict[str, Any]:
    """Return vLLM's greedy tokens and their log-probabilities with the exported adapter, beside plain peft's."""
    import vllm
    from peft import AutoPeftModelForCausalLM
    from vllm.lora.request import LoRARequest

    adapter = str(Path(folder) / "adapter")
    llm = vllm.LLM(
        model=f"{folder}/model",
        dtype="float32",
        skip_tokenizer_init=True,
        max_model_len=128,
        enable_lora=True,
        max_lora_rank=8,
        enforce_eager=True,
        kv_cache_memory_bytes=1 << 28,
    )
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(4, 264, (8, 12), generator=generator).tolist()
    asked = vllm.SamplingParams(temperature=0, max_tokens=16, logprobs=0, ignore_eos=True, detokenize=False)
    requests = [{"prompt_token_ids": prompt} for prompt in prompts]
    request = LoRARequest("exported", 1, adapter)
    outputs = llm.generate(requests, asked, use_tqdm=False, lora_request=request)
    model: Any = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32).eval()
    off = behind = effect = 0.0
    num_tokens = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        said = [entry[token].logprob for entry, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
        said_T = torch.tensor(said)
        ids = torch.tensor([prompt + tokens])
        with torch.no_grad():
            plain_TV = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            with model.disable_adapter():
                base_TV = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        plain_T, base_T = plain_TV[range(len(tokens)), tokens], base_TV[range(len(tokens)), tokens]
        off = max(off, float((plain_T - said_T).abs().max()))
        behind = max(behind, float((plain_TV.amax(-1) - plain_T).max()))
        effect = max(effect, float((base_T - said_T).abs().max()))
        num_tokens += len(tokens)
    return {"off": off, "behind": behind, "effect": effect, "num_tokens": num_tokens}


ADAPTERS = {
    "lora": ["tune.method=lora", "tune.r=4"],
    "rslora": ["tune.method=lora", "tune.r=4", "tune.rslora=true", "tune.target=[q_proj,down_proj]"],
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_vllm_speaks_with_an_exported_adapter_as_plain_peft_does(pool, workspace, tmp_path, name):
    """Off: the scale or some modules are lost on the way. No effect: vLLM answers with the base."""
    arguments = {"workspace": workspace, "folder": str(tmp_path), "overrides": ADAPTERS[name]}
    assert pool(1).run(train_adapter, **arguments) == [0]
    (found,) = pool(1).run(speak, folder=str(tmp_path))
    print(found)
    assert found["num_tokens"] == 8 * 16
    assert found["effect"] > 0.1
    assert found["off"] < 1e-3 and found["behind"] < 1e-3
