#!/usr/bin/env bash
# Trains on this machine in one process or several, and starts them again when one is lost.
#
#   ./launch/local.sh --env=FILE [--dry-run] [NAME=VALUE ...]
#
# One process drives all accelerators of a machine. With PROCESSES=N each gets its share of the GPUs of MACHINE (CPU: no
# MACHINE), and they find one another on a port that is new at every start. STORAGE is a folder. The environment is that
# of ./launch/quickstart.sh; MIMO_JAX_PYTHON names a Python that has mimo_jax already. Ctrl-C saves and stops.
set -euo pipefail

# shellcheck source=launch/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh"
read_job "$@"
require PROCESSES '[1-9][0-9]*' "a whole number, at least 1"
[ -z "$BUCKET" ] || fail "STORAGE=$STORAGE: local.sh wants a folder; mount the bucket (gcsfuse) and name the mounted one"
options=("--processes=$PROCESSES" "--logs=$MODEL_FOLDER/logs")
if [ -n "$MACHINE" ]; then
  [ "$HOSTS" = 1 ] || fail "MACHINE=$MACHINE has $HOSTS hosts; local.sh is for one"
  [ "$PROCESSES" = 1 ] || options+=("--devices=$HOST_DEVICES")
fi
if [ -n "${MIMO_JAX_PYTHON:-}" ]; then
  python=$MIMO_JAX_PYTHON
else
  python=$VENV/bin/python
  [ "$DRY_RUN" = true ] || ensure_environment quickstart
fi
if [ -n "$PREPARED" ] && ! [ -d "$(in_storage "$PREPARED")" ]; then
  missing="PREPARED=$PREPARED: there is no folder $(in_storage "$PREPARED")"
  if [ "$DRY_RUN" = true ]; then note "$missing"; else fail "$missing"; fi
fi
if [ -n "$MACHINE" ]; then
  check_run "$PROCESSES" "$HOST_DEVICES"
elif [ "$PROCESSES" -gt 1 ] && [ -z "${XLA_FLAGS:-}" ]; then
  check_run "$PROCESSES" "$PROCESSES" # CPUs: each process has one device
fi
job_environment
supervised "$python" "${options[@]}"
cd "$ROOT"
run exec env "${SETTINGS[@]}" "${COMMAND[@]}"
