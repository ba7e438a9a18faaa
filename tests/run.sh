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

# check NAME COMMAND...: runs a command and notes its name if it fails.
check() {
    local name=$1
    shift
    printf '\n== %s\n' "$name"
    "$@" </dev/null || failed+=("$name")
}

roots=()
for root in .ci benchmarks docker launch tests trainer; do
    [[ -d $root ]] && roots+=("$root")
done
mapfile -t scripts < <(find "${roots[@]}" -name '*.sh' | sort)
[[ -f .ci/run ]] && scripts+=(.ci/run)

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "import-linter" lint-imports --no-logo
check "shellcheck" shellcheck --external-sources "${scripts[@]}"

printf '\n== pytest\n'
if ((${#failed[@]})); then
    printf 'FAILED before the tests:\n' >&2
    printf '  %s\n' "${failed[@]}" >&2
fi
if (($#)); then
    python -m pytest --timeout=600 "$@" </dev/null || failed+=("pytest")
else
    # What has a process for itself runs in two workers, each with whole files, so that the fixtures of a file are made
    # once; what starts ranks or measures time then has the machine alone.
    alone="dist or cluster or timing"
    python -m pytest --timeout=600 -n 2 --dist loadfile -m "not (slow or gpu or $alone)" </dev/null ||
        failed+=("pytest")
    printf '\n== pytest, one at a time\n'
    python -m pytest --timeout=600 -m "($alone) and not (slow or gpu)" tests/dist tests/cluster tests/unit/cli </dev/null ||
        failed+=("pytest, one at a time")
fi
((${#failed[@]} == 0))
