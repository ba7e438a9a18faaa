#!/usr/bin/env bash
# Builds the image with docker, podman or buildah, whichever is there.
#
#   docker/build.sh                         for GPUs: torch with CUDA, flash-attn from source (an hour), DeepSpeed's ops
#   docker/build.sh --cpu                   without a GPU, small: minutes
#
#   --tag NAME          default: palimpsest, or palimpsest:cpu
#   --engine NAME       docker, podman or buildah
#   --pip-conf FILE     pip's settings for the build (an index of the site); a secret, in no layer
#   --ca-bundle FILE    certificates for it; `cert = /run/secrets/ca.crt` in the pip.conf names them
#   --packages FOLDER   wheels that no index has; `find-links = /wheels` is set
#   --dry-run           print the command
#
# All else goes to the engine, and wins over what is set here:
#
#   docker/build.sh --build-arg FLASH_ATTN=none
#   docker/build.sh --build-arg FLASH_ATTN=wheel --build-arg FLASH_ATTN_WHEEL=https://.../flash_attn-...whl
#   docker/build.sh --build-arg BASE=ubuntu --build-arg RUNTIME_BASE=ubuntu --build-arg DS_OPS= --build-arg FLASH_ATTN=none
#   docker/build.sh --build-arg EXTRAS=gpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/...
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
    echo "Error: $*" >&2
    exit 2
}

# A client whose daemon does not answer builds nothing.
find_engine() {
    if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
        echo docker
    elif command -v podman >/dev/null; then
        echo podman
    elif command -v buildah >/dev/null; then
        echo buildah
    else
        fail "Building needs docker (with its daemon running), podman or buildah, but none is here. On Debian or Ubuntu:" \
            "apt install podman"
    fi
}

# Prints the value of a key of versions.env, the only place where versions are written.
version_of() {
    local value
    value=$(sed -n "s/^$1=//p" "$root/docker/versions.env")
    [[ $value ]] || fail "docker/versions.env must have a line $1=..., but has none."
    echo "$value"
}

git_says() {
    git -C "$root" "$@" 2>/dev/null
}

accelerator=cuda
tag=
engine=
dry=
options=()
while (($#)); do
    case $1 in
        --cpu) accelerator=cpu ;;
        --tag | --engine | --pip-conf | --ca-bundle | --packages)
            (($# > 1)) || fail "$1 needs a value."
            case $1 in
                --tag) tag=$2 ;;
                --engine) engine=$2 ;;
                --pip-conf | --ca-bundle)
                    [[ -f $2 ]] || fail "$1 must name a file, but $2 is none."
                    [[ $1 == --pip-conf ]] && id=pip.conf || id=ca.crt
                    options+=(--secret "id=$id,src=$(realpath "$2")")
                    ;;
                --packages)
                    [[ -d $2 ]] || fail "--packages must name a folder, but $2 is none."
                    options+=(--build-context "wheels=$(realpath "$2")")
                    ;;
            esac
            shift
            ;;
        --dry-run) dry=1 ;;
        --help | -h)
            sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
            exit
            ;;
        *) break ;;
    esac
    shift
done
engine=${engine:-$(find_engine)}

if [[ $accelerator == cuda ]]; then
    tag=${tag:-palimpsest}
    base=$(version_of BASE)
    runtime_base=$(version_of RUNTIME_BASE)
    # Those that settings of a run can reach and that do not depend on the CPU of this machine: cpu_adam and async_io are
    # compiled for it alone.
    arguments=("DS_OPS=FUSED_ADAM PIN_MEMORY QUANTIZER" FLASH_ATTN=source "EXTRAS=gpu,qlora,eval" "CUDA_ARCHS=$(version_of CUDA_ARCHS)"
        "PYPI_FLASH_ATTN=$(version_of PYPI_FLASH_ATTN)")
else
    tag=${tag:-palimpsest:cpu}
    base=$(version_of CPU_BASE)
    runtime_base=$base
    # No op: on a CPU the trainer uses none of them.
    arguments=(DS_OPS= FLASH_ATTN=none EXTRAS=qlora
        "TORCH_INDEX=${PALIMPSEST_TORCH_INDEX-https://download.pytorch.org/whl/cpu}")
fi
for name in PYPI_SETUPTOOLS PYPI_WHEEL PYPI_NINJA PYPI_TORCH PYPI_DEEPSPEED; do
    arguments+=("$name=$(version_of "$name")")
done
revision=$(git_says rev-parse HEAD || true)
[[ $revision && $(git_says status --porcelain) ]] && revision+=-dirty
# An address may hold a token.
source=$(git_says remote get-url origin | sed 's#//[^/@]*@#//#' || true)
licenses=$(sed -n 's/^license *= *"\(.*\)"/\1/p' "$root/pyproject.toml")
arguments+=("ACCELERATOR=$accelerator" "BASE=$base" "RUNTIME_BASE=$runtime_base"
    "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$root/trainer/__init__.py")" "REVISION=$revision" "SOURCE=$source"
    "LICENSES=${licenses:-NOASSERTION}" "CREATED=$(date --utc +%FT%TZ)")

case $engine in
    docker) command=(docker build) ;;
    podman | buildah)
        # Docker finds the file by its name; older versions of these two do not.
        command=("$engine" build --ignorefile "$root/docker/Dockerfile.dockerignore")
        ;;
    *) fail "--engine must be docker, podman or buildah, but is $engine instead." ;;
esac
command+=(--file "$root/docker/Dockerfile" --tag "$tag")
for argument in "${arguments[@]}"; do
    command+=(--build-arg "$argument")
done
command+=(${options[@]+"${options[@]}"} "$@" "$root")

if [[ $dry ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
echo "Building $tag with $engine"
"${command[@]}"
if [[ $engine == buildah ]]; then
    size=$(buildah images --format '{{.Size}}' "$tag")
else
    size=$("$engine" image inspect --format '{{.Size}}' "$tag")
fi
echo "Built $tag in $((SECONDS / 60)) min $((SECONDS % 60)) s; size: $size"
