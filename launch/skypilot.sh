#!/usr/bin/env bash
# Trains as a managed job of SkyPilot (https://docs.skypilot.co): GPUs of any of its clouds, or a TPU slice of Google's.
#
#   ./launch/skypilot.sh --env=FILE [--dry-run] [NAME=VALUE ...]
#
# SkyPilot gets the machines, mounts the bucket and runs the image; when they are preempted it gets others, in another
# region if need be. The processes run under mimo_jax.supervise. CAPACITY is spot or on-demand.
set -euo pipefail

# shellcheck source=launch/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh"
read_job "$@"
need_machine
need_bucket
need_image
require CAPACITY 'spot|on-demand' "SkyPilot has spot and on-demand"
[ "$SLICES" = 1 ] || fail "MACHINE=$MACHINE: skypilot.sh is for one slice; gke.sh and xpk.sh take several"
[ -z "$ZONE" ] || need_zone
need_program sky "pip install 'skypilot[gcp]' (0.14 or newer)"
check_run "$HOSTS" $((HOSTS * HOST_DEVICES))

# Names of the accelerators; a TPU slice is one node of SkyPilot's, whatever its hosts.
nodes=$HOSTS
case $KIND in
  a100) accelerators=A100-80GB:$HOST_CHIPS ;;
  h100 | h200 | b200) accelerators=$(printf '%s' "$KIND" | tr '[:lower:]' '[:upper:]'):$HOST_CHIPS ;;
  v5e) accelerators=tpu-v5litepod-$CHIPS:1 nodes=1 ;;
  v6e) accelerators=tpu-v6e-$CHIPS:1 nodes=1 ;;
  v4 | v5p) accelerators=tpu-$KIND-$((2 * CHIPS)):1 nodes=1 ;;
  tpu7x) fail "MACHINE=$MACHINE: SkyPilot 0.14 has no TPU7x; gke.sh and xpk.sh have" ;;
esac

job_environment
supervised python

task() {
  local setting spot=false infra=''
  [ "$CAPACITY" = on-demand ] || spot=true
  [ "$ACCELERATOR" = cuda ] || infra="  infra: gcp${ZONE:+/${ZONE%-*}/$ZONE}"
  cat <<YAML
name: $NAME
num_nodes: $nodes
resources:
  accelerators: $accelerators
$infra
  use_spot: $spot
  image_id: $(yaml "docker:$IMAGE")
  job_recovery:
    strategy: EAGER_NEXT_REGION
    # Beyond preemptions: the supervisors have given up, or a machine was shut down without being lost.
    max_restarts_on_errors: 1
    recover_on_exit_codes: [75]
file_mounts:
  $MOUNT:
    source: gs://$BUCKET
    mode: MOUNT
envs:
YAML
  for setting in "${SETTINGS[@]}"; do printf '  %s: %s\n' "${setting%%=*}" "$(yaml "${setting#*=}")"; done
  cat <<YAML
run: |
  cd /opt/mimo_jax || exit 2
YAML
  # TPU hosts learn from Google's metadata server who they are.
  [ "$ACCELERATOR" = tpu ] || cat <<'YAML'
  JAX_COORDINATOR_ADDRESS=$(echo "$SKYPILOT_NODE_IPS" | head -n 1):8476
  export JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES JAX_PROCESS_ID=$SKYPILOT_NODE_RANK
YAML
  printf '  exec %s\n' "$(quoted "${COMMAND[@]}")"
}
file=$LAUNCH_DIR/$NAME-sky.yaml
[ "$DRY_RUN" = true ] || mkdir -p "${file%/*}"
task | sed '/^$/d' | create "$file"
run sky jobs launch --yes --detach-run "--name=$NAME" "$file"
note "state: sky jobs queue"
note "log:   sky jobs logs --name $NAME"
note "end:   sky jobs cancel --name $NAME"
