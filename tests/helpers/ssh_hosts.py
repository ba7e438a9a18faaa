"""The nodes of the test cluster reachable over ssh, with keys and settings of their own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.slurm_cluster import NODES, SlurmCluster, check_possible, run
from tests.helpers.wait import LIMIT_S, wait_until

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh")
PACKAGES = ("openssh-server", "openssh-client", "pdsh")


@contextlib.contextmanager
def ssh_hosts(cluster: SlurmCluster, folder: Path) -> Iterator[Path]:
    """Run sshd on every node; yield a folder with an `ssh` that reaches them, to be put first on the PATH.

    Raises:
        NoCluster: A program is missing and cannot be installed.
    """
    check_possible(PROGRAMS, PACKAGES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    (folder / "sshd_config").write_text(
        f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\nStrictModes no\n"
        "PermitRootLogin prohibit-password\nUsePAM no\nListenAddress 0.0.0.0\nMaxStartups 100\n"
    )
    # sshd insists on this folder.
    Path("/run/sshd").mkdir(exist_ok=True)
    wrapper = folder / "bin" / "ssh"
    wrapper.parent.mkdir()
    options = (
        f"-i {folder}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    )
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F none {options} "$@"\n')
    wrapper.chmod(0o755)
    daemons = []
    sshd = str(shutil.which("sshd"))
    for node in NODES:
        command = cluster.in_node(node, "unshare", "--uts", "sh", "-c")
        script = f"hostname {node}; exec {sshd} -D -e -f {folder}/sshd_config"
        with (folder / f"{node}.log").open("wb") as log:
            daemons.append(
                subprocess.Popen([*command, script], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )
    environment = {**os.environ, "PATH": f"{wrapper.parent}:{os.environ['PATH']}"}

    def answers() -> bool:
        asked = [
            subprocess.run(["ssh", address, "hostname"], env=environment, capture_output=True, text=True)
            for address in cluster.addresses
        ]
        return [done.stdout.strip() for done in asked] == list(NODES)

    try:
        wait_until(answers, "sshd on both nodes", (folder / f"{NODES[0]}.log").read_text)
        yield wrapper.parent
    finally:
        for daemon in daemons:
            daemon.terminate()
            daemon.wait(LIMIT_S)
