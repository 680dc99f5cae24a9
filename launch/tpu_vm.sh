#!/usr/bin/env bash
# Trains on a TPU pod slice of its own (TPU VMs), got as a queued resource, and gets another one when it is preempted.
#
#   ./launch/tpu_vm.sh --env=FILE [--dry-run] [NAME=VALUE ...]
#
# Every host of the slice mounts the bucket, pulls the image and runs the job under mimo_jax.supervise, by its startup
# script: a slice that is made again needs nothing else. This command stays, watches, asks for a new slice when it is
# taken away, and deletes it when the job has ended. It can be stopped and started again at any time.
set -euo pipefail

# shellcheck source=launch/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh"
read_job "$@"
need_tpu
need_bucket
need_image
need_project
need_zone
need_capacity
[ "$SLICES" = 1 ] || fail "MACHINE=$MACHINE: tpu_vm.sh is for one slice; gke.sh and xpk.sh take several"
[ -z "$SERVICE_ACCOUNT" ] || require SERVICE_ACCOUNT '[a-z][-a-z0-9]*@[-a-z0-9.]+' "the email address of a Google service account"
need_program gcloud "https://cloud.google.com/sdk/docs/install"

# The name of the machine counts cores, of which v4, v5p and TPU7x chips have two.
case $KIND in
  v5e) type=v5litepod-$CHIPS ;;
  v6e) type=v6e-$CHIPS ;;
  *) type=$KIND-$((2 * CHIPS)) ;;
esac
case $KIND in
  v4) runtime=tpu-ubuntu2204-base ;;
  v5e) runtime=v2-alpha-tpuv5-lite ;;
  v5p) runtime=v2-alpha-tpuv5 ;;
  v6e) runtime=v2-alpha-tpuv6e ;;
  tpu7x) runtime= ;;
esac
RUNTIME_VERSION=${RUNTIME_VERSION:-$runtime}
[ -n "$RUNTIME_VERSION" ] || fail "RUNTIME_VERSION is empty: name the software of $KIND hosts (gcloud compute tpus versions list)"
# As TPU VMs, 8 chips of v5e and v6e are one host.
case $KIND:$CHIPS in v5e:8 | v6e:8) HOSTS=1 HOST_CHIPS=8 HOST_DEVICES=8 ;; esac
check_run "$HOSTS" $((HOSTS * HOST_DEVICES))

job_environment
supervised python
left=gs://$BUCKET$FOLDER/jobs/$NAME # .log, and .exit_code with a checksum of the checkpoints' names: how the job has ended
gcsfuse_flags=(--implicit-dirs --rename-dir-limit=1000000 --metadata-cache-negative-ttl-secs=0 -o allow_other)

