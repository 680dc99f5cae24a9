#!/usr/bin/env bash
# Lint, formatting, types, documentation and tests, in an environment made or reused from requirements/dev.txt.
#
#   ./launch/test.sh [--all] [pytest arguments]
#
#   ./launch/test.sh                      everything but the tests marked slow
#   ./launch/test.sh --all                the slow ones too, and those of Apache Beam in an environment of their own
#   ./launch/test.sh tests/interop -k hf  only some tests (lint, types and the site are run all the same)
#   ./launch/test.sh -n 0 --pdb           in one process, with a debugger
#
# MIMO_JAX_TORCH=none does without PyTorch; the tests in which `transformers` loads exported models are then skipped.
#
# The environments are .venv and .venv-beam; MIMO_JAX_VENV and MIMO_JAX_BEAM_VENV name others.
#
# Compiled programs are cached in $JAX_COMPILATION_CACHE_DIR (default ~/.cache/mimo_jax/jax), which makes later runs
# a good deal faster.
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment dev
cd "$ROOT"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/mimo_jax/jax}
mkdir -p "$JAX_COMPILATION_CACHE_DIR"

selection="not slow"
beam=false
if [ "${1:-}" = --all ]; then
  selection=""
  beam=true
  shift
fi

say "ruff check"
"$VENV/bin/ruff" check .
say "ruff format --check"
"$VENV/bin/ruff" format --check .
say "shellcheck"
PATH=$VENV/bin:$PATH "$VENV/bin/shellcheck" -x launch/*.sh tools/*.sh .ci/run
say "mypy"
"$VENV/bin/mypy"
say "mkdocs build"
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
NO_MKDOCS_2_WARNING=1 "$VENV/bin/mkdocs" build --strict --quiet --site-dir "$site"
say "pytest"
# One file's tests stay in one process: they share compiled functions and session fixtures. A process that crashes ends
# the run and is told; with a new one in its place, xdist 3.8 can wait for ever for files that are done already.
"$VENV/bin/python" -m pytest -n auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder --max-worker-restart=0 \
  -m "$selection" "$@"
if [ "$beam" = true ] && [ $# -eq 0 ]; then
  VENV=${MIMO_JAX_BEAM_VENV:-$ROOT/.venv-beam}
  ensure_environment beam
  say "pytest with Apache Beam"
  "$VENV/bin/python" -m pytest tests/preparation/test_beam.py tests/test_prepare.py
fi
