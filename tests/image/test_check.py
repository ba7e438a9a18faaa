"""The image is built and trained in, by the script that a person runs: docker/check.sh."""

import os
import shutil
import subprocess

import pytest

from tests.house.tree import ROOT

MISSING = [tool for tool in ("buildah", "debootstrap") if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="debootstrap and a build by chroot need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]


@pytest.mark.timeout(3600)
def test_the_image_builds_without_an_engine_and_trains_on_two_ranks():
    done = subprocess.run(["bash", "docker/check.sh"], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DeepSpeed's ops compiled: deepspeed_shm_comm" in done.stdout
    assert "8/8 loss" in done.stdout and "checkpoint committed" in done.stdout
    assert done.stdout.rstrip().endswith("Done")
