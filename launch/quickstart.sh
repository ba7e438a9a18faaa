#!/usr/bin/env bash
# From a fresh checkout to a trained, exported model in some minutes, without a GPU or a model hub: makes .venv where it
# is missing, then runs `palimpsest quickstart`, which --help explains.
#
#   bash launch/quickstart.sh [overrides...]     e.g. run_dir=runs/second train.max_steps=10
#
# Needs Python 3.11 or newer, 6 GB of memory, 5 GB of disk, and PyPI once.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
# shellcheck source=launch/venv.sh
source launch/venv.sh

ensure_venv "$root"
# In place of this shell: the total time counts from here, and signals reach it.
exec "$root/.venv/bin/palimpsest" quickstart "$@"
