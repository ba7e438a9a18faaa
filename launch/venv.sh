# shellcheck shell=bash
# Makes the virtual environment of a checkout. Sourced by launch/quickstart.sh and tests/run.sh.
#
#   ensure_venv ROOT [EXTRAS]     ROOT/.venv holds the project (editable) and the extras, e.g. test,dev
#
# Nothing happens when that was done before and pyproject.toml did not change since.
# PYTHON                  the interpreter to make it with; default: the first Python >= 3.11 found
# PALIMPSEST_TORCH_INDEX  where a machine without an NVIDIA GPU finds torch's small CPU build; empty:
#                         pip's own index only

# Prints the first usable Python 3.11 or newer.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "No Python 3.11 or newer with its venv module was found. On Debian or Ubuntu:" >&2
    echo "  apt install python3 python3-venv" >&2
    return 1
}

# Prints pip's arguments for the CPU build of torch, one a line; nothing when there is a GPU.
torch_index() {
    local index=${PALIMPSEST_TORCH_INDEX-https://download.pytorch.org/whl/cpu}
    if [[ -z $index || $(uname -s) != Linux ]] || command -v nvidia-smi >/dev/null; then
        return 0
    fi
    if "$1" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' \
        "$index/torch/" >/dev/null 2>&1; then
        printf '%s\n' --extra-index-url "$index"
    fi
}

# pip install into VENV, showing only what is downloaded; the whole story is in VENV/install.log. Python compiles a
# module at its first import: most of what torch brings never is. ensure_venv sees to it that this is kept.
pip_install() {
    local venv=$1
    shift
    "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile "$@" \
        </dev/null 2>&1 | tee -a "$venv/install.log" |
        sed -un 's/^ *Downloading \(.*\/\)\{0,1\}\([^/]*\.\(whl\|tar\.gz\).*\)/    \2/p'
    if ((PIPESTATUS[0] != 0)); then
        echo "pip failed. The end of $venv/install.log:" >&2
        tail -n 20 "$venv/install.log" >&2
        return 1
    fi
}

ensure_venv() {
    local root=$1 extras=${2:-} python digest stamp torch
    local -a index=()
    python=$root/.venv/bin/python
    # Images often set this; every process would then compile torch anew, which doubles the time it takes to start.
    unset PYTHONDONTWRITEBYTECODE
    if [[ ! -x $python ]]; then
        local base
        base=$(find_python) || return 1
        echo "Making $root/.venv with $("$base" --version)"
        "$base" -m venv "$root/.venv" || return 1
    fi
    digest=$("$python" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$root/pyproject.toml") || return 1
    stamp=$root/.venv/.installed-${extras:-base}
    if [[ -f $stamp && $(<"$stamp") == "$digest" ]]; then
        return 0
    fi
    if [[ -z $extras ]] && grep -qsFx "$digest" "$root"/.venv/.installed-*; then
        return 0 # an installation with extras holds everything the plain one does
    fi
    echo "Installing the project${extras:+ with [$extras]} into $root/.venv"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null || return 1
    # torch first and by itself: the index of its CPU build is asked for nothing else.
    torch=$("$python" -c 'import sys, tomllib
wanted = tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"]
print(next(line for line in wanted if line.startswith("torch>")))' "$root/pyproject.toml") || return 1
    mapfile -t index < <(torch_index "$python")
    # wheel: without it an older pip installs DeepSpeed, which comes as source only, the legacy way.
    pip_install "$root/.venv" "setuptools>=77" wheel ninja "$torch" ${index[@]+"${index[@]}"} || return 1
    # DeepSpeed compiles what it needs at the first run, not now.
    DS_BUILD_OPS=0 pip_install "$root/.venv" --editable "$root${extras:+[$extras]}" || return 1
    printf '%s\n' "$digest" >"$stamp"
}
