"""What only a rank can refuse, as a sentence and without a half-written run; and a run that is told to stop."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dist.session import config_of, session_of
from tests.helpers.ranks import FOREIGN, ROOT
from tests.helpers.wait import LIMIT_S, wait_until
from trainer.checkpoint.layout import STATE, checkpoints_dir, step_dir
from trainer.checkpoint.verify import newest_verified
from trainer.errors import TrainerError

UP = "model.layers.1.mlp.up_proj.weight"


def copy_model(workspace: str, folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """Copy the workspace's model with its tensors edited."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(Path(workspace) / "model", folder)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refusal_of(workspace: str, run_dir: Path, *overrides: str) -> str:
    """Train and return the sentence of the refusal; only logs and the lock may be left."""
    from trainer.run import training

    run_dir.mkdir()
    try:
        reason = training.run_training(config_of(workspace, run_dir, *overrides))
    except Exception as error:
        sentence = f"{type(error).__name__}: {error}"
    else:
        sentence = f"not refused: {reason}"
    gc.collect()
    left = {path.relative_to(run_dir).parts[0] for path in run_dir.rglob("*") if path.is_file()}
    assert left <= {"logs", ".lock"}, left
    return sentence


def refusals(mesh: Any, workspace: str, folder: str) -> dict[str, str]:
    from tests.helpers.tiny import save_llama
    from trainer.config.model import ModelConfig
    from trainer.engine.gathering import gathered
    from trainer.model.base_files import open_base
    from trainer.model.verify_weights import verify_weights

    top = Path(folder)
    models = {
        "missing": copy_model(workspace, top / "missing", lambda tensors: tensors.pop(UP)),
        "head": copy_model(workspace, top / "head", lambda tensors: tensors.pop("lm_head.weight")),
        "unexpected": copy_model(
            workspace, top / "more", lambda tensors: tensors.update(more=tensors[UP] * 2)
        ),
        "mismatched": copy_model(
            workspace, top / "mismatched", lambda tensors: tensors.update({UP: tensors[UP][:5].clone()})
        ),
        "short": copy_model(workspace, top / "short", lambda tensors: None),
    }
    config_file = models["short"] / "config.json"
    record = json.loads(config_file.read_text()) | {"max_position_embeddings": 32}
    config_file.write_text(json.dumps(record))
    (top / "template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    asked = {name: ["zero.stage=3", f"model.path={path}"] for name, path in models.items()}
    asked["template"] = [f"model.chat_template={top}/template.jinja"]
    asked["stage 0"] = ["zero.stage=0", "zero.dtype=bf16"]
    asked["flash"] = ["model.attention=flash_attention_2"]
    answers = {name: refusal_of(workspace, top / f"run {name}", *words) for name, words in asked.items()}
    save_llama(top / "other", seed=9)
    source = f"{workspace}/model"
    with session_of(config_of(workspace, top / "run whole", "zero.stage=3")) as session:
        answers["verified"] = str(
            verify_weights(session.loaded.model, open_base(source, ModelConfig()), gathered)
        )
        try:
            verify_weights(session.loaded.model, open_base(str(top / "other"), ModelConfig()), gathered)
        except TrainerError as error:
            answers["verify"] = f"{type(error).__name__}: {error}"
    # Random weights are not those of the files, and are not meant to be.
    random = ["model.kind=random", "model.seed=5"]
    with session_of(config_of(workspace, top / "run random", *random)) as session:
        answers["random"] = session.loaded.model.config.model_type
    return answers


@pytest.fixture(scope="module")
def answers(pool, workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refusals")
    return pool(1).run(refusals, workspace=workspace, folder=str(folder))[0]


WEIGHTS = "ModelError: The weights of "
SENTENCES = {
    "missing": [WEIGHTS, f"missing keys: {UP}", "would train random weights"],
    "head": [WEIGHTS, "missing keys: lm_head.weight"],
    "unexpected": [WEIGHTS, "unexpected keys: more"],
    "mismatched": ["ModelError: The weights of "],
    "short": [
        "ConfigError: `data.seq_len` must be at most the model's context of 32, but is 64 instead. Set"
    ],
    "template": [
        "DataError: `data.sources.chat` must be prepared with the tokenizer of this run",
        "made by another tokenizer (or chat template). Run `palimpsest prepare`",
    ],
    "stage 0": ["ConfigError: `zero.stage` must be 1 or more in bf16", "4 micro-steps", "Set zero=zero1"],
    "flash": ["ModelError: ", "there is no GPU. Install it with: pip install", "model.attention=auto."],
    "verify": ["SelfCheckError: The loaded parameter ", "would not train from the weights you named"],
}


@pytest.mark.parametrize("kind", list(SENTENCES))
def test_a_rank_refuses_what_it_cannot_train_and_leaves_no_run(answers, kind):
    """Weights are those of ZeRO-3, which loads on a path of its own; plain loading is tested without ranks."""
    assert [part for part in SENTENCES[kind] if part not in answers[kind]] == [], answers[kind]
    assert "\n" not in answers[kind]


def test_weights_of_zero_3_are_compared_and_random_ones_are_not(answers):
    """Random weights are not those of the files, and were once refused for it."""
    assert (answers["verified"], answers["random"]) == ("8", "llama")


# ---- told to stop


def finish(mesh: Any, run_dir: str, whole_dir: str) -> None:
    """Resume the stopped run, and train the same without a stop."""
    import dataclasses

    from trainer.config.store import load_config
    from trainer.run import training

    config = load_config(Path(run_dir) / "config.yaml")
    assert training.run_training(config).value == "finished"
    assert training.run_training(dataclasses.replace(config, run_dir=whole_dir)).value == "finished"


def start(workspace: str, run_dir: Path, *overrides: str) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    words = [
        "train",
        "--config",
        f"{workspace}/config.yaml",
        f"run_dir={run_dir}",
        "cluster.ranks_per_node=1",
    ]
    here = run_dir.parent / "here"
    here.mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", *words, *overrides],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=here,
        stdout=(run_dir.parent / "out").open("wb"),
        stderr=subprocess.STDOUT,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what a failed test has left of its own."""
    if process.poll() is None:
        for child in [*psutil.Process(process.pid).children(recursive=True), process]:
            child.kill()
        process.wait()


def steps_logged(run_dir: Path) -> int:
    path = run_dir / "metrics.jsonl"
    return path.read_text().count('"loss"') if path.exists() else 0


def test_sigterm_reaches_the_rank_which_saves_and_exits_75_and_the_resumed_run_reads_the_same_data(
    pool, workspace, tmp_path
):
    """The launcher of DeepSpeed kills its ranks on SIGTERM: a signal sent to it would cost the steps since
    the last checkpoint. Exit code 75 asks for a requeue.
    """
    run_dir, whole = tmp_path / "run", tmp_path / "whole"
    process = start(workspace, run_dir, "train.max_steps=80", "train.micro_batch_size=4")
    try:
        said = (tmp_path / "out").read_text
        wait_until(lambda: steps_logged(run_dir) >= 3, "the third step", said, process, poll_s=0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 75, said()
    finally:
        end(process)
    assert [*(tmp_path / "here").iterdir()] == [], "a run wrote into the working directory"
    found = newest_verified(run_dir)
    assert found is not None and 3 <= found[1].step < 80
    entries = sorted(entry.name for entry in checkpoints_dir(run_dir).iterdir())
    assert entries == ["latest", f"step-{found[1].step:08d}"]
    assert "Traceback" not in (tmp_path / "out").read_text()

    whole.mkdir()
    pool(1).run(finish, run_dir=str(run_dir), whole_dir=str(whole))
    stopped, straight = (json.loads((step_dir(r, 80) / STATE).read_text()) for r in (run_dir, whole))
    assert (stopped["attempts"], straight["attempts"]) == (2, 1)
    for key in ("step", "data_digest", "tokens_seen", "targets_by_source"):
        assert stopped[key] == straight[key], key
    assert steps_logged(run_dir) == steps_logged(whole) == 80


def test_a_rank_that_refuses_ends_the_command_with_its_exit_code(tmp_path):
    code = (
        "import sys; from trainer.start.local import start_local; sys.exit(start_local(sys.argv[1:], 1, 0))"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--config", "nope.yaml"],
        env=environment | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("Error: nope.yaml cannot be read: No such file or directory.") == 1
    assert "Traceback" not in done.stderr and [*tmp_path.iterdir()] == []
    # DeepSpeed's launcher calls every code but 0 an error, 75 of a clean stop too: our ranks say what it was.
    assert "return code" not in done.stdout + done.stderr
