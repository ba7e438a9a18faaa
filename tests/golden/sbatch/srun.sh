#!/bin/bash
# first, written by `palimpsest submit`. Submit again rather than edit: every attempt of the job reads
# this file, and the frozen config.yaml beside it.
#
# Name in the queue.
#SBATCH --job-name=first
# Relative paths of the configuration begin here.
#SBATCH --chdir=/shared/project
# Output of all attempts, one after the other.
#SBATCH --output=/shared/runs/first/logs/job-%j.out
#SBATCH --open-mode=append
# Nodes.
#SBATCH --nodes=4
# One task a rank.
#SBATCH --ntasks-per-node=8
# CPU cores of a task.
#SBATCH --cpus-per-task=8
# GPUs of a node.
#SBATCH --gres=gpu:8
# Host memory of a node.
#SBATCH --mem=0
# D-HH:MM:SS that an attempt may take.
#SBATCH --time=1-00:00:00
# Seconds before the limit at which this shell is told.
#SBATCH --signal=B:USR1@180
# The job may be put back into the queue: by itself, by preemption, or when a node fails.
#SBATCH --requeue

set -uo pipefail

run_dir=/shared/runs/first
config=$run_dir/config.yaml
# One line an attempt's start and end; `palimpsest status` reads it.
record=$run_dir/attempts.jsonl

say() { printf '[palimpsest %(%F %T)T] %s\n' -1 "$*"; }

note() { printf '{"event":"%s","attempt":%d,"job":%d,"time":%(%s)T,%s}\n' "$1" "$attempt" "$SLURM_JOB_ID" -1 "$2" >>"$record"; }

# A checkpoint gets this name only when it is committed whole.
newest_checkpoint() {
    find "$run_dir/checkpoints" -mindepth 1 -maxdepth 1 -type d -name 'step-[0-9]*[0-9]' -printf '%f\n' 2>/dev/null |
        sort | tail -n 1
}

# SLURM's warning reaches this shell alone: it is passed on until the ranks, which may still be loading, have stopped. The
# next attempt, after a lost node or a requeue, has this job's number too and is not meant: scancel, which waits 5 s and
# tries again while a job is on its way into the queue, may outlive this shell and is not left that long at first.
stopping=
step=
tell_ranks() {
    local pause=1
    while kill -0 "$step" 2>/dev/null && [[ ! -d $run_dir/logs/attempt-$((attempt + 1)) ]]; do
        timeout $((pause + 4)) scancel --signal=USR1 "$SLURM_JOB_ID"
        sleep "$pause"
        ((pause < 10)) && pause=$((2 * pause))
    done &
}
# shellcheck disable=SC2329 # called by the trap
stop() {
    [[ $stopping ]] && return
    stopping=1
    say "SLURM asks this job to stop: telling the ranks to save."
    [[ $step ]] && tell_ranks
}
trap stop USR1 TERM

# Every attempt has its own folder of logs.
attempt=1
mkdir -p "$run_dir/logs"
until mkdir "$run_dir/logs/attempt-$attempt" 2>/dev/null; do
    if [[ ! -d $run_dir/logs/attempt-$attempt ]]; then
        say "run_dir must be a folder that $(hostname) can write to, but $run_dir is not."
        exit 2
    fi
    attempt=$((attempt + 1))
done
logs=$run_dir/logs/attempt-$attempt
# Ranks log there, and leave their exit code there, which some launchers lose.
export PALIMPSEST_LOG_DIR=$logs
# When this attempt must be over, in seconds since 1970.
export PALIMPSEST_DEADLINE=$((${SLURM_JOB_START_TIME:-$(date +%s)} + 86400))

# Attempts since the last submission that found the same newest checkpoint: after 3, another will not help.
newest=$(newest_checkpoint)
touch "$record"
num_stuck=$(awk -v key="\"newest\":\"$newest\"" \
    '/"event":"submitted"/ {n = 0} /"event":"started"/ && index($0, key) {n++} END {print n + 0}' "$record")
if ((num_stuck >= 3)); then
    say "Stopped: the last $num_stuck attempts committed no checkpoint after ${newest:-the start}. The end of the last one:"
    last=$(find "$run_dir/logs" -path "*/attempt-*/console.log" -printf '%T@ %p\n' | sort -n | tail -n 1 | cut -d ' ' -f 2-)
    [[ -n $last ]] && tail -n 20 "$last"
    say "Mend the cause, then submit again: cd $PWD && palimpsest submit --config $config"
    note gave_up "\"newest\":\"$newest\""
    exit 1
fi
note started "\"newest\":\"$newest\",\"nodes\":\"$SLURM_JOB_NODELIST\",\"restarts\":${SLURM_RESTART_COUNT:-0}"
say "Attempt $attempt of job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, from ${newest:-the start}."

# Variables of the ranks; srun hands on all that is exported here.
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1

# The ranks meet on the first node.
MASTER_ADDR=${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}
# Jobs that share a node begin at different ports; one that somebody listens on is passed over.
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
export MASTER_ADDR MASTER_PORT

