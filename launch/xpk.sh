#!/usr/bin/env bash
# Trains on a GKE cluster made with XPK (https://github.com/AI-Hypercomputer/xpk): TPU slices, or nodes with 8 GPUs.
#
#   ./launch/xpk.sh --env=FILE [--dry-run] [NAME=VALUE ...]
#
# XPK makes the JobSet, queues it with Kueue and sets up the network of GPU nodes. The bucket is mounted by a storage named
# mimo-jax, which is attached to the cluster once (the command is printed). Any process that fails restarts all of them, up
# to MAX_RESTARTS in all; a mistake in the input (exit code 2) ends the job.
set -euo pipefail

# shellcheck source=launch/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh"
read_job "$@"
need_machine
need_bucket
need_image
need_project
need_zone
need_capacity
require CLUSTER '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "the name of a GKE cluster"
[ "$CAPACITY" != reserved ] || require RESERVATION '[a-z]([-a-z0-9]*[a-z0-9])?' "CAPACITY=reserved needs a reservation's name"
need_program xpk "pip install xpk (1.16 or newer)"
check_run $((HOSTS * SLICES)) $((HOSTS * SLICES * HOST_DEVICES))

# The topology, not the number of cores: several topologies have as many.
machine() {
  case $KIND in
    v5e) printf -- '--tpu-type=v5litepod-%s\n' "$TOPOLOGY" ;;
    v4 | v5p | v6e | tpu7x) printf -- '--tpu-type=%s-%s\n' "$KIND" "$TOPOLOGY" ;;
    a100) fail "MACHINE=$MACHINE: XPK has no A100 with 80 GB; gke.sh has" ;;
    h100) printf -- '--device-type=h100-80gb-%s\n' "$HOST_CHIPS" ;;
    h200) printf -- '--device-type=h200-141gb-%s\n' "$HOST_CHIPS" ;;
    b200) printf -- '--device-type=b200-%s\n' "$HOST_CHIPS" ;;
  esac
}
type=$(machine)
if [ "$ACCELERATOR" = tpu ]; then
  count=--num-slices=$SLICES
else
  [ "$HOST_CHIPS" = 8 ] || fail "MACHINE=$MACHINE: XPK takes nodes with 8 GPUs"
  count=--num-nodes=$HOSTS
fi
case $CAPACITY in
  reserved) capacity=--reservation=$RESERVATION ;;
  *) capacity=--$CAPACITY ;;
esac

job_environment
job_command python
# In the pod: XPK tells GPU nodes who they are in its own words. With exec, SIGTERM reaches Python itself.
command="exec env"
# shellcheck disable=SC2016  # expanded in the pod
[ "$ACCELERATOR" = tpu ] || command="$command"' JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS:$JAX_COORDINATOR_PORT JAX_NUM_PROCESSES=$NNODES JAX_PROCESS_ID=$NODE_RANK'
command="$command $(quoted "${SETTINGS[@]}") $(quoted "${COMMAND[@]}")"
case $command in *\"* | *\\*) fail "XPK cannot hand on double quotes and backslashes; write '...' in BINDINGS and ENVIRONMENT" ;; esac

note "once a cluster: $(quoted xpk storage attach mimo-jax --type=gcsfuse "--bucket=$BUCKET" --mount-point=$MOUNT \
  --readonly=false --auto-mount=false --size=1 "--mount-options=$GCSFUSE_OPTIONS" \
  "--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE")"
# 1: an error of the runtime, such as a collective that has lost a host; 75: asked to stop, saved; 76: a step that did not
# end. XPK adds signals.
run xpk workload create "--workload=$NAME" "--cluster=$CLUSTER" "--project=$PROJECT" "--zone=$ZONE" "$type" "$count" \
  "$capacity" "--docker-image=$IMAGE" --storage=mimo-jax "--max-restarts=$MAX_RESTARTS" --restart-on-exit-codes=1,75,76 \
  --termination-grace-period-seconds=300 "--command=$command"
note "state and logs: xpk workload list --cluster=$CLUSTER --project=$PROJECT --zone=$ZONE"
note "end: xpk workload delete --workload=$NAME --cluster=$CLUSTER --project=$PROJECT --zone=$ZONE"
