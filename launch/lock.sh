#!/usr/bin/env bash
# Writes the lock files requirements/*.txt from the ranges in setup.py. One file serves Python 3.11, 3.12 and 3.13.
#
#   ./launch/lock.sh [--upgrade]     without --upgrade, versions change only where setup.py asks for it
#
# Needs uv (the environment made by launch/test.sh has it). The files are installed with --no-deps: they name
# everything, and tensorflow-text would otherwise bring the full TensorFlow in beside tensorflow-cpu. torch.txt has
# PyTorch, PEFT and what only they need, without the CUDA packages of PyTorch's build for Linux: launch/env.sh takes that
# for CPUs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

uv=.venv/bin/uv
[ -x "$uv" ] || uv=$(command -v uv) || { echo "lock.sh: uv is missing: run ./launch/test.sh once, or pip install uv" >&2; exit 1; }

# compile NAME EXTRAS [uv options...]: requirements/NAME.txt for the base requirements and these extras.
compile() {
  local name=$1 extra options=()
  for extra in $2; do options+=(--extra "$extra"); done
  shift 2
  "$uv" pip compile setup.py --quiet --universal --python-version 3.11 "${options[@]}" "$@" \
    --no-header --output-file "requirements/$name.txt"
  echo "requirements/$name.txt: $(grep -c '==' "requirements/$name.txt") packages"
}

# PESQ exists as source only; it is installed apart (requirements/compiled.txt) so that a machine without a C
# compiler loses one metric and not the installation.
compile dev "seqio eval prepare codecs demo int8 docs notebooks test dev" --no-emit-package pesq \
  --override <(printf "%s ; python_version < '3'\n" torch peft) "$@"
# The others take their versions from dev: what was tested together is what gets installed.
compile quickstart "seqio eval" --no-emit-package pesq --constraint requirements/dev.txt
compile seqio "seqio" --constraint requirements/dev.txt
compile base "" --constraint requirements/dev.txt
# An environment of its own for Apache Beam, which wants an older protobuf, numpy and pyarrow; with what tests need.
compile beam "prepare beam test" "$@"
compile tpu "tpu" --constraint requirements/dev.txt
compile cuda "cuda" --constraint requirements/dev.txt
compile compile "compile" --constraint requirements/dev.txt

# As for Windows, where PyTorch needs no CUDA packages; what else it needs is pure Python. What dev.txt has is left out.
in_dev=()
while read -r name; do in_dev+=(--no-emit-package "$name"); done \
  < <(sed -nE 's/^([A-Za-z0-9_.-]+)(\[.*\])?==.*/\1/p' requirements/dev.txt)
grep -oE '\b(torch|peft)>=[^"]*' setup.py | "$uv" pip compile - --quiet --python-platform windows --python-version 3.11 \
  --constraint requirements/dev.txt "${in_dev[@]}" "$@" --no-header --output-file requirements/torch.txt
echo "requirements/torch.txt: $(grep -c '==' requirements/torch.txt) packages"
