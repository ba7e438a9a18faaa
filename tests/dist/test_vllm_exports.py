"""Exports in a real vLLM: adapters, whole models, models that also see and reward models answer as the run did.

So does plain transformers, or plain peft, with the same folder. vLLM may stand in an environment of its own:
VLLM_PYTHON=INTERPRETER.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.dist import test_reward
from tests.dist.session import config_of, make_inputs
from tests.helpers.multimodal import save_multimodal
from tests.helpers.vllm_side import ask_vllm, interpreter
from trainer.checkpoint.layout import FINGERPRINT, find_checkpoints
from trainer.evaluate.proofs.fingerprint import read_fingerprint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        interpreter() is None, reason="no vLLM here, and none named by VLLM_PYTHON=INTERPRETER"
    ),
]
WIDE = {"hidden_size": 128, "intermediate_size": 128}
"""Four heads of 32: vLLM on a CPU knows no smaller ones."""
CLOSE = 1e-3
"""Nats, and scores, in float32."""
EFFECT = 0.1
LORA = ["tune.method=lora", "tune.r=4"]
WORDS: dict[str, list[str]] = {
    "full": [],
    "lora": LORA,
    "rslora": [*LORA, "tune.rslora=true", "tune.target=[q_proj,down_proj]"],
    "merged": [*LORA, "export.merge=true"],
}


@pytest.fixture(scope="module")
def wide(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a workspace of models that vLLM takes, with two that also see."""
    folder = tmp_path_factory.mktemp("wide")
    pool(1).run(make_inputs, folder=str(folder), **WIDE)
    for kind in ("gemma3", "mistral3"):
        save_multimodal(folder / kind, kind, head_dim=32, **WIDE)
        (folder / kind / "preprocessor_config.json").write_text("{}")
    return str(folder)


def train_and_export(mesh: Any, workspace: str, folder: str, model: str, words: list[str]) -> int:
    """Train six steps and export them; return the exit code."""
    from trainer.command.export import export_model
    from trainer.config.snapshot import freeze
    from trainer.config.store import load_config
    from trainer.run import training

    path = Path(folder)
    steps = ["train.max_steps=6", "checkpoint.every_steps=6", "optim.lr=0.02", "evaluate.forgetting=false"]
    config = config_of(workspace, path / "run", f"model.path={workspace}/{model}", *words, *steps)
    freeze(config, path / "run")
    assert training.run_training(config).value == "finished"
    asked = [f"export.output_dir={folder}/export", "export.dtype=float32"]
    return export_model(load_config(path / "run" / "config.yaml", asked))


def answered(workspace: str, folder: Path, model: str, name: str) -> None:
    """Compare what vLLM says of an export with what the run said when it was saved, and with the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    saved = read_fingerprint(find_checkpoints(folder / "run")[0] / FINGERPRINT)
    tokens, count = saved.tokens_T.tolist(), len(saved.logits_KV)
    sees, is_adapter = model != "model", name in ("lora", "rslora")
    places = {"model": f"{workspace}/{model}", "lora": f"{folder}/export"}
    found = ask_vllm(
        folder,
        kind="speak",
        prompts=[tokens],
        num_tokens=1,
        sees=sees,
        **(places if is_adapter else {"model": f"{folder}/export"}),
    )
    loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM

    def log_probs(plain: Any) -> Any:
        with torch.no_grad():
            return plain.eval()(input_ids=saved.tokens_T[None]).logits[0, -count:].log_softmax(-1)

    base = loader.from_pretrained(f"{workspace}/{model}", dtype=torch.float32)
    base_KV, trained_KV = log_probs(base), saved.logits_KV.log_softmax(-1)
    export = f"{folder}/export"
    plain_KV = log_probs(
        PeftModel.from_pretrained(base, export)
        if is_adapter
        else loader.from_pretrained(export, dtype=torch.float32)
    )
    # The logits of a position are of the token after it.
    rows, after = range(count - 1), tokens[1 - count :]
    said_T = torch.tensor(found["log_probs"][0][1 - count :])
    off, apart, effect = (
        float((one_KV[rows, after] - said_T).abs().max()) for one_KV in (trained_KV, plain_KV, base_KV)
    )
    print(f"{model} {name}: off by {off:.1e} nats, {apart:.1e} from plain, {effect:.2f} from the base")
    assert off < CLOSE and apart < CLOSE and effect > EFFECT
    assert found["tokens"][0] == [int(trained_KV[-1].argmax())]


@pytest.mark.parametrize("name", WORDS)
def test_vllm_answers_with_an_export_as_the_run_did(pool, wide, tmp_path, name):
    """Off: the scale, some modules or a merge are lost on the way. No effect: vLLM answers with the base."""
    arguments = {"workspace": wide, "folder": str(tmp_path), "model": "model", "words": WORDS[name]}
    assert pool(1).run(train_and_export, **arguments) == [0]
    answered(wide, tmp_path, "model", name)


@pytest.mark.parametrize(("kind", "name"), [("gemma3", "full"), ("gemma3", "merged"), ("mistral3", "full")])
def test_vllm_answers_with_a_whole_model_that_also_sees_as_the_run_did(pool, wide, tmp_path, kind, name):
    """It is loaded under the architecture of its base, which the language part alone would not be."""
    arguments = {"workspace": wide, "folder": str(tmp_path), "model": kind, "words": WORDS[name]}
    assert pool(1).run(train_and_export, **arguments) == [0]
    answered(wide, tmp_path, kind, name)


@pytest.mark.parametrize("name", ["full", "merged"])
def test_vllm_scores_with_a_reward_model_as_the_run_did(pool, wide, tmp_path, name):
    """Off: the layer was lost, or another token is pooled."""
    from transformers import AutoModelForSequenceClassification

    from trainer.command.export import export_model
    from trainer.config.store import load_config

    data = str(tmp_path / "data")
    Path(data).mkdir()
    pool(1).run(test_reward.make_data, workspace=wide, data=data)
    words = [*WORDS[name], "optim.lr=1e-2", *([f"model.path={wide}/model"] if name == "merged" else [])]
    run = str(tmp_path / "run")
    arguments = {"workspace": wide, "data": data, "run_dir": run, "words": words}
    pieces, scores = pool(1).run(test_reward.finish, **arguments)[0]
    options = [f"export.output_dir={tmp_path}/export", "export.dtype=float32"]
    assert export_model(load_config(Path(run) / "config.yaml", options)) == 0
    found = ask_vllm(tmp_path, kind="score", model=f"{tmp_path}/export", prompts=pieces)["scores"]
    assert all(len(one) == 1 for one in found)
    said, ours = torch.tensor(found)[:, 0], torch.tensor(scores)
    export = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export", dtype=torch.float32)
    assert export.num_labels == 1
    plain = torch.from_numpy(test_reward.plain_scores(export, pieces, export.config.pad_token_id)).float()
    off, apart = (float((said - one).abs().max()) for one in (ours, plain))
    print(
        f"{name}: {len(pieces)} answers, off by {off:.1e}, {apart:.1e} from plain, spread {float(ours.std()):.2f}"
    )
    assert len(pieces) >= 40 and float(ours.std()) > 0.01
    for one in (ours.float(), plain):
        torch.testing.assert_close(said, one, atol=CLOSE, rtol=0)
