#!/usr/bin/env bash
# Builds the documentation into build/docs/site. Makes .venv where it is missing or older than pyproject.toml.
#
#   bash docs/build.sh [FOLDER]     FOLDER/site instead
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/venv.sh
source launch/venv.sh

ensure_venv "$PWD" docs
exec .venv/bin/python docs/build.py "$@"
