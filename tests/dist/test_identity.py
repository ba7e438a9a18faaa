"""The run that is evaluated, resumed or exported is the run that was trained: same data, same base, from anywhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import config_of
from tests.helpers.tiny import write_documents
from trainer.config.snapshot import dated, freeze
from trainer.config.store import load_config
from trainer.errors import TrainerError

Said = tuple[int, str]


def command(name: str, run_dir: Path, *overrides: str) -> Said:
    """Run a command of the command line as the one rank of a job; return its code and what it said."""
    from trainer.cli import run_command
    from trainer.command.export import export_model

    said, file = StringIO(), run_dir / "config.yaml"
    with redirect_stdout(said), redirect_stderr(said):
        if name == "export":  # no command of a rank
            try:
                return export_model(load_config(file, [f"run_dir={run_dir}", *overrides])), said.getvalue()
            except TrainerError as error:
                return 2, str(error)
        code = run_command([name, "--config", str(file), f"run_dir={run_dir}", *overrides])
    return code, said.getvalue()


def losses(run_dir: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run_dir / "evaluation.json").read_text())["losses"]
    return found


def flip(file: Path, place: int) -> None:
    """Flip a bit and keep size and modification time."""
    before, changed = file.stat(), bytearray(file.read_bytes())
    changed[place] ^= 1
    file.write_bytes(changed)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def train_here(workspace: str, here: Path) -> Path:
    """Train one step on data that is named from the working directory; return the run directory."""
    from trainer.command.fitting import fitted_here
    from trainer.command.prepare import ensure_inputs
    from trainer.run import training

    shutil.copytree(Path(workspace) / "model", here / "model")
    for name in ("chat.jsonl", "text.jsonl"):
        shutil.copy(Path(workspace) / name, here / name)
    os.chdir(here)
    words = ("model.path=model", "data.sources.chat.path=chat.jsonl", "data.sources.text.path=t*t.jsonl")
    words = (*words, "data.cache_dir=cache", "train.max_steps=1", "evaluate.kl_packs=1")
    config = fitted_here(config_of(workspace, here / "run", *words), 1, says=False)
    config = dated(config, here / "run")
    ensure_inputs(config)
    freeze(config, here / "run")
    assert training.run_training(config).value == "finished"
    return here / "run"


def edits(run_dir: Path, here: Path) -> dict[str, Said]:
    """Change one thing after the other, evaluate or export, and put it back."""
    from trainer.command.prepare import ensure_inputs

    found: dict[str, Said] = {}

    def with_changed(file: Path, change: Callable[[], Any], name: str, what: str, *overrides: str) -> None:
        kept = file.with_name(f"{file.name}.kept")
        shutil.copy2(file, kept)
        change()
        ensure_inputs(load_config(run_dir / "config.yaml", [f"run_dir={run_dir}", *overrides]))
        found[what] = command(name, run_dir, *overrides)
        kept.replace(file)

    data, weights = here / "chat.jsonl", here / "model" / "model.safetensors"
    words = here / "model" / "tokenizer_config.json"
    with_changed(data, lambda: write_documents(data, 80, 9, ragged=True), "evaluate", "data")
    with_changed(data, lambda: write_documents(data, 80, 9, ragged=True), "export", "data, export")
    provenance = run_dir / "provenance.json"
    provenance.rename(run_dir / "away")
    with_changed(data, lambda: write_documents(data, 80, 9, ragged=True), "evaluate", "data, no record")
    (run_dir / "away").rename(provenance)
    with_changed(weights, lambda: flip(weights, -5), "evaluate", "base", "evaluate.forgetting=false")
    with_changed(weights, lambda: flip(weights, -5), "export", "base, export")
    with_changed(weights, lambda: flip(weights, -5), "train", "base, resume")

    def other_template() -> None:
        told = json.loads(words.read_text())
        words.write_text(json.dumps(told | {"eos_token": told["pad_token"]}))

    with_changed(words, other_template, "evaluate", "tokenizer")
    with_changed(words, other_template, "export", "tokenizer, export")
    found["seq_len"] = command("evaluate", run_dir, "data.seq_len=32", "train.global_batch_tokens=256")
    store = here / "cache" / "stores" / json.loads(provenance.read_text())["data"]["text"]
    kept = (store / "validation" / "tokens.bin").read_bytes()
    flip(store / "validation" / "tokens.bin", 0)
    found["store"] = command("evaluate", run_dir)
    (store / "validation" / "tokens.bin").write_bytes(kept)
    found["put back"] = command("evaluate", run_dir)
    found["put back, export"] = command("export", run_dir)
    found["put back, resume"] = command("train", run_dir)
    return found


def live(mesh: Any, workspace: str, folder: str) -> dict[str, Any]:
    here, before = Path(folder), os.getcwd()
    try:
        run_dir = train_here(workspace, here)
        assert command("evaluate", run_dir)[0] == 0
        first = losses(run_dir)
        other = here / "other"
        other.mkdir()
        for name in ("chat.jsonl", "text.jsonl"):
            write_documents(other / name, 70, seed=5, ragged=name == "chat.jsonl")
        os.chdir(other)
        elsewhere = command("evaluate", run_dir)
        seen = losses(run_dir)
        moved = run_dir.rename(here / "moved")
        after_move = command("evaluate", moved)
        return {
            "first": first,
            "elsewhere": (elsewhere, seen),
            "moved": (after_move, losses(moved)),
            "edits": edits(moved, here),
        }
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def lived(pool: Any, workspace: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("identity")
    (answer,) = pool(1).run(live, timeout_s=400, workspace=workspace, folder=str(folder))
    return dict(answer)


@pytest.mark.parametrize("where", ["elsewhere", "moved"])
def test_a_run_has_the_same_losses_from_any_directory_and_at_any_place(
    where: str, lived: dict[str, Any]
) -> None:
    (code, said), seen = lived[where]
    assert code == 0, said
    assert seen == lived["first"] and len(seen) == 2


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("data", ["`data.sources.chat` holds other data"]),
        ("data, no record", ["`data.sources.chat` has changed"]),
        ("base", ["the weights of the base (`model.path`) have changed"]),
        ("base, export", ["the weights of the base (`model.path`) have changed"]),
        ("base, resume", ["the weights of the base (`model.path`) have changed"]),
        ("tokenizer", ["the tokenizer or its chat template", "`model.chat_template`"]),
        ("tokenizer, export", ["the tokenizer or its chat template"]),
        ("seq_len", ["`data.seq_len`|must be prepared"]),
        ("store", ["validation/tokens.bin is not as it was written", "Delete that folder"]),
    ],
)
def test_what_changed_after_training_is_named_before_a_number_is_printed(
    what: str, parts: list[str], lived: dict[str, Any]
) -> None:
    code, said = lived["edits"][what]
    assert code == 2, said
    assert "held-out loss of" not in said and "Traceback" not in said
    for part in parts:
        assert any(one in said for one in part.split("|")), said


def test_a_run_is_exported_though_its_data_was_gone_on_with(lived: dict[str, Any]) -> None:
    """Deleted data was said, and changed data refused: people append to a file every week."""
    code, said = lived["edits"]["data, export"]
    assert code == 0, said
    assert (
        "`data.sources.chat` holds other data by now than the run read. Nothing of it is in an export" in said
    )


@pytest.mark.parametrize("what", ["put back", "put back, export", "put back, resume"])
def test_what_is_put_back_is_the_run_again(what: str, lived: dict[str, Any]) -> None:
    code, said = lived["edits"][what]
    assert code == 0, said
