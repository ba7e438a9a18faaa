"""One cluster of two nodes for all tests of this folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import NoCluster, SlurmCluster, two_nodes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """Return a running cluster; SLURM's commands find it through SLURM_CONF."""
    # A short path: a UNIX socket's name has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)
        try:
            with two_nodes(Path(folder)) as cluster:
                for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
                    patch.delenv(name)
                patch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
                yield cluster
        except NoCluster as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus; the jobs make the tiny model and the token store in its cache."""
    folder = tmp_path_factory.mktemp("project")
    texts = [f"{i} squared is {i * i}, and {i + 7} is seven more than {i}." for i in range(400)]
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n")
    return folder
