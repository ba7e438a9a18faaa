"""One cluster of two nodes for all tests of this folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from tests.helpers.slurm_cluster import NoCluster, SlurmCluster, two_nodes

UP: list[SlurmCluster] = []
"""The cluster of this session, while there is one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(item.path).parents:
            item.add_marker(pytest.mark.cluster)


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Repeat a test that failed while a daemon of SLURM's own crashed, with a new cluster, and say so."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    crashed = [name for cluster in UP for name in cluster.crashed]
    if crashed and any(report.failed for report in reports):
        print(f"{item.nodeid} is repeated: {', '.join(crashed)} crashed, which is SLURM's own.")
        item.session._setupstate.teardown_exact(None)  # all fixtures, the cluster among them
        item._initrequest()  # type: ignore[attr-defined]
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


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
                UP.append(cluster)
                yield cluster
                UP.remove(cluster)
        except NoCluster as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a corpus; the jobs make the tiny model and the token store in its cache."""
    folder = tmp_path_factory.mktemp("project")
    texts = [f"{i} squared is {i * i}, and {i + 7} is seven more than {i}." for i in range(400)]
    (folder / "corpus.txt").write_text("\n".join(texts) + "\n")
    return folder
