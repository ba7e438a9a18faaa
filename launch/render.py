"""The batch script of a run, from its cluster section. Pure: the same section gives the same script."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator
from importlib import resources

from trainer.config.check_text import check_texts
from trainer.config.cluster import ClusterConfig, ContainerRuntime, Launcher, gres_gpus
from trainer.config.reference import variables_named
from trainer.dist.env import JOB_PORTS

from .fewer import render_fewer
from .preflight import render_preflight
from .words import (
    INDENT,
    Job,
    Template,
    apptainer,
    from_environment,
    in_directive,
    in_double_quotes,
    is_contained,
    lines,
    on_all_nodes,
    own_folders,
    python,
    pyxis,
)

_NO_MODULE = (
    '"Error: \\`cluster.modules\\` must name modules of this site, but $module cannot be loaded on $(hostname) '
    '(exit code $code) instead. \\`module avail\\` lists what there is."'
)
_NO_VARIABLE = (
    '"Error: \\`cluster.environment\\` must name variables that the job is given, but $name is not set on $(hostname) '
    'instead. Export it in the shell that submits, and let sbatch hand it on (SBATCH_EXPORT)."'
)
_NOT_OURS = "is not a folder of this user: a new one is made."


def render(cluster: ClusterConfig, job: Job) -> str:
    """Return the sbatch script.

    Raises:
        ConfigError: A text has control characters, which would begin a line of their own.
    """
    check_texts(
        {"cluster": cluster, "job": {name: str(value) for name, value in dataclasses.asdict(job).items()}}
    )
    template = resources.files("trainer.launch").joinpath("job.sh.tmpl").read_text(encoding="utf-8")
    return Template(template).substitute(
        name=job.name,
        run_dir=shlex.quote(str(job.run_dir)),
        directives="\n".join(_directives(cluster, job)),
        limit_s=cluster.time_limit_min * 60,
        max_stuck=cluster.max_stuck_attempts,
        environment="\n".join(_environment(cluster, job)),
        rendezvous=_rendezvous(cluster),
        folders=_folders(cluster, job),
        package=_package(cluster, job),
        done=lines([*_on_first_node(cluster, job), "-m", "trainer.launch.done", '"$config"']),
        inputs=lines([*_on_first_node(cluster, job), "-m", "trainer.launch.inputs", '"$config"']),
        ranks=_ranks(cluster, job),
        preflight=render_preflight(cluster, job),
        **render_fewer(cluster),
    )


def _directives(cluster: ClusterConfig, job: Job) -> Iterator[str]:
    """Yield comment and #SBATCH line of every setting that is given."""
    days, minutes = divmod(cluster.time_limit_min, 1440)
    gres = cluster.gres
    if cluster.num_gpus_asked and gres_gpus(gres) is None:
        gres = ",".join(filter(None, (f"gpu:{cluster.num_gpus_asked}", gres)))
    per_rank = cluster.cpus_per_rank
    starts_ranks = cluster.launcher is Launcher.srun
    num_tasks = cluster.ranks_per_node if starts_ranks else 1
    cores = per_rank and per_rank * cluster.ranks_per_node // num_tasks
    log = str(job.run_dir / "logs").replace("%", "%%") + "/job-%j.out"
    lines: list[tuple[str, str, object]] = [
        ("Name in the queue.", "job-name", job.name),
        ("Relative paths of the configuration begin here.", "chdir", job.work_dir),
        ("Output of all attempts, one after the other.", "output", log),
        ("", "open-mode", "append"),
        ("Where and for whom.", "partition", cluster.partition),
        ("Who pays.", "account", cluster.account),
        ("Quality of service.", "qos", cluster.qos),
        ("Reserved nodes.", "reservation", cluster.reservation),
        ("Features that nodes must have.", "constraint", cluster.constraint),
        ("Nodes to stay away from.", "exclude", cluster.exclude),
        ("Nodes.", "nodes", cluster.num_nodes),
        ("One task a rank." if starts_ranks else "One launcher a node.", "ntasks-per-node", num_tasks),
        ("CPU cores of a task.", "cpus-per-task", cores),
        ("GPUs of a node.", "gres", gres),
        ("Host memory of a node.", "mem", cluster.mem),
        ("D-HH:MM:SS that an attempt may take.", "time", f"{days}-{minutes // 60:02}:{minutes % 60:02}:00"),
        ("Seconds before the limit at which this shell is told.", "signal", f"B:USR1@{job.signal_lead_s}"),
    ]
    for comment, option, value in lines:
        if value is None:
            continue
        if comment:
            yield f"# {comment}"
        yield f"#SBATCH --{option}={in_directive(str(value))}"
    if cluster.exclusive:
        yield "# No other job on these nodes."
        yield "#SBATCH --exclusive"
    yield "# The job may be put back into the queue: by itself, by preemption, or when a node fails."
    yield "#SBATCH --requeue"
    if cluster.smaller:
        yield f"# What is left of its nodes stays the job's, down to {cluster.min_nodes} (cluster.min_nodes)."
        yield "#SBATCH --no-kill"
    if cluster.sbatch_options:
        yield "# The site's own."
    yield from (f"#SBATCH {option}" for option in cluster.sbatch_options)


