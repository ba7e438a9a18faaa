"""The step of the batch script that checks all nodes before the ranks start. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.cluster import ClusterConfig, Launcher

from .words import INDENT, Job, apptainer, is_contained, lines, python, pyxis

START_S = 7
"""From the start of srun to that of Python, and for Python's last words."""
KILL_S = 2


def render_preflight(cluster: ClusterConfig, job: Job) -> str:
    """Return the function and its call; a comment where there is nothing to check with others, or nobody wants it."""
    if not cluster.preflight.enabled:
        return "# No checks of the nodes: cluster.preflight.enabled is false."
    if cluster.num_nodes == 1:
        return "# One node: no checks of nodes against each other. See `palimpsest doctor`."
    return "\n".join(_step(cluster, job))


def _step(cluster: ClusterConfig, job: Job) -> Iterator[str]:
    limit_s = cluster.preflight.timeout_s + START_S
    yield "# Checks every node, one process a rank; in every attempt, as its nodes may be others."
    yield "# shellcheck disable=SC2329 # called by watch"
    yield "preflight() {"
    yield f"{INDENT}local code missing"
    if is_contained(cluster):
        yield f"{INDENT}# Nodes that do not have the image yet fetch it, which takes what it takes."
        yield f"{_image(cluster, job)} || return"
    timeout = ["timeout", f"--kill-after={KILL_S}", str(limit_s)]
    yield lines([*timeout, *_srun(cluster, job), "-m", "trainer", "doctor", "--config", '"$config"'])
    yield f"{INDENT}code=$?"
    yield f"{INDENT}# The first process that found something wrong wrote this."
    yield f'{INDENT}[[ -s $logs/exit-code ]] && return "$(<"$logs/exit-code")"'
    yield f"{INDENT}if ((code == 124 || code == 137)); then"
    yield f'{INDENT * 2}missing=$(comm -23 <(scontrol show hostnames "$SLURM_JOB_NODELIST" | sort) \\'
    yield f"{INDENT * 3}<(find \"$logs/nodes\" -type f -printf '%f\\n' 2>/dev/null | sort) | paste -sd ,)"
    yield (
        f'{INDENT * 2}echo "Error: \\`preflight\\` must end within {limit_s} s, but did not. Python did not begin on: '
        '${missing:-no node, it hangs}. See $logs"'
    )
    yield f"{INDENT * 2}return 2"
    yield f"{INDENT}fi"
    yield f'{INDENT}return "$code"'
    yield "}"
    yield "if ((code == 0)) && [[ -z $stopping ]]; then"
    yield f"{INDENT}watch preflight"
    yield "fi"


def _image(cluster: ClusterConfig, job: Job) -> str:
    nodes = cluster.num_nodes
    srun = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
    return lines([*srun, *pyxis(cluster, job), *apptainer(cluster, job), "true"])


def _srun(cluster: ClusterConfig, job: Job) -> list[str]:
    """Return the words that start one process a rank, each of which says what it found before it ends."""
    nodes, per_node = cluster.num_nodes, cluster.ranks_per_node
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes * per_node}", f"--ntasks-per-node={per_node}"]
    if cluster.cpus_per_rank:
        words.append(f"--cpus-per-task={cluster.cpus_per_rank}")
    elif cluster.launcher is not Launcher.srun:
        # The job has one task a node there, with the site's default of cores.
        words.append("--overcommit")
    if cluster.num_gpus_asked:
        words.append("--gpu-bind=none")
    words += ["--kill-on-bad-exit=0", "--wait=0", "--label", *pyxis(cluster, job)]
    return [*words, *apptainer(cluster, job), python(cluster, job)]
