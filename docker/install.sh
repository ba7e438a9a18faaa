#!/bin/sh
# Installs into $VENV, one part at a time, in the first stage of docker/Dockerfile: each part is a layer, so that another
# version of peft does not compile flash-attn anew.
#
#   install.sh torch|deepspeed|flash-attn|rest|compile
#
# What each part reads from its environment is set by the Dockerfile.
set -eu

python=$VENV/bin/python
# A folder of wheels that no index has; empty by default.
wheels=/wheels

fail() {
    echo "Error: $*" >&2
    exit 2
}

# Everything but torch comes as a wheel, or builds with what is installed: a build environment of its own would get
# another torch.
pip_install() {
    "$python" -m pip install --disable-pip-version-check --progress-bar off --no-compile --find-links "$wheels" "$@"
}

has_nvcc() {
    command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]
}

install_torch() {
    "$python" --version >/dev/null 2>&1 || python3 -m venv "$VENV"
    pip_install "setuptools==$PYPI_SETUPTOOLS" "wheel==$PYPI_WHEEL" "ninja==$PYPI_NINJA"
    # torch first and by itself: its own index is asked for nothing else.
    # shellcheck disable=SC2086 # no index, or an option and an index
    pip_install ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} "torch==$PYPI_TORCH"
    built=$("$python" -c 'import torch; print("cuda" if torch.version.cuda else "cpu")')
    [ "$built" = "$ACCELERATOR" ] || fail "TORCH_INDEX must lead to a build of torch $PYPI_TORCH for $ACCELERATOR," \
        "but pip found one for $built. CPU builds are at https://download.pytorch.org/whl/cpu; or put the wheel into a" \
        "folder and name it with --packages."
}

install_deepspeed() {
    # Chosen ops are compiled now, all others at their first use. Without a GPU DeepSpeed would take the ops of a CPU.
    export DS_BUILD_OPS=0 DS_ACCELERATOR="$ACCELERATOR" TORCH_CUDA_ARCH_LIST="$CUDA_ARCHS"
    if [ -n "$DS_OPS" ] && [ "$ACCELERATOR" = cuda ] && ! has_nvcc; then
        fail "DS_OPS must be empty where BASE has no nvcc, but is '$DS_OPS'. Take a -devel image as BASE."
    fi
    for op in $DS_OPS; do
        export "DS_BUILD_$op=1"
    done
    # Without pip's cache, in which a wheel with other ops has the same name.
    pip_install --no-cache-dir --no-build-isolation "deepspeed==$PYPI_DEEPSPEED"
    # A name that DeepSpeed does not know is passed over in silence. Read as a file: importing DeepSpeed asks for a GPU.
    "$python" - "$VENV" "$DS_OPS" <<'PYTHON'
import glob, runpy, sys
(file,) = glob.glob(f"{sys.argv[1]}/lib/python3*/site-packages/deepspeed/git_version_info_installed.py")
built = sorted(name for name, is_built in runpy.run_path(file)["installed_ops"].items() if is_built)
print("DeepSpeed's ops compiled:", *(built or ["none"]))
if len(built) != len(sys.argv[2].split()):
    sys.exit(f"Error: DS_OPS must name ops of DeepSpeed (BUILD_VAR in its op_builder), but is '{sys.argv[2]}' instead.")
PYTHON
}

install_flash_attn() {
    case $FLASH_ATTN in
        none) ;;
        wheel)
            # FLASH_ATTN_WHEEL is an address or a file in the folder; without one pip looks there and in its index.
            case $FLASH_ATTN_WHEEL in
                "") pip_install --only-binary flash-attn "flash-attn==$PYPI_FLASH_ATTN" ;;
                *://*) pip_install "$FLASH_ATTN_WHEEL" ;;
                *) pip_install "$wheels/$FLASH_ATTN_WHEEL" ;;
            esac
            ;;
        source)
            has_nvcc || fail "FLASH_ATTN=source needs nvcc, which BASE lacks. Take a -devel image as BASE, or FLASH_ATTN=wheel."
            # Its setup would else fetch a wheel; it reads architectures without the dot; and pip's cache may hold one
            # for others.
            archs=$(echo "$CUDA_ARCHS" | tr -d .)
            FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTN_CUDA_ARCHS=$archs MAX_JOBS=$MAX_JOBS \
                pip_install --no-cache-dir --no-build-isolation --no-binary flash-attn "flash-attn==$PYPI_FLASH_ATTN"
            ;;
        *) fail "FLASH_ATTN must be none, wheel or source, but is $FLASH_ATTN instead." ;;
    esac
}

install_rest() {
    # flash-attn was or was not installed above.
    "$python" docker/requirements.py --extras "$EXTRAS" --without flash-attn >requirements.txt
    pip_install --no-build-isolation -r requirements.txt
    "$python" -m pip check
    "$python" -m pip freeze >"$VENV/packages.txt"
    # Tests of torch in C++ and those of pandas and sympy in Python: 200 MB that nothing loads. numpy's are loaded.
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$site/torch/test" "$site/pandas/tests"
    find "$site/torch/bin" -name '*[Tt]est*' -delete
    find "$site/sympy" -name tests -type d -prune -exec rm -r {} +
}

# Whoever runs the image cannot write here, so what is not compiled now is compiled at every start of every rank.
# Unchecked: the layers of an image may be stored with other times of change, which would make all of it stale.
compile_modules() {
    "$python" -m compileall -q -j 0 --invalidation-mode unchecked-hash "$@" ||
        # Templates and test files of some packages are no valid modules.
        echo "Some files are no Python of this version; they stay as they are."
}

case ${1:-} in
    torch) install_torch ;;
    deepspeed) install_deepspeed ;;
    flash-attn) install_flash_attn ;;
    rest) install_rest ;;
    compile)
        shift
        compile_modules "$@"
        ;;
    *) fail "the part must be torch, deepspeed, flash-attn, rest or compile, but is ${1:-nothing} instead." ;;
esac
