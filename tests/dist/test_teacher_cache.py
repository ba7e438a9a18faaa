"""What a teacher says is kept block by block: asking goes on where it was ended, and damage is mended by the block."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.dist.session import config_of, session_of

PACKS = {0: range(12), 1: range(7)}
"""Of the workspace's sources."""


class Asker:
    """Asks a session's own model in blocks, and counts its passes."""

    def __init__(self, mesh: Any, session: Any) -> None:
        self.mesh, self.session, self.asked = mesh, session, 0
        self._forward = session.policy.engine.forward
        session.policy.engine.forward = self._counting

    def _counting(self, ask: Any, **inputs: Any) -> Any:
        self.asked += 1
        return self._forward(ask, **inputs)

    def ask(self, block_rows: int, most: int = 10**9) -> Any:
        from trainer.model.head.comparison import Comparison
        from trainer.run.heed import GivenUp
        from trainer.teacher.cached import open_reference
        from trainer.teacher.inquiry import Question

        self.asked = 0

        def heed() -> None:
            if self.asked >= most:
                raise GivenUp

        session = self.session
        packs = {source: np.array(of) for source, of in PACKS.items()}
        question = Question("digest", "fp32", 8, 1, session.pad_id, Comparison(), block_rows=block_rows)
        asking = (self.mesh, lambda: nullcontext(session.policy), session.config.data, session.stores)
        return open_reference(*asking, packs, question, heed)

    def rows(self, reference: Any) -> list[Any]:
        from trainer.data.pack.refs import PackRef, read_micro_batch

        stores = [store.train for store in self.session.stores.values()]
        refs = [PackRef(source, pack, 0) for source, of in PACKS.items() for pack in of]
        said = reference.rows_of(read_micro_batch(stores, refs, 0), refs)
        return [one.tolist() for one in (said.rows_R, said.ids_RK, said.log_probs_RK, said.log_rest_R)]


def ended_and_damaged(mesh: Any, workspace: str, folder: str) -> dict[str, Any]:
    """End the asking in the middle, go on, damage a block, and say how often the model ran each time."""
    from trainer.run.heed import GivenUp

    found: dict[str, Any] = {}
    config = config_of(workspace, f"{folder}/run")
    with session_of(config) as session:
        session.config.data.cache_dir = f"{folder}/cache"
        asker = Asker(mesh, session)
        whole = asker.rows(asker.ask(10**6))
        found["whole"] = asker.asked
        known = references(folder)
        mesh.barrier()
        with pytest.raises(GivenUp):
            asker.ask(100, most=6)
        mesh.barrier()
        (made,) = references(folder) - known
        found["kept"] = len(list(made.iterdir()))
        mesh.barrier()
        again = asker.ask(100)
        found["again"], found["all"] = asker.asked, len(list(made.iterdir()))
        found["same"] = asker.rows(again) == whole
        mesh.barrier()
        if mesh.is_first:
            with (made / "00001" / "00000.ids.bin").open("rb+") as file:
                file.truncate(4)
        mesh.barrier()
        mended = asker.ask(100)
        found["damaged"], found["mended"] = asker.asked, asker.rows(mended) == whole
        asker.ask(100)
        found["known"] = asker.asked
    return found


def references(folder: str) -> set[Path]:
    return set((Path(folder) / "cache" / "references").glob("*"))


def test_asking_goes_on_where_it_was_ended_and_a_damaged_block_alone_is_asked_again(
    pool, workspace, tmp_path
):
    """19 packs on two ranks, one at a time. Ended in its sixth pass: blocks that were finished are not asked again."""
    first, second = pool(2).run(ended_and_damaged, workspace=workspace, folder=str(tmp_path))
    assert first == second and first["whole"] == 10
    assert 0 < first["kept"] < first["all"] and first["known"] == 0
    assert first["again"] < first["whole"] and 0 < first["damaged"] < first["again"]
    assert first["same"] and first["mended"]
