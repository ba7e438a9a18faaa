"""The step of the batch script that checks all nodes before the ranks start. Pure."""

from __future__ import annotations

from importlib import resources

from trainer.config.cluster import ClusterConfig, Launcher

from .fewer import in_checks
from .words import Job, Template, apptainer, is_contained, lines, on_all_nodes, python, pyxis

START_S = 7
"""From the start of srun to that of Python, and for Python's last words."""
KILL_S = 2


def render_preflight(cluster: ClusterConfig, job: Job) -> str:
    """Return the function and its call; a comment where there is nothing to compare, or nobody wants it."""
    if not cluster.preflight.enabled:
        return "# No checks of the nodes: cluster.preflight.enabled is false."
    if cluster.num_nodes == 1:
        return "# One node: there is no other to compare it with. `palimpsest doctor` checks it alone."
    limit_s = cluster.preflight.timeout_s + START_S
    timeout = ["timeout", f"--kill-after={KILL_S}", str(limit_s)]
    check = [*timeout, *_srun(cluster, job), "-m", "trainer", "doctor", "--config", '"$config"']
    text = resources.files("trainer.launch").joinpath("preflight.sh.tmpl").read_text(encoding="utf-8")
    return (
        Template(text)
        .substitute(image=_image(cluster, job), check=lines(check), limit_s=limit_s, **in_checks(cluster))
        .rstrip("\n")
    )


def _image(cluster: ClusterConfig, job: Job) -> str:
    """Return lines that fetch the image on every node, outside the time limit."""
    if not is_contained(cluster):
        return ""
    srun = [*on_all_nodes(cluster, 1), "--label"]
    leave = """bash -c 'touch "$0/$SLURMD_NODENAME"' "$logs/image\""""
    fetch = lines([*srun, *pyxis(cluster, job), *apptainer(cluster, job), leave])
    text = resources.files("trainer.launch").joinpath("image.sh.tmpl").read_text(encoding="utf-8")
    return Template(text).substitute(fetch=fetch, lost=in_checks(cluster)["lost"])


def _srun(cluster: ClusterConfig, job: Job) -> list[str]:
    """Return the words that start one process a rank, each of which says what it found before it ends."""
    words = on_all_nodes(cluster, cluster.ranks_per_node)
    if cluster.cpus_per_rank:
        words.append(f"--cpus-per-task={cluster.cpus_per_rank}")
    elif cluster.launcher is not Launcher.srun:
        # The job has one task a node there, with the site's default of cores.
        words.append("--overcommit")
    if cluster.num_gpus_asked:
        words.append("--gpu-bind=none")
    words += ["--kill-on-bad-exit=0", "--wait=0", "--label", *pyxis(cluster, job)]
    return [*words, *apptainer(cluster, job), python(cluster, job)]