startup_script() {
  local setting settings=()
  for setting in "${SETTINGS[@]}"; do settings+=(--env "$setting"); done
  cat <<SCRIPT
#!/bin/bash
# Runs as root on every host of the slice, at every start.
set -euo pipefail
code=1
finish() {
  local worker checkpoints
  set +e # whatever fails here, the exit code must be left: without it the slice would be kept, and paid, for ever
  worker=\$(curl -fsS -H 'Metadata-Flavor: Google' \\
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) || worker=0
  [ "\$code" != 75 ] || docker stop -t 300 $NAME >/dev/null 2>&1 # still running where this script alone is stopped
  # The run is over when its first process is; it has failed when any host gives up.
  if [ "\$code" != 0 ] || [ "\$worker" = 0 ]; then
    docker logs --tail=10000 $NAME 2>&1 | gcloud storage cp - $left.log
    checkpoints=\$(find $(quoted "$MODEL_FOLDER") -maxdepth 3 -path '*/checkpoints/*' ! -name '*[!0-9]*' -prune \\
      2>/dev/null | sort | cksum)
    echo "\$code \$checkpoints" | gcloud storage cp - $left.exit_code
  fi
}
trap finish EXIT
if ! command -v gcsfuse >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg -o /usr/share/keyrings/cloud.google.asc
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main" \\
    >/etc/apt/sources.list.d/gcsfuse.list
  # The machine's own updates may hold the lock for a while.
  apt-get -o DPkg::Lock::Timeout=600 update -q
  apt-get -o DPkg::Lock::Timeout=600 install -qy fuse gcsfuse
fi
mkdir -p $MOUNT
mountpoint -q $MOUNT || gcsfuse $(quoted "${gcsfuse_flags[@]}") $BUCKET $MOUNT
gcloud auth configure-docker ${IMAGE%%/*} --quiet
docker pull --quiet $IMAGE
docker rm --force $NAME 2>/dev/null || true
code=75 status=0 # asked to stop: what ends this script before the container has ended is the end of the machine
# Privileged and with the host's network: the container drives the TPU and asks the metadata server who it is.
docker run --name $NAME --privileged --net=host --shm-size=16g --stop-timeout=300 --volume $MOUNT:$MOUNT \\
  $(quoted "${settings[@]}") \\
  $IMAGE \\
  $(quoted "${COMMAND[@]}") || status=\$?
code=\$status
SCRIPT
}

where=("--project=$PROJECT" "--zone=$ZONE")
script=$LAUNCH_DIR/$NAME-startup.sh
create_slice() {
  local options=("--node-id=$NAME" "--accelerator-type=$type" "--runtime-version=$RUNTIME_VERSION"
    "--metadata-from-file=startup-script=$script" --scopes=cloud-platform)
  case $CAPACITY in
    spot) options+=(--spot) ;;
    reserved) options+=(--reserved) ;;
  esac
  [ -z "$SERVICE_ACCOUNT" ] || options+=("--service-account=$SERVICE_ACCOUNT")
  run gcloud compute tpus queued-resources create "$NAME" "${where[@]}" "${options[@]}"
}
delete_slice() { run gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet; }
# Prints ACTIVE, SUSPENDED ..., nothing where there is none, UNKNOWN where it cannot be asked.
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" '--format=value(state.state)' 2>&1); then
    printf '%s\n' "$answer"
  else
    case $answer in *NOT_FOUND* | *"not found"*) ;; *) printf '%s\n' "$answer" >&2; printf 'UNKNOWN\n' ;; esac
  fi
}
# Prints the exit code that the job has left, or nothing.
ended() { gcloud storage cat "$left.exit_code" "--project=$PROJECT" 2>/dev/null || true; }

[ "$DRY_RUN" = true ] || mkdir -p "${script%/*}"
startup_script | create "$script"
note "log:  gcloud compute tpus tpu-vm ssh $NAME $(quoted "${where[@]}") --worker=0 --command='sudo docker logs --follow $NAME'"
note "end:  stop this command, then gcloud compute tpus queued-resources delete $NAME $(quoted "${where[@]}") --force"
if [ "$DRY_RUN" = true ]; then
  note "if $left.exit_code is left of an earlier job:"
  run gcloud storage rm "$left.exit_code"
  note "unless it is there already:"
  create_slice
  note "every ${MIMO_JAX_POLL_SECONDS:-60} s: the state; when the slice is SUSPENDED or FAILED, or the job has failed, then"
  delete_slice
  note "and the slice is created again; when the job has ended well or with a mistake in the input, it is deleted"
  exit 0
fi

# Once there has been a slice, a call that fails is made again: a cloud has bad minutes in the weeks of a run.
asked=false
again() {
  [ "$asked" = true ] || exit 1 # what is wrong stands above
  note "$(date '+%F %T') $1 has failed (above); trying again in ${MIMO_JAX_POLL_SECONDS:-60} s"
}
ask() { if create_slice; then asked=true; else again "asking for a slice"; fi; }

failures=0 last='' reached=''
if [ -z "$(state)" ] && [ -n "$(ended)" ]; then run gcloud storage rm "$left.exit_code" "--project=$PROJECT"; fi
while true; do
  now=$(state)
  [ "$now" = "$last" ] || note "$(date '+%F %T') $NAME: ${now:-does not exist}"
  last=$now
  case $now in '' | UNKNOWN) ;; *) asked=true ;; esac
  said=$(ended)
  code=${said%% *}
  if [ -n "$code" ]; then
    if { [ -z "$now" ] || delete_slice; } && run gcloud storage rm "$left.exit_code" "--project=$PROJECT"; then
      case $code in
        0) note "the job has ended well: $MODEL_FOLDER"; exit 0 ;;
        2) fail "a mistake in the input; the end of $left.log names it" ;;
        75) note "the hosts were told to stop, and the run has saved" ;;
        *)
          # In a row without a newer checkpoint, as the supervisors count.
          [ "${said#* }" = "$reached" ] || failures=0
          reached=${said#* }
          failures=$((failures + 1))
          [ "$failures" -le "$MAX_RESTARTS" ] ||
            fail "the job has failed $failures times without a newer checkpoint (exit code $code); giving up; see $left.log"
          ;;
      esac
      ask
    else
      again "deleting the slice"
    fi
  else
    case $now in
      '') ask ;;
      SUSPENDED | FAILED)
        note "taken away; asking for another one"
        if delete_slice; then ask; else again "deleting the slice"; fi
        ;;
    esac
  fi
  sleep "${MIMO_JAX_POLL_SECONDS:-60}"
done
