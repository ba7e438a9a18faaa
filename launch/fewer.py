"""What a batch script has beside all others where its job may go on with fewer nodes, and what must hold then.

SLURM would put a job that has lost a node back into the queue, to wait for as many nodes as before. `--no-kill` keeps
the others: the script asks which nodes answer, and runs itself anew on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources

from trainer.command.counted import config_json
from trainer.command.plan import forecast_without_torch
from trainer.config.cluster import ClusterConfig
from trainer.config.rule import Problem, must
from trainer.config.schema import RunConfig

from .words import Template

ANSWER_S = 60
"""A node that starts nothing within so many seconds is lost."""
KEEP_S = 60
"""How often others look whether the node of the script is there."""
NUM_KEEPERS = 3

_ASK = """\
left=() lost=()
# Whatever ended the ranks, or the checks before them, may have been the loss of a node.
((code)) && [[ -z $stopping ]] && ask_nodes
((${#lost[@]})) && code=75
"""
_LOST_IN_CHECKS = """\
    # A node may have been lost meanwhile, whatever the others say of it.
    ((code)) && ask_nodes && ((${#lost[@]})) && return 75
"""


def render_fewer(cluster: ClusterConfig) -> dict[str, str]:
    """Return the parts of job.sh.tmpl by name; all are empty where the job may not shrink."""
    if not cluster.smaller:
        return {"stopping": "", "fewer": "", "ask": "", "go_on": ""}
    values = {
        "min_nodes": cluster.fewest_nodes,
        "num_nodes": cluster.num_nodes,
        "limit_s": cluster.time_limit_min * 60,
        "answer_s": ANSWER_S,
        "keep_s": KEEP_S,
        "num_keepers": NUM_KEEPERS,
    }
    fewer, go_on = (
        Template(resources.files("trainer.launch").joinpath(name).read_text(encoding="utf-8")).substitute(
            values
        )
        for name in ("fewer.sh.tmpl", "go_on.sh.tmpl")
    )
    return {"stopping": "${stopping-}", "fewer": fewer, "ask": _ASK, "go_on": go_on}


def in_checks(cluster: ClusterConfig) -> dict[str, str]:
    """Return the parts of the step that checks all nodes."""
    if not cluster.smaller:
        return {"lost": "", "several": ""}
    return {"lost": _LOST_IN_CHECKS, "several": " && SLURM_JOB_NUM_NODES > 1"}


def shrink_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem where routers train and ranks that are left would share a step unevenly, which they refuse.

    Raises:
        TrainerError: The model's config.json cannot be used.
    """
    cluster, train = config.cluster, config.train
    num_packs = train.global_batch_tokens // config.data.seq_len
    ranks = [nodes * cluster.ranks_per_node for nodes in cluster.smaller]
    odd = [count for count in ranks if num_packs % (count * train.micro_batch_size)]
    if odd and _trains_routers(config):
        yield must(
            "cluster.min_nodes",
            f"null where routers train, unless ranks x micro batch divide the {num_packs} packs of a step for every "
            f"number of nodes from it on, which {odd[0]} x {train.micro_batch_size} does not",
            cluster.min_nodes,
            "Leave it out, or change train.global_batch_tokens.",
        )


def shrink_memory_problems(config: RunConfig) -> Iterator[Problem]:
    """Yield a problem where the run does not fit the GPUs of the fewest nodes.

    Args:
        config: Fitted; it fits the GPUs of all nodes.
    """
    cluster = config.cluster
    if not cluster.smaller or not cluster.num_gpus_asked or _fits(config, cluster.fewest_nodes):
        return
    enough = next((nodes for nodes in cluster.smaller if _fits(config, nodes)), cluster.num_nodes)
    yield must(
        "cluster.min_nodes",
        f"null, or at least {enough}, with fewer of which this run does not fit the GPUs (cluster.gpu_gib)",
        cluster.min_nodes,
        f"Set cluster.min_nodes={enough}.",
    )


def _fits(config: RunConfig, num_nodes: int) -> bool:
    """Tell whether so many nodes are not known to be too few."""
    found = forecast_without_torch(config, num_nodes * config.cluster.ranks_per_node)
    return found is None or found.fits is not False


def _trains_routers(config: RunConfig) -> bool:
    """Tell whether a loss of routers is part of training, or their bias moves; run/uneven.py asks the loaded model."""
    if config.train.router_bias_rate:
        return True
    found = config_json(config.model)[0]
    sections = (found, found.get("text_config") or {})
    return any(one.get("output_router_logits") and one.get("router_aux_loss_coef") for one in sections)
