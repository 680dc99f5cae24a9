#!/usr/bin/env bash
# Compiles a run's train step for machines that are not there (python -m mimo_jax.compile), in an environment of its own
# with the compilers of TPUs and NVIDIA GPUs, made or reused from requirements/compile.txt (6 GB).
#
#   ./launch/compile.sh --gin_file=gin/runs/pretrain_7b_joint.gin --topology=v5p:4x8x8 [--json=FILE]
#
# The environment is .venv-compile; MIMO_JAX_COMPILE_VENV names another.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
VENV=${MIMO_JAX_COMPILE_VENV:-$ROOT/.venv-compile}
export MIMO_JAX_ACCELERATOR=none
ensure_environment compile
exec "$VENV/bin/python" -m mimo_jax.compile "$@"
