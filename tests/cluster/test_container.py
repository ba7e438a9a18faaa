"""Two nodes whose ranks run in a real Apptainer image, the one of docker/.

Needs apptainer, and the image's file: docker/check.sh --keep, then docker/README.md, and PALIMPSEST_TEST_SIF=FILE.sif.
"""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.submitted import Submitted, overrides, trace

IMAGE = os.environ.get("PALIMPSEST_TEST_SIF", "")
NUM_STEPS = 60

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("apptainer") is None, reason="apptainer is not installed"),
    pytest.mark.skipif(not IMAGE, reason="PALIMPSEST_TEST_SIF does not name an image of docker/"),
]


def submit(slurm, project, name, *more):
    nodes = ("cluster=slurm_apptainer", "cluster.num_nodes=2", "cluster.ranks_per_node=1")
    host = ("cluster.gpus_per_node=0", "cluster.cpus_per_rank=1", "cluster.mem=null")
    # Root in a sandbox has not all of root's rights, which Apptainer would hand on.
    image = (f"cluster.container.image={IMAGE}", "cluster.container.options=[--no-privs]")
    with contextlib.chdir(project):
        return Submitted(slurm, project / name, *overrides(project, NUM_STEPS), *nodes, *host, *image, *more)


@pytest.mark.parametrize("launcher", ["srun", "torchrun", "deepspeed"])
def test_ranks_in_the_image_save_at_a_signal_and_go_on(slurm, project, launcher, tmp_path, monkeypatch):
    # What the host's shell has in its path is not for the image.
    (tmp_path / "torch.py").write_text("raise SystemExit('a package of the host')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = submit(slurm, project, f"image-{launcher}", f"cluster.launcher={launcher}")
    run.signal_at(4)
    assert run.lines("ended")[0]["code"] == 75, run.log[-5000:]
    assert run.finish() == "COMPLETED", run.log[-5000:]
    assert [step for step, _, _ in trace(run.run_dir)] == list(range(1, NUM_STEPS + 1))
    # What trained was in the image, which says of what commit it is.
    inspected = subprocess.run(["apptainer", "inspect", "--json", IMAGE], capture_output=True, check=True)
    labels = json.loads(inspected.stdout)["data"]["attributes"]["labels"]
    provenance = json.loads((run.run_dir / "provenance.json").read_text())
    assert provenance["git"] == labels["org.opencontainers.image.revision"]


def test_an_image_without_the_package_is_a_sentence_and_not_tried_again(slurm, project):
    """The image's own Python of the distribution has no packages."""
    run = submit(slurm, project, "image-bare", "cluster.container.python=/usr/bin/python3")
    assert run.finish() == "FAILED"
    assert run.lines("ended")[-1]["code"] == 2
    sentence = f"`cluster.container.image` must hold the package palimpsest-trainer, but is {IMAGE} instead"
    assert sentence in run.log


def test_an_image_that_is_not_there_is_refused_before_submission(slurm, project, capsys):
    with contextlib.suppress(AssertionError):
        submit(slurm, project, "image-none", "cluster.container.image=/nowhere/none.sif")
    assert "`cluster.container.image`" in capsys.readouterr().err
    assert not Path(project / "image-none" / "job.sh").exists()
