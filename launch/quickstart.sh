#!/usr/bin/env bash
# From a fresh checkout to a trained, exported model in some minutes, without a GPU or a model hub.
#
#   bash launch/quickstart.sh [overrides...]     e.g. train.max_steps=10
#
# Needs Python 3.11 or newer, 6 GB of memory, 5 GB of disk, and PyPI once.
# Run it again after an interruption: it keeps what is there and resumes the training. Other
# overrides need another run directory: QUICKSTART_RUN_DIR=runs/second bash launch/quickstart.sh ...
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=launch/venv.sh
source launch/venv.sh

run_dir=${QUICKSTART_RUN_DIR:-runs/quickstart}
cache=$HOME/.cache/palimpsest

section() {
    printf '\n[%d/7 %3ds] %s\n' "$1" "$SECONDS" "$2"
}

section 1 "Environment"
ensure_venv "$root"
export PATH=$root/.venv/bin:$PATH
python -c 'import sys, trainer; print(f"palimpsest {trainer.__version__}, Python {sys.version.split()[0]}")'
# Two ranks, on two GPUs or on the CPU; one on a machine with one GPU, where ZeRO-3 would have nothing to
# shard and only cost time. Nothing is looked up on a hub.
gpus=$(python -c 'import torch; print(torch.cuda.device_count())')
ranks=$((gpus == 1 ? 1 : 2))
stage=$((gpus == 1 ? 1 : 3))
if ((gpus == 0)); then
    export DS_ACCELERATOR=cpu
fi
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [[ -z ${OMP_NUM_THREADS:-} ]]; then
    cores=$(nproc)
    export OMP_NUM_THREADS=$((cores > 2 ? cores / 2 : 1))
fi

section 2 "Base model: SmolLM2-135M-Instruct"
base_dir=$(python -m trainer.model.embedded)
echo "$base_dir"

section 3 "Corpus: the Python language reference"
corpus=$cache/corpora/python-reference-$(python -c 'import platform; print(platform.python_version())').jsonl
if [[ ! -f $corpus ]]; then
    python -m trainer.launch.corpus "$corpus"
fi
echo "$corpus"

overrides=(experiment=quickstart "run_dir=$run_dir" "cluster.ranks_per_node=$ranks" "zero=zero$stage" "data.sources.python_reference.path=$corpus" "$@")

section 4 "palimpsest replay generate ${overrides[*]}"
palimpsest replay generate "${overrides[@]}"

if python -m trainer.launch.quickstart is-trained "$run_dir"; then
    section 5 "Training: $run_dir is trained already"
else
    section 5 "palimpsest train ${overrides[*]}"
    rm -rf "$run_dir/export" # of an earlier training
    palimpsest train "${overrides[@]}" || {
        code=$?
        printf '\nTraining stopped (exit code %d). Run this script again to go on from the last checkpoint.\n' "$code" >&2
        exit "$code"
    }
fi

if [[ -f $run_dir/export/config.json ]]; then
    section 6 "Export: $run_dir/export is there already"
else
    section 6 "palimpsest export run_dir=$run_dir"
    palimpsest export "run_dir=$run_dir"
fi

section 7 "Result"
result=0
python -m trainer.launch.quickstart show "$run_dir" "$base_dir" || result=$?
printf '\nTotal time: %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
exit "$result"