# Runs a command beside this shell, so that signals are answered meanwhile; its exit code is in $code.
watch() {
    "$@" > >(tee -a "$logs/console.log") 2>&1 &
    step=$!
    [[ $stopping ]] && tell_ranks
    while :; do
        wait "$step"
        code=$?
        # A trap ends `wait` before the command ends.
        kill -0 "$step" 2>/dev/null || break
    done
    step=
}

# Is there all that was asked for? A run may be over whose job is put back into the queue, as by a node that fails after
# the last step: it is not proved and compared anew. On the first node.
# shellcheck disable=SC2329 # called by watch
is_done() {
    srun --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" /shared/venv/bin/python -m \
        trainer.launch.done "$config"
}

# Is the package there? On the first node.
# shellcheck disable=SC2329 # called by watch
package() {
    srun --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" /shared/venv/bin/python -c \
        'import importlib.util as u; raise SystemExit(0 if u.find_spec("trainer") else 42)'
    local code=$?
    if ((code == 42)); then
        say "Error: \`cluster.python\` must hold the package palimpsest-trainer, but is /shared/venv/bin/python instead, which does not. Install it there."
        return 2
    fi
}

# What ranks must find beside it: the model's folder and the token stores. Made once, on the first node.
# shellcheck disable=SC2329 # called by watch
inputs() {
    srun --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" /shared/venv/bin/python -m \
        trainer.launch.inputs "$config"
}

# Runs on every node. USR1 is ignored until Python listens to it.
# shellcheck disable=SC2016
on_node='trap "" USR1; exec "$@"'
# A rank that dies takes along the others, who would wait for it.
# shellcheck disable=SC2329 # called by watch
ranks() {
    srun --nodes=4 --ntasks=32 --ntasks-per-node=8 --cpus-per-task=8 --gpu-bind=none --kill-on-bad-exit=1 \
        --label bash -c "$on_node" rank /shared/venv/bin/python -m trainer train --config "$config"
}

code=0
if [[ $(tail -n 1 "$run_dir/ledger.jsonl" 2>/dev/null) == '{"event":"concluded"'* ]]; then
    watch is_done
    if ((code == 0)); then
        note ended "\"code\":0,\"newest\":\"$newest\""
        say "Done: nothing was left to train."
        exit 0
    fi
    code=0
fi
if [[ -z $newest ]]; then
    watch package
fi

# Nodes of this job that left no file of their name in a folder.
# shellcheck disable=SC2329 # called by preflight
nodes_without() {
    comm -23 <(scontrol show hostnames "$SLURM_JOB_NODELIST" | sort) \
        <(find "$1" -type f -printf '%f\n' 2>/dev/null | sort) | paste -sd ,
}

# Checks every node, one process a rank; in every attempt, as its nodes may be others.
# shellcheck disable=SC2329 # called by watch
preflight() {
    local code missing state
    timeout --kill-after=2 57 srun --nodes=4 --ntasks=32 --ntasks-per-node=8 --cpus-per-task=8 \
        --gpu-bind=none --kill-on-bad-exit=0 --wait=0 --label /shared/venv/bin/python -m trainer doctor \
        --config "$config"
    code=$?
    # The first process that found something wrong wrote this.
    [[ -s $logs/exit-code ]] && return "$(<"$logs/exit-code")"
    ((code == 0)) && return
    # SIGUSR1 and SIGTERM ask the job to stop; a job that somebody cancels loses this step as well. No node's fault.
    ((code == 138 || code == 143)) && return "$code"
    state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>/dev/null)
    [[ $state && $state != RUNNING ]] && return "$code"
    # Nodes on which Python began left their names.
    missing=$(nodes_without "$logs/nodes")
    if [[ $missing ]]; then
        echo "Error: \`preflight\` must begin on every node, but did not on $missing (exit code $code) instead. Look at" \
            "the lines above. Until it is mended submit with cluster.exclude='$missing' (sbatch --exclude), or have" \
            "it drained: scontrol update NodeName=$missing State=DRAIN Reason=palimpsest."
        return 2
    elif ((code == 124 || code == 137)); then
        echo "Error: \`preflight\` must end within 57 s, but hangs instead. See $logs for the node, and raise" \
            "cluster.preflight.timeout_s if it only takes so long to load torch."
        return 2
    fi
    return "$code"
}
if ((code == 0)) && [[ -z $stopping ]]; then
    watch preflight
fi

if ((code == 0)) && [[ -z $newest && -z $stopping ]]; then
    watch inputs
fi
if [[ $stopping ]]; then
    code=75
elif ((code == 0)); then
    watch ranks
    # The first rank that ended in a way it knows wrote this; a launcher may have made 1 of it.
    [[ -s $logs/exit-code ]] && code=$(<"$logs/exit-code")
fi
note ended "\"code\":$code,\"newest\":\"$(newest_checkpoint)\""

# 0: done. 2, 3, 4: something a person must mend. All else, 75 (stopped with a checkpoint) and crashes: try again.
case $code in
    0)
        say "Done."
        exit 0
        ;;
    2 | 3 | 4)
        say "Not tried again: exit code $code. See $logs"
        exit "$code"
        ;;
esac
# A job that somebody cancelled, or that SLURM requeues by itself, is no longer running.
state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T 2>/dev/null)
if [[ $state == RUNNING ]]; then
    say "Exit code $code: the job requeues itself."
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
