"""A checkpoint that somebody changed and sealed anew is data: a pickle in any of its places does not run."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.dist.session import session_of
from tests.dist.test_resume import config_for, saver_of
from trainer.checkpoint.commit import seal
from trainer.checkpoint.layout import FINGERPRINT, MANIFEST, STATE, checkpoints_dir, rng_file, step_dir
from trainer.checkpoint.manifest import manifest_text, read_manifest
from trainer.checkpoint.verify import inspect
from trainer.evaluate.proofs.fingerprint import Fingerprint, read_fingerprint, write_fingerprint

BESIDE = (
    *("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", "pytorch_model.bin"),
    *("optimizer.pt", "rng.pkl"),
)
"""Where other programs, and an earlier version of this one, would look; this one does not."""
AMONG = "shards/rank-00000.pt"
"""Looked at, as everything that a manifest names among the shards."""


class Planted:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def pickles(made: str) -> dict[str, bytes]:
    """Return a pickle that makes a folder, bare and as torch writes it."""
    import torch

    file = io.BytesIO()
    torch.save({"weight": Planted(made)}, file)
    return {"bare": pickle.dumps(Planted(made)), "torch": file.getvalue()}


def seal_anew(folder: Path) -> None:
    """Write a manifest that says of every file that it is as it was written."""
    found = [seal(path) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
    files = {str(one.path.relative_to(folder)): (one.num_bytes, one.sha256) for one in found}
    manifest = dataclasses.replace(read_manifest(folder), files=files)
    (folder / MANIFEST).write_text(manifest_text(manifest))


def resume_from_planted(mesh: Any, workspace: str, run_dir: str, made: str) -> dict[str, list[Any]]:
    """Train; then put a pickle in every place of the last checkpoint in turn, and go on from it.

    Return for each whether the checkpoint verified, the step that was gone on from, and whether the pickle ran.
    """
    from trainer.run import training

    run, answers = Path(run_dir), {}
    config = config_for(workspace, run, 0)
    assert training.run_training(config).value == "finished"
    whole = run.with_name("whole")
    shutil.copytree(checkpoints_dir(run), whole)
    with session_of(config) as session:
        for kind, content in pickles(made).items():
            for name in (*read_manifest(whole / "step-00000006").files, AMONG, *BESIDE):
                shutil.rmtree(checkpoints_dir(run))
                shutil.copytree(whole, checkpoints_dir(run))
                place = step_dir(run, 6) / name
                place.parent.mkdir(exist_ok=True)
                place.write_bytes(content)
                seal_anew(step_dir(run, 6))
                verifies = inspect(step_dir(run, 6))[1] is None
                step = saver_of(session).resume(goes_on=True).step
                answers[f"{kind} {name}"] = [verifies, step, os.path.exists(made)]
    return answers


def resume_from_odd(mesh: Any, workspace: str, run_dir: str) -> dict[str, int]:
    """Train; then make a file of the last checkpoint odd, and return for each the step that was gone on from."""
    from trainer.run import training

    run, answers = Path(run_dir), {}
    config = config_for(workspace, run, 0)
    assert training.run_training(config).value == "finished"
    whole = run.with_name("whole")
    shutil.copytree(checkpoints_dir(run), whole)
    state = json.loads((whole / "step-00000006" / STATE).read_text())
    odd = {"the same": (STATE, json.dumps(state)), "no object": (STATE, "[]"), "nested": (STATE, "[" * 10**5)}
    for key, value in (
        ("step", "six"),
        ("step", 5),
        ("tokens_seen", -1),
        ("ratio_changes", [[1]]),
        ("base_losses", None),
    ):
        odd[f"{key} {value}"] = STATE, json.dumps(state | {key: value})
    odd["no generators"] = rng_file(0), "{}"
    odd["other logits"] = FINGERPRINT, ""
    with session_of(config) as session:
        for name, (file, text) in odd.items():
            shutil.rmtree(checkpoints_dir(run))
            shutil.copytree(whole, checkpoints_dir(run))
            place = step_dir(run, 6) / file
            if text:
                place.write_text(text)
            else:
                saved = read_fingerprint(place)
                write_fingerprint(place, Fingerprint(saved.tokens_T, saved.logits_KV[:, :-1].contiguous()))
            seal_anew(step_dir(run, 6))
            answers[name] = saver_of(session).resume(goes_on=True).step
    return answers


def test_a_checkpoint_of_odd_values_that_was_sealed_anew_is_set_aside_for_the_one_before(
    pool, workspace, tmp_path
):
    """A traceback; or, of another step's number, a run that takes its data again."""
    (answers,) = pool(1).run(resume_from_odd, workspace=workspace, run_dir=str(tmp_path / "run"))
    assert answers.pop("the same") == 6
    assert len(answers) == 9 and set(answers.values()) == {3}, answers


def test_no_pickle_in_a_checkpoint_that_was_sealed_anew_runs(pool, workspace, tmp_path):
    made = tmp_path / "made"
    for content in pickles(str(made)).values():
        if content.startswith(b"\x80"):
            pickle.loads(content)
            assert made.is_dir(), "it would run"
            made.rmdir()
    (answers,) = pool(1).run(
        resume_from_planted, workspace=workspace, run_dir=str(tmp_path / "run"), made=str(made)
    )
    assert len(answers) > 15
    for name, (verifies, step, ran) in answers.items():
        assert verifies and not ran, name
        assert step == (6 if name.split()[1] in BESIDE else 3), name
    assert not made.exists()
    with pytest.raises(pickle.UnpicklingError):
        import torch

        torch.load(io.BytesIO(pickles(str(made))["torch"]), weights_only=True)
