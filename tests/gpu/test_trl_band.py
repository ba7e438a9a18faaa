"""Preferences in bf16 on a GPU: as far from runs of TRL as those are from each other.

In bf16 no two runs of TRL agree once the attention, the size of a micro-batch or the order inside a step differs: each
rounds otherwise, and Adam carries it on. The band of a figure is the largest difference over all steps and all pairs of
such runs. Runs of ours may be that far from the mean of TRL's; the gradient's norm of a run of TRL with another beta is
twice as far at least.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.test_gpu_paths import start
from tests.helpers.ranks import ROOT
from tests.helpers.wait import LIMIT_S
from trainer.metrics.jsonl import read

torch = pytest.importorskip("torch")
ON_CPU = bool(os.environ.get("BAND_ON_CPU"))
"""To try the file out where no GPU is, with a smaller model."""
pytestmark = [
    *([] if ON_CPU else [pytest.mark.gpu]),
    pytest.mark.skipif(not ON_CPU and not torch.cuda.is_available(), reason="needs a CUDA device"),
    *(pytest.mark.skipif(importlib.util.find_spec(n) is None, reason=f"no {n}") for n in ("trl", "datasets")),
]
NUM_STEPS, PAIRS, SEQ_LEN = 6 if ON_CPU else 20, 8, 512
SHAPE = dict(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    initializer_range=0.03,
    max_position_embeddings=SEQ_LEN,
)
SMALL = {
    "vocab_size": 264,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
FIGURES = ("loss", "grad_norm")
LR, BETA = (2e-5, 0.1) if ON_CPU else (5e-6, 0.01)
"""A step of Adam moves every weight by as much: a model of 20 million moves by about 10 nats an answer."""
LOSSES = {"dpo": ["sigmoid"]} | ({} if ON_CPU else {"apo_zero": ["apo_zero"]})
FAST = "sdpa" if ON_CPU else "flash_attention_2"
PLAIN = "eager" if ON_CPU else "sdpa"
THEIRS = {
    "fast": {"attention": FAST, "micro": 8},
    "plain": {"attention": PLAIN, "micro": 8},
    "small": {"attention": FAST, "micro": 2},
    "order": {"attention": PLAIN, "micro": 4, "order": 1},
}
"""What two runs of TRL may differ in: attention, pairs of a micro-batch (and so padding), the order in a step."""
OURS = {
    "fast": (f"model.attention={FAST}", "train.micro_batch_size=8", "data.share_prompts=true"),
    "plain": ("model.attention=sdpa", "train.micro_batch_size=2", "data.share_prompts=false"),
}
ENGINES = {"autocast": False, "deepspeed": True}
"""TRL's two ways to bf16: products of bf16 of weights of float32, and weights of bf16 with those of float32 beside."""
SAME = "deepspeed"
"""The way that we go too: norms and what layers hand on are of bf16, and an update smaller than its steps is not lost
but shows later. Under autocast it shows at once in norms, and the loss is another by more than any rounding."""
WRONG = {"beta": 1.1 * BETA}
"""What the band must not hold: a tenth more than what both were told."""


def write_pairs(path: Path) -> None:
    """Write pairs that fill a pack each, whether or not they share their prompt, and that can be told apart."""
    draw = random.Random(19)

    def text(letters: str, low: int, high: int) -> str:
        return "".join(draw.choices(letters, k=draw.randint(low, high)))

    with path.open("w") as file:
        for _ in range(NUM_STEPS * PAIRS):
            prompt = (
                "x" + text("abcdefghijklmnop ", 90, 105) + "?"
            )  # spaces at its beginning are for TRL alone
            chosen, rejected = text("abcdefghijklm ", 85, 145) + ".", text("bcdefghijklmn ", 85, 145) + "!"
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pairs and a model whose weights are of bf16: both sides begin with the same bits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainer.model.tiny import build_tokenizer

    folder = tmp_path_factory.mktemp("band")
    write_pairs(folder / "pairs.jsonl")
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**ids, **(SHAPE | (SMALL if ON_CPU else {}))))
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    return folder


