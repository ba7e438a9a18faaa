"""One pool of each size for all tests of this folder, and one workspace that they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.dist.session import make_inputs
from tests.helpers.ranks import Ranks

Pool = Callable[[int], Ranks]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.dist)


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Return the pool of a number of ranks; its processes start with the first call."""
    pools: dict[int, Ranks] = {}

    def get(num_ranks: int) -> Ranks:
        if num_ranks not in pools:
            pools[num_ranks] = Ranks(num_ranks, tmp_path_factory.mktemp(f"ranks-{num_ranks}"))
        return pools[num_ranks]

    yield get
    for ranks in pools.values():
        ranks.close()


@pytest.fixture(scope="session")
def workspace(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder with models, stores and config.yaml; tests only read it."""
    folder = str(tmp_path_factory.mktemp("workspace"))
    pool(1).run(make_inputs, folder=folder)
    return folder
