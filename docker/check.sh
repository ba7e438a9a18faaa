#!/usr/bin/env bash
# Builds the image on a CPU base without a Docker engine, and trains in it: the proof that docker/ works, for machines and
# CI that have no registry of images. Root on Debian or Ubuntu, with: apt install buildah debootstrap
#
#   docker/check.sh            5 to 20 minutes, 10 GB in TMPDIR meanwhile
#   docker/check.sh --keep     keeps the image, and says how to reach it
#
# The base is a debootstrap tree of CHECK_RELEASE in docker/versions.env, from CHECK_MIRROR. pip's settings of this machine
# (index, certificate, a folder of wheels) hold in the build as well, as secrets and mounts.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mirror=${CHECK_MIRROR:-http://deb.debian.org/debian}
# Neither root nor the user of the image, and in nobody's passwd: what Apptainer and enroot do.
user=23456

fail() {
    echo "Error: $*" >&2
    exit 2
}

section() {
    printf '\n[%3ds] %s\n' "$SECONDS" "$*"
}

((EUID == 0)) || fail "docker/check.sh must run as root, because debootstrap and a build by chroot need it. Try: sudo $0"
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || fail "docker/check.sh needs $tool. On Debian or Ubuntu: apt install $tool"
done

# Everything lies in one folder and goes with it; images that are already here are not touched.
work=$(mktemp -d "${TMPDIR:-/var/tmp}/palimpsest-image-XXXXXX")
chmod 755 "$work"
# shellcheck disable=SC2329 # called by the trap
clean_up() {
    local code=$?
    if [[ $keep ]]; then
        echo "Kept: CONTAINERS_STORAGE_CONF=$work/storage.conf buildah images. To remove it: rm -r $work"
    else
        rm -rf "$work"
    fi
    exit "$code"
}
keep=
[[ ${1:-} == --keep ]] && keep=1
trap clean_up EXIT
trap 'exit 130' INT TERM
mkdir "$work/tmp"
export TMPDIR=$work/tmp BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs CONTAINERS_STORAGE_CONF=$work/storage.conf
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$work/storage" "$work/run" >"$CONTAINERS_STORAGE_CONF"

