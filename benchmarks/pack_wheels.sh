#!/usr/bin/env bash
# Collects, where there is a network, what nvret_jax needs on a machine that has none: a borrowed
# card whose image has Python 3.12, jax with CUDA, flax, optax, orbax, transformers and torch.
#
#     benchmarks/pack_wheels.sh [--faiss] [FOLDER]          # default: .wheels, which git ignores
#
# There, in the checkout:
#
#     python3 -m pip install --no-index --no-deps --target /tmp/site .wheels/*.whl
#     PYTHONPATH=/tmp/site:. python3 -m benchmarks.accelerator
#
# Never jax, torch or anything with CUDA: those belong to the image. FAISS (the CPU fallback of
# search) is left out unless asked for.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(absl-py bm25s datasketch grain ir-measures pytrec-eval-terrier ml-collections tensorboardX
  etils array-record dm-tree portpicker hypothesis pytest-xdist)
folder=.wheels
for argument in "$@"; do
  case "$argument" in
    -h | --help) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --faiss) packages+=(faiss-cpu) ;;
    -*) echo "unknown option $argument; see --help" >&2; exit 2 ;;
    *) folder="$argument" ;;
  esac
done
platforms=()
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${tag}_x86_64")
done
mkdir -p "$folder"
rm -f "$folder"/*.whl
for package in "${packages[@]}"; do
  # One by one: a package without a wheel for this platform is named, and the others are kept.
  "${PYTHON:-python3}" -m pip --disable-pip-version-check download -q --no-deps -d "$folder" \
    --only-binary=:all: --python-version 3.12 --implementation cp "${platforms[@]}" "$package" ||
    { echo "no wheel of $package" >&2; exit 1; }
done
du -ch "$folder"/*.whl | tail -n 1
