"""What vLLM says of a folder, in a process and an environment of its own: imports nothing of ours.

    INTERPRETER -P tests/helpers/vllm_side.py REQUEST.json ANSWER.json

A request names a `model`, `prompts` as lists of token ids, and a `kind`. `speak` answers with the log-probability of
each token of a prompt after the first, and with `num_tokens` greedy tokens, through the adapter `lora` if one is named.
`score` answers with the raw score of each prompt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MAX_LEN = 128
KV_BYTES = 1 << 28


def interpreter() -> str | None:
    """Return the interpreter that has vLLM: that of VLLM_PYTHON, else this one if it has; None: there is none."""
    import importlib.util

    return os.environ.get("VLLM_PYTHON") or (sys.executable if importlib.util.find_spec("vllm") else None)


def ask_vllm(folder: Path, **request: Any) -> Any:
    """Return what vLLM answers to a request, which is written to a folder."""
    asked, answered = folder / "request.json", folder / "answer.json"
    asked.write_text(json.dumps(request))
    answered.unlink(missing_ok=True)
    apart = ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in apart}
    python = interpreter()
    assert python is not None
    done = subprocess.run(
        [python, "-P", str(Path(__file__).resolve()), str(asked), str(answered)],
        env=environment | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert answered.exists(), done.stderr[-6000:]
    return json.loads(answered.read_text())


def engine(request: dict[str, Any], **options: Any) -> Any:
    """Return an engine for the model of a request, in float32 and without anything compiled."""
    import vllm

    return vllm.LLM(
        model=request["model"],
        dtype="float32",
        max_model_len=MAX_LEN,
        enforce_eager=True,
        kv_cache_memory_bytes=KV_BYTES,
        **options,
    )


def speak(request: dict[str, Any]) -> dict[str, Any]:
    """Return log-probabilities of prompts, and greedy tokens."""
    import vllm
    from vllm.lora.request import LoRARequest

    lora = request.get("lora")
    options = {"enable_lora": True, "max_lora_rank": 8} if lora else {}
    if request.get("sees"):
        options["limit_mm_per_prompt"] = {"image": 0}  # text alone: its folder has no processor that works
    llm = engine(request, skip_tokenizer_init=True, **options)
    asked = vllm.SamplingParams(
        temperature=0,
        max_tokens=request["num_tokens"],
        prompt_logprobs=0,
        ignore_eos=True,
        detokenize=False,
    )
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
        asked,
        use_tqdm=False,
        lora_request=LoRARequest("exported", 1, lora) if lora else None,
    )
    said = [
        [entry[token].logprob for entry, token in zip(output.prompt_logprobs[1:], prompt[1:], strict=True)]
        for output, prompt in zip(outputs, request["prompts"], strict=True)
    ]
    return {"log_probs": said, "tokens": [list(output.outputs[0].token_ids) for output in outputs]}


def score(request: dict[str, Any]) -> dict[str, Any]:
    """Return raw scores; without `use_activation=False` vLLM takes a sigmoid of them."""
    import vllm

    llm = engine(request, runner="pooling")
    outputs = llm.classify(
        [{"prompt_token_ids": prompt} for prompt in request["prompts"]],
        pooling_params=vllm.PoolingParams(use_activation=False),
        use_tqdm=False,
    )
    return {"scores": [output.outputs.probs for output in outputs]}


if __name__ == "__main__":
    wanted = json.loads(Path(sys.argv[1]).read_text())
    found = {"speak": speak, "score": score}[wanted["kind"]](wanted)
    Path(sys.argv[2]).write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # engines of a CPU may abort where threads of theirs are joined
