#!/usr/bin/env bash
# Runs every check of the repository: linters first, then the tests. All of them run; the exit code
# is 0 only if all pass. Makes .venv where it is missing or older than pyproject.toml.
#
#   bash tests/run.sh                      everything but the tests marked slow or gpu
#   bash tests/run.sh -m slow              more arguments go to pytest
#   bash tests/run.sh tests/house -k wheel
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=launch/venv.sh
source launch/venv.sh

ensure_venv "$PWD" test,dev || exit 1
export PATH=$PWD/.venv/bin:$PATH
# One thread a process: the tensors of the tests are tiny, and some tests start several ranks.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export WANDB_MODE=offline

failed=()
outputs=$(mktemp -d)
names=()
pids=()

# start NAME COMMAND...: runs a command beside all others.
start() {
    local name=$1
    shift
    "$@" </dev/null >"$outputs/$name" 2>&1 &
    names+=("$name")
    pids+=("$!")
}

# finish NAME: shows the output of a command once it has ended, and notes its name if it failed.
finish() {
    local i
    for i in "${!names[@]}"; do
        if [[ ${names[i]} == "$1" ]]; then
            wait "${pids[i]}" || failed+=("$1")
            printf '\n== %s\n' "$1"
            cat "$outputs/$1"
        fi
    done
}

# shellcheck disable=SC2329 # called by the traps
clean_up() {
    local running
    running=$(jobs -pr)
    # shellcheck disable=SC2086 # one word a process
    [[ $running ]] && kill $running
    rm -rf "$outputs"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

roots=()
for root in .ci benchmarks docker docs launch tests trainer; do
    [[ -d $root ]] && roots+=("$root")
done
mapfile -t scripts < <(find "${roots[@]}" -name '*.sh' | sort)
[[ -f .ci/run ]] && scripts+=(.ci/run)

# Jobs of the test cluster mostly wait, for SLURM's clock and for each other, so they run beside everything else, from
# the start. No test is about how fast the machine is; only what hangs meets the limit of an hour.
cluster="pytest on a SLURM cluster"
if (($# == 0)); then
    start "$cluster" python -m pytest --timeout=3600 -m "cluster and not (slow or gpu)" tests/cluster
fi

start "ruff check" ruff check .
start "ruff format" ruff format --check .
start "mypy" mypy
start "import-linter" lint-imports --no-logo
start "shellcheck" shellcheck --external-sources "${scripts[@]}"
start "hadolint" hadolint docker/Dockerfile
for name in "ruff check" "ruff format" mypy import-linter shellcheck hadolint; do
    finish "$name"
done

printf '\n== pytest\n'
if ((${#failed[@]})); then
    printf 'FAILED before the tests:\n' >&2
    printf '  %s\n' "${failed[@]}" >&2
fi
if (($#)); then
    python -m pytest --timeout=3600 "$@" </dev/null || failed+=("pytest")
else
    # Four workers, as ranks wait for each other much of the time; each with whole files, so that the fixtures of a file
    # are made once, and each with its own ranks.
    python -m pytest --timeout=3600 -n 4 --dist loadfile -m "not (slow or gpu or cluster)" </dev/null ||
        failed+=("pytest")
    finish "$cluster"
fi
if ((${#failed[@]})); then
    printf '\nFAILED:\n' >&2
    printf '  %s\n' "${failed[@]}" >&2
    exit 1
fi
