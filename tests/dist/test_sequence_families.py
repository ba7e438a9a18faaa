"""Families whose packs ranks share: the steps of a run in which nobody shares, or a sentence that refuses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.dist import family as ask
from tests.dist.session import session_of, take_steps
from tests.helpers.families import FAMILIES

KEY = "train.sequence_parallel"
EQUAL = ("Qwen3", "OLMo 3")
"""Norms of heads; windows."""
REFUSED = ("StableLM", "LFM2")
"""Attention that is not transformers' interface; a hybrid."""
CLOSE = 1e-5
"""Relative. Heads are computed in other products: 2.3e-6 is the most of all (Gemma 4)."""


@pytest.fixture(scope="module")
def shared(pool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with documents and stores."""
    folder = tmp_path_factory.mktemp("families")
    pool(1).run(ask.make_documents, folder=str(folder))
    return folder


def shared_apart(mesh: Any, folder: str, family: str) -> dict[str, Any]:
    """Return how far the steps of shared packs are from the others', or what a run says that may not share them."""
    from trainer.run.packing import with_packing
    from trainer.run.proofs import prove_model

    if mesh.is_first:
        ask.make_base(mesh, folder, family)
    mesh.barrier()
    found: dict[str, Any] = {}
    with ask.told(found, "alone"):
        alone, both = (
            with_packing(ask.config_for(folder, "base", name, "zero.stage=1", *words), says=False)
            for name, words in (("alone", []), ("both", [f"{KEY}=2"]))
        )
        with session_of(alone) as session:
            prove_model(session)
            steps = take_steps(session, ask.NUM_STEPS)
    if found:
        return found
    with ask.told(found, "shared"), session_of(both) as session:
        prove_model(session)
        found["apart"] = max(ask.furthest(take_steps(session, ask.NUM_STEPS), steps).values())
    return found


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[] if name in (*EQUAL, *REFUSED) else pytest.mark.slow) for name in FAMILIES],
)
def test_a_family_takes_the_same_steps_or_is_refused(pool: Any, shared: Path, tmp_path: Path, family: str):
    for entry in shared.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    found = pool(2).run(shared_apart, folder=str(tmp_path), family=family)[0]
    print(found)
    if "alone" in found:
        pytest.skip(f"does not train: {found['alone']}")
    said = found.get("shared", "")
    assert said.startswith(f"refused: `{KEY}` must be ") or found["apart"] <= CLOSE
    assert (family in EQUAL) <= (not said) and (family in REFUSED) <= bool(said)


def with_router_loss(mesh: Any, folder: str) -> dict[str, str]:
    """Return what a mixture whose routers have a loss says."""
    if mesh.is_first:
        ask.make_base(mesh, folder, "Qwen3-MoE")
        path = Path(folder, "base", "config.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"output_router_logits": True}))
    mesh.barrier()
    found: dict[str, str] = {}
    with (
        ask.told(found, "shared"),
        session_of(ask.config_for(folder, "base", "both", "data.packing=packed", f"{KEY}=2")),
    ):
        pass
    return found


def test_a_loss_of_routers_is_refused_which_is_that_of_whole_packs(pool: Any, shared: Path, tmp_path: Path):
    for entry in shared.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    for found in pool(2).run(with_router_loss, folder=str(tmp_path)):
        assert found["shared"].startswith("refused: `output_router_logits` must be false"), found