section "Base: debootstrap"
release=$(sed -n 's/^CHECK_RELEASE=//p' "$root/docker/versions.env")
debootstrap --variant=minbase --include=ca-certificates "$release" "$work/base" "$mirror" >"$work/debootstrap.log" 2>&1 || {
    tail -n 20 "$work/debootstrap.log" >&2
    fail "debootstrap $release from $mirror failed. CHECK_MIRROR names another mirror."
}
rm -rf "$work"/base/var/cache/apt/archives/*.deb "$work"/base/var/lib/apt/lists/*
container=$(buildah from scratch)
buildah add --quiet "$container" "$work/base" / >/dev/null
buildah commit --quiet "$container" localhost/base >/dev/null
buildah rm "$container" >/dev/null
rm -rf "$work/base"

# pip's settings here, as a pip.conf for the build: what only this machine can see goes in as a secret or a mount.
python3 - "$work" <<'PYTHON'
import configparser, os, pathlib, subprocess, sys
work = pathlib.Path(sys.argv[1])
found = {}
listing = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
# Environment variables come first in the listing, and win.
for line in listing.splitlines():
    key, _, value = line.partition("=")
    found.setdefault(key.rpartition(".")[2], value.strip("'\""))
settings = {key: found[key] for key in ("index-url", "trusted-host", "proxy", "timeout") if key in found}
remote = [url for url in found.get("extra-index-url", "").split() if not url.startswith("file:")]
if remote:
    settings["extra-index-url"] = " ".join(remote)
folders = [one for one in found.get("find-links", "").split() if os.path.isdir(one)]
if folders:
    (work / "wheels").write_text(folders[0])
if os.path.isfile(found.get("cert", "")):
    settings["cert"] = "/run/secrets/ca.crt"
    (work / "ca-bundle").write_text(found["cert"])
conf = configparser.ConfigParser()
conf["global"] = settings
with (work / "pip.conf").open("w") as file:
    conf.write(file)
PYTHON
options=(--pip-conf "$work/pip.conf")
[[ -f $work/ca-bundle ]] && options+=(--ca-bundle "$(<"$work/ca-bundle")")
[[ -f $work/wheels ]] && options+=(--packages "$(<"$work/wheels")")
# Where torch's own index cannot be reached, pip would try for minutes.
index=${PALIMPSEST_TORCH_INDEX-https://download.pytorch.org/whl/cpu}
if [[ $index ]] && ! python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "$index/torch/" 2>/dev/null; then
    index=
fi

section "docker/build.sh --cpu, with one of DeepSpeed's ops to see that it is compiled"
image=localhost/palimpsest:check
PALIMPSEST_TORCH_INDEX=$index "$root/docker/build.sh" --cpu --engine buildah --tag "$image" "${options[@]}" --network=host \
    --build-arg BASE=localhost/base --build-arg RUNTIME_BASE=localhost/base --build-arg DS_OPS=SHM_COMM >"$work/build.log" 2>&1 || {
    tail -n 40 "$work/build.log" >&2
    fail "the build failed; above is its end."
}
grep -E "^DeepSpeed's ops|^Built " "$work/build.log"

container=$(buildah from "$image")
# Runs a command in the image, with a folder for its files.
folder=$work/runs
mkdir "$folder"
chmod 1777 "$folder"
in_image() {
    local as=$1
    shift
    buildah run --user "$as" --volume "$folder:/workspace/runs" "$container" -- "$@"
}
own_user=$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "$image")

section "palimpsest --help, as the image's user $own_user and as $user, whom it does not know"
for as in "$own_user" "$user:$user"; do
    in_image "$as" palimpsest --help >"$work/help.log"
    head -n 1 "$work/help.log"
    # shellcheck disable=SC2016 # the words are expanded in the image
    in_image "$as" sh -c 'test "$(id -u)" != 0 && touch "$HOME/can-write" && rm "$HOME/can-write" && ! touch /opt/palimpsest/x 2>/dev/null'
done

section "palimpsest train: the tiny model on two ranks, ZeRO-3"
for number in {1..200}; do
    echo "Document $number says that $number and $number make $((2 * number))."
done >"$folder/corpus.txt"
words=(model=tiny data=text data.sources.corpus.path=runs/corpus.txt data.sources.corpus.txt_documents=line data.seq_len=64
    data.cache_dir=runs/cache data.validation_frac=0.1 train.global_batch_tokens=512 train.micro_batch_size=2
    model.checkpoint_layers=0 train.max_epochs=null optim.lr=1e-3 zero=zero3 cluster.ranks_per_node=2 evaluate.forgetting=false)
in_image "$user:$user" palimpsest train "${words[@]}" train.max_steps=8 run_dir=runs/first >"$work/train.log" 2>&1 || {
    tail -n 40 "$work/train.log" >&2
    fail "the training in the image failed; above is its end."
}
tail -n 6 "$work/train.log"
[[ -f $folder/first/checkpoints/step-00000008/manifest.json ]] || fail "the run committed no checkpoint of step 8."
if grep -i "ninja\|Building extension" "$work/train.log"; then
    fail "ranks compiled something at their start, which the image has no compiler for."
fi

section "SIGTERM to process 1: the ranks save and the exit code is 75"
tree=$(buildah mount "$container")
mapfile -t environment < <(buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image" | sed '/^$/d')
# What an engine does: a process space of its own, in which the command is process 1 and nobody else passes signals on.
# shellcheck disable=SC2016 # the words are expanded inside
unshare --mount --pid --fork bash -c '
    tree=$1 folder=$2 user=$3
    shift 3
    mount --rbind /dev "$tree/dev" && mount -t proc proc "$tree/proc" && mkdir -p "$tree/workspace/runs" &&
        mount --bind "$folder" "$tree/workspace/runs" && cd "$tree/workspace" && exec chroot --userspec="$user:$user" "$tree" "$@"
' bash "$tree" "$folder" "$user" env -i --chdir=/workspace "${environment[@]}" palimpsest train "${words[@]}" train.max_steps=100000 \
    run_dir=runs/stopped >"$work/stopped.log" 2>&1 &
unshared=$!
for ((i = 0; i < 600; i++)); do
    [[ -s $folder/stopped/metrics.jsonl ]] && break
    kill -0 "$unshared" 2>/dev/null || break
    sleep 0.2
done
kill -TERM "$(cat "/proc/$unshared/task/$unshared/children")" 2>/dev/null || true
code=0
wait "$unshared" || code=$?
tail -n 2 "$work/stopped.log"
if ((code != 75)) || ! compgen -G "$folder/stopped/checkpoints/step-*/manifest.json" >/dev/null; then
    tail -n 40 "$work/stopped.log" >&2
    fail "SIGTERM to process 1 must end with exit code 75 and a checkpoint, but ended with $code."
fi

section "Nobody's files are root's, and nothing of this machine is in the image"
wrong=$(find "$folder" -mindepth 1 ! -uid "$user" ! -name corpus.txt | head -n 5)
[[ -z $wrong ]] || fail "these files of the run are not its user's: $wrong"
left=$(find "$tree/run/secrets" "$tree/wheels" "$tree/etc/pip.conf" "$tree/root/.cache" "$tree/build" -type f 2>/dev/null | head -n 5 || true)
[[ -z $left ]] || fail "the image holds $left, which only the build needs."
du -xsh --apparent-size "$tree/opt/palimpsest" | sed "s#$tree##"
buildah umount "$container" >/dev/null
buildah inspect --type image "$image" >"$work/inspect.json"
if [[ -f $work/wheels ]] && grep -F "$(<"$work/wheels")" "$work/inspect.json"; then
    fail "the image's history names a folder of this machine."
fi
# shellcheck disable=SC2016 # the words are buildah's
buildah inspect --type image --format '{{range $k, $v := .OCIv1.Config.Labels}}{{$k}}={{$v}}{{"\n"}}{{end}}' "$image"

section "Done"