def _environment(cluster: ClusterConfig, job: Job) -> Iterator[str]:
    """Yield modules, variables and the site's own lines."""
    if cluster.modules:
        yield "# Modules of the site."
        yield f"for module in {shlex.join(cluster.modules)}; do"
        yield f'{INDENT}module load "$module" && continue'
        yield f"{INDENT}code=$?"
        yield f"{INDENT}say {_NO_MODULE}"
        yield INDENT + """note ended "\\"code\\":2,\\"newest\\":\\"$newest\\"\""""
        yield f"{INDENT}exit 2"
        yield "done"
    if cluster.setup:
        yield "# Lines of cluster.setup."
        yield from cluster.setup
    if is_contained(cluster):
        yield "# Python in the image would take the packages of this side for its own."
        yield "unset PYTHONPATH PYTHONHOME"
    yield "# Variables of the ranks; srun hands on all that is exported here."
    # -m would take a trainer.py of the working directory for the package.
    own = {"PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    variables = {**own, **cluster.environment, **cluster.nccl}
    named = variables_named([cluster.environment, cluster.nccl])
    if named:
        yield "# Variables that cluster.environment names: their values are the job's own and stand in no file."
        yield f"for name in {' '.join(named)}; do"
        yield f"{INDENT}[[ ${{!name+set}} ]] && continue"
        yield f"{INDENT}say {_NO_VARIABLE}"
        yield INDENT + """note ended "\\"code\\":2,\\"newest\\":\\"$newest\\"\""""
        yield f"{INDENT}exit 2"
        yield "done"
    yield from (f"export {name}={from_environment(value)}" for name, value in variables.items())
    if job.hub_folders and "HF_HOME" not in variables:
        yield "# An image may have another home."
        yield f"export HF_HOME=${{HF_HOME:-{shlex.quote(str(job.hub_folders[0]))}}}"


def _rendezvous(cluster: ClusterConfig) -> str:
    lines = [
        "# The ranks meet on the first node.",
        'MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}',
    ]
    if cluster.master_port:
        lines.append(f"MASTER_PORT={cluster.master_port}")
    else:
        lines += [
            "# Jobs that share a node begin at different ports; one that somebody listens on is passed over.",
            f"MASTER_PORT=$(({JOB_PORTS.start} + SLURM_JOB_ID % {len(JOB_PORTS)}))",
            'while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do '
            "MASTER_PORT=$((MASTER_PORT + 1)); done",
        ]
    lines.append("export MASTER_ADDR MASTER_PORT")
    if cluster.launcher is Launcher.deepspeed:
        lines += [
            "# The nodes and their ranks, for the launcher.",
            f"scontrol show hostnames \"$SLURM_JOB_NODELIST\" | sed 's/$/ slots={cluster.ranks_per_node}/' "
            '>"$logs/hostfile"',
        ]
    return "\n".join(lines)


def _folders(cluster: ClusterConfig, job: Job) -> str:
    """Return what makes the run's own folders, of which the cache may be new; empty without an image."""
    if not is_contained(cluster):
        return ""
    own = " ".join(shlex.quote(str(path)) for path in own_folders(job))
    return f"\n# An image sees only the folders that are there.\nmkdir -p {own}\n"


def _on_first_node(cluster: ClusterConfig, job: Job) -> list[str]:
    """Return the words before Python's own, for one task on the first node."""
    srun = ["srun", "--nodes=1", "--ntasks=1", '--nodelist="$SLURMD_NODENAME"', *pyxis(cluster, job)]
    return [*srun, *apptainer(cluster, job), python(cluster, job)]


def _package(cluster: ClusterConfig, job: Job) -> str:
    """Return the body of the step that looks for the package on the first node."""
    holder = "cluster.container.image" if is_contained(cluster) else "cluster.python"
    value = cluster.container.image if is_contained(cluster) else job.python
    look = 'import importlib.util as u; raise SystemExit(0 if u.find_spec("trainer") else 42)'
    body = [
        lines([*_on_first_node(cluster, job), "-c", shlex.quote(look)]),
        f"{INDENT}local code=$?",
        f"{INDENT}if ((code == 42)); then",
        _says(
            in_double_quotes(
                f"Error: `{holder}` must hold the package palimpsest-trainer, but is {value} instead, which does not. "
                "Install it there."
            )
        ),
    ]
    if is_contained(cluster):
        program = "apptainer" if cluster.container.runtime is ContainerRuntime.apptainer else "srun"
        body += [
            f"{INDENT}elif ((code)); then",
            _says(
                in_double_quotes(
                    f"Error: `{holder}` must be an image that starts, but with {value} {program} ends with exit code "
                )
                + '"$code"'
                + in_double_quotes(" instead. Look at the lines above.")
            ),
        ]
    return "\n".join([*body, f"{INDENT}fi"])


def _says(quoted: str) -> str:
    """Return the lines that say a sentence and end with what is not tried again."""
    return f"{INDENT * 2}say {quoted}\n{INDENT * 2}return 2"


def _ranks(cluster: ClusterConfig, job: Job) -> str:
    """Return the function that starts the ranks, and what its words mean."""
    tasks = cluster.ranks_per_node if cluster.launcher is Launcher.srun else 1
    srun = on_all_nodes(cluster, tasks)
    if cluster.cpus_per_rank:
        # srun does not take it over from sbatch.
        srun.append(f"--cpus-per-task={cluster.cpus_per_rank * cluster.ranks_per_node // tasks}")
    if cluster.num_gpus_asked:
        # Every rank sees all GPUs of its node, and takes the one of its local rank.
        srun.append("--gpu-bind=none")
    srun += ["--kill-on-bad-exit=1", "--label", *pyxis(cluster, job)]
    inner = ["bash", "-c", '"$on_node"', "rank", *apptainer(cluster, job), python(cluster, job)]
    body = lines([*srun, *inner, *_launcher_words(cluster), "train", "--config", '"$config"'])
    comment, on_node = _on_node(cluster)
    return "\n".join(
        [
            comment,
            "# shellcheck disable=SC2016",
            f"on_node={shlex.quote(on_node)}",
            "# A rank that dies takes along the others, who would wait for it.",
            "# shellcheck disable=SC2329 # called by watch",
            "ranks() {",
            body,
            "}",
        ]
    )


def _launcher_words(cluster: ClusterConfig) -> list[str]:
    per_node = cluster.ranks_per_node
    nodes = '"$SLURM_JOB_NUM_NODES"' if cluster.smaller else cluster.num_nodes
    match cluster.launcher:
        case Launcher.srun:
            return ["-m", "trainer"]
        case Launcher.torchrun:
            return [
                *("-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={per_node}"),
                *("--node-rank=NODE_RANK", '--master-addr="$MASTER_ADDR"', '--master-port="$MASTER_PORT"'),
                *("--max-restarts=0", "-m", "trainer"),
            ]
        case Launcher.deepspeed:
            return [
                *(
                    "-m",
                    "deepspeed.launcher.runner",
                    '--hostfile="$logs/hostfile"',
                    "--no_ssh",
                    "--node_rank=NODE_RANK",
                ),
                *('--master_addr="$MASTER_ADDR"', '--master_port="$MASTER_PORT"', "--no_local_rank"),
                *("--log_level=critical", "--module", "trainer"),
            ]


def _on_node(cluster: ClusterConfig) -> tuple[str, str]:
    """Return what each node's shell does before it becomes the rank or the launcher, and why it is quoted so."""
    # Until Python listens, a signal would end it; an ignored one stays ignored in launchers, who do not listen.
    steps = ['trap "" USR1']
    if cluster.scratch:
        steps += _own_scratch(shlex.quote(cluster.scratch))
    if cluster.launcher is Launcher.srun:
        steps.append('exec "$@"')
        return "# Runs on every node. USR1 is ignored until Python listens to it.", "; ".join(steps)
    steps.append('exec "${@//NODE_RANK/$SLURM_NODEID}"')
    comment = (
        "# Runs on every node, so it is in single quotes: SLURM_NODEID is 0 in this shell. USR1 is ignored, so that\n"
        "# it does not end the launcher; the ranks listen to it."
    )
    return comment, "; ".join(steps)


def _own_scratch(scratch: str) -> list[str]:
    """Return what makes a folder of the job that nobody else can write to: others may know its name before it is there.

    Args:
        scratch: The folder of a node, quoted.
    """
    is_own = '[[ ! -L $TMPDIR && -d $TMPDIR && -O $TMPDIR ]] && chmod 700 "$TMPDIR"'
    say = f'echo "$(hostname): $TMPDIR {_NOT_OURS}" >&2'
    return [
        f"mkdir -p {scratch}",
        f'export TMPDIR={scratch}/palimpsest-"$SLURM_JOB_ID"',
        # Of all ranks of a node one makes it.
        f'mkdir -m 700 "$TMPDIR" 2>/dev/null || {{ {is_own}; }} || '
        f'{{ {say}; TMPDIR=$(mktemp -d "$TMPDIR.XXXXXXXX") || exit 2; }}',
    ]