def ask_trl(place: Path, with_deepspeed: bool) -> tuple[Any, Path]:
    """Start runs of TRL, by loss and what sets them apart; return process and answer.

    `wrong` has another beta, and `exact`, without DeepSpeed, is in float32.
    """
    from tests.dist.test_trl import options_of_trl

    folder = place / f"trl-{with_deepspeed}"
    folder.mkdir()
    asked, answered = folder / "asked.json", folder / "answered.json"
    left = ("output_dir", "use_cpu", "bf16", "max_steps")
    options = {k: v for k, v in options_of_trl(answered, NUM_STEPS).items() if k not in left}
    runs = {}
    for loss, theirs in LOSSES.items():
        common = {"loss": theirs, "beta": BETA, "deepspeed": with_deepspeed}
        runs |= {f"{loss} {name}": common | own for name, own in THEIRS.items()}
        runs[f"{loss} wrong"] = common | THEIRS["fast"] | WRONG
        if not with_deepspeed:
            runs[f"{loss} exact"] = common | THEIRS["plain"] | {"exact": True}
    request = {"model": str(place / "model"), "pairs": str(place / "pairs.jsonl"), "num_steps": NUM_STEPS}
    request |= {"pairs_per_step": PAIRS, "options": options | {"learning_rate": LR}, "runs": runs}
    asked.write_text(json.dumps(request))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "tests/helpers/trl_runs.py", str(asked), str(answered)],
            cwd=ROOT,
            env=os.environ | {"TQDM_DISABLE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return process, answered


@pytest.fixture(scope="module")
def of_trl(place: Path) -> Iterator[Any]:
    """Return what gives what runs of TRL report, with DeepSpeed or without; they run beside each other and ours."""
    started = {with_deepspeed: ask_trl(place, with_deepspeed) for with_deepspeed in ENGINES.values()}

    def said(with_deepspeed: bool) -> dict[str, list[dict[str, float]]]:
        process, answered = started[with_deepspeed]
        process.wait(LIMIT_S)
        assert answered.exists(), (answered.parent / "log").read_text()[-6000:]
        found: dict[str, list[dict[str, float]]] = json.loads(answered.read_text())
        return found

    yield said
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def of_ours(place: Path, of_trl: Any) -> dict[str, list[dict[str, float]]]:
    """Return what runs of ours report: prompts shared under flash attention, and whole documents under SDPA."""
    found = {}
    for loss, (name, own) in itertools.product(LOSSES, OURS.items()):
        words = [
            f"objective={loss}",
            f"objective.preference.beta={BETA}",
            f"model.path={place}/model",
            "data.sources.pairs.format=preference",
            f"data.sources.pairs.path={place}/pairs.jsonl",
            f"data.cache_dir={place}/cache",
            f"data.seq_len={SEQ_LEN}",
            "data.shuffle=false",
            "data.validation_frac=0",
            f"train.global_batch_tokens={PAIRS * SEQ_LEN}",
            f"train.max_steps={NUM_STEPS}",
            *(f"optim.lr={LR}", "optim.clip_norm=1.0", "optim.decay_embeddings=true"),
            *("optim.weight_decay=0.1", "optim.betas=[0.9,0.95]", "optim.eps=1e-8"),
            *("schedule=constant", "schedule.warmup_steps=0", "zero=zero1", "zero.dtype=bf16"),
            *("checkpoint.enabled=false", "evaluate.forgetting=false", "log.progress=false"),
            f"run_dir={place}/{loss}-{name}",
            *own,
        ]
        if loss == "dpo":  # the other loss learns the same tokens
            start(["-m", "trainer", "prepare"], words)
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]
        start([*torchrun, "-m", "trainer", "train"], words)
        rows = [row for row in read(place / f"{loss}-{name}" / "metrics.jsonl") if "loss" in row]
        found[f"{loss} {name}"] = [{key: float(row[key]) for key in FIGURES} for row in rows]
    return found


def apart(one: Any, other: Any) -> float:
    """Return the largest difference over all steps."""
    return float((one - other).abs().max())


@pytest.mark.parametrize("figure", FIGURES)
@pytest.mark.parametrize("loss", LOSSES)
def test_steps_in_bf16_are_as_near_to_those_of_trl_as_its_runs_are_to_each_other(
    of_trl: Any, of_ours: dict[str, list[dict[str, float]]], loss: str, figure: str
) -> None:
    """The first step is off: logits, sums or the loss. Later ones only: weights of float32 were not kept, or Adam's."""

    def steps(runs: Any, name: str) -> Any:
        found = [step[figure] for step in runs[f"{loss} {name}"]]
        assert len(found) == NUM_STEPS
        return torch.tensor(found, dtype=torch.float64)

    by_engine = {name: of_trl(with_deepspeed) for name, with_deepspeed in ENGINES.items()}
    theirs = {e: {name: steps(runs, name) for name in THEIRS} for e, runs in by_engine.items()}
    ours = {name: steps(of_ours, name) for name in OURS}
    wrong = {e: steps(runs, "wrong") for e, runs in by_engine.items()}
    means = {e: torch.stack(list(runs.values())).mean(0) for e, runs in theirs.items()}
    bands = {
        e: max(apart(*two) for two in itertools.combinations(runs.values(), 2)) for e, runs in theirs.items()
    }
    for e in ENGINES:
        off = {name: f"{apart(run, means[e]):.2e}" for name, run in ours.items()}
        print(
            f"{loss} {figure}: TRL by {e}: {means[e][0]:.4f} to {means[e][-1]:.4f}, band {bands[e]:.2e};",
            end=" ",
        )
        print(f"from its mean: ours {off}, another beta {apart(wrong[e], means[e]):.2e}")
    exact = steps(by_engine["autocast"], "exact")
    both = {e: f"{apart(mean, exact):.2e}" for e, mean in means.items()}
    print(
        f"{loss} {figure}: TRL's ways are {apart(*means.values()):.2e} from each other, {both} from float32;",
        end=" ",
    )
    print(f"ours {[f'{apart(run, exact):.2e}' for run in ours.values()]}")
    if figure == "grad_norm":  # a loss near ln 2 knows little of beta
        assert apart(wrong[SAME], means[SAME]) > 2 * bands[SAME], (
            "the band holds another beta, and shows nothing"
        )
    assert max(apart(run, means[SAME]) for run in ours.values()) <= bands[SAME]
