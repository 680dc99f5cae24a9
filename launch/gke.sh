#!/usr/bin/env bash
# Trains on a GKE cluster as a JobSet: TPU slices, or nodes with GPUs.
#
#   ./launch/gke.sh --env=FILE [--dry-run] [NAME=VALUE ...]
#
# The manifest is written to runs/launch and created with kubectl in its current context. The cluster has node pools of
# MACHINE, the JobSet controller (0.10 or newer) and the Cloud Storage FUSE driver. A pod that is lost or fails restarts
# all of them; preemptions (exit code 75, an evicted pod) do not count against MAX_RESTARTS, a mistake in the input (2) ends
# the job.
set -euo pipefail

# shellcheck source=launch/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh"
read_job "$@"
need_machine
need_bucket
need_image
need_capacity
require NAMESPACE '[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?' "the name of a Kubernetes namespace"
[ -z "$SERVICE_ACCOUNT" ] || require SERVICE_ACCOUNT '[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?' \
  "the name of a Kubernetes service account in the namespace, not an email address"
[ "$CAPACITY" != reserved ] || require RESERVATION '[a-z]([-a-z0-9]*[a-z0-9])?' "CAPACITY=reserved needs a reservation's name"
need_program kubectl "https://kubernetes.io/docs/tasks/tools"
check_run $((HOSTS * SLICES)) $((HOSTS * SLICES * HOST_DEVICES))

case $KIND in
  v4) label=tpu-v4-podslice ;;
  v5e) label=tpu-v5-lite-podslice ;;
  v5p) label=tpu-v5p-slice ;;
  v6e) label=tpu-v6e-slice ;;
  tpu7x) label=tpu7x ;;
  a100) label=nvidia-a100-80gb ;;
  h100) label=nvidia-h100-80gb ;;
  h200) label=nvidia-h200-141gb ;;
  b200) label=nvidia-b200 ;;
esac

annotations() {
  # One slice, one node pool: the hosts of a slice are the nodes of its pool.
  [ "$ACCELERATOR" = tpu ] && [ "$HOSTS" -gt 1 ] || return 0
  cat <<YAML
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
YAML
}

node_selector() {
  if [ "$ACCELERATOR" = tpu ]; then
    printf '                cloud.google.com/gke-tpu-accelerator: %s\n' "$label"
    printf '                cloud.google.com/gke-tpu-topology: %s\n' "$TOPOLOGY"
  else
    printf '                cloud.google.com/gke-accelerator: %s\n' "$label"
  fi
  case $CAPACITY in
    spot) printf '                cloud.google.com/gke-spot: "true"\n' ;;
    reserved) printf '                cloud.google.com/reservation-name: %s\n' "$RESERVATION" ;;
  esac
}

tolerations() {
  # GKE adds those of TPUs and GPUs itself.
  [ "$CAPACITY" = spot ] || return 0
  cat <<YAML
              tolerations:
                - key: cloud.google.com/gke-spot
                  operator: Equal
                  value: "true"
                  effect: NoSchedule
YAML
}

environment() {
  local setting
  job_environment
  for setting in "${SETTINGS[@]}"; do
    printf '                    - name: %s\n                      value: %s\n' "${setting%%=*}" "$(kubernetes "${setting#*=}")"
  done
  # GKE tells TPU hosts who they are; pods with GPUs are told here.
  [ "$ACCELERATOR" = cuda ] || return 0
  cat <<YAML
                    - name: JAX_COORDINATOR_ADDRESS
                      value: "$NAME-hosts-0-0.$NAME:8476"
                    - name: JAX_NUM_PROCESSES
                      value: "$HOSTS"
                    - name: JAX_PROCESS_ID
                      valueFrom:
                        fieldRef:
                          fieldPath: metadata.annotations['batch.kubernetes.io/job-completion-index']
YAML
}

command_words() {
  local word
  job_command python
  for word in "${COMMAND[@]}"; do printf '                    - %s\n' "$(kubernetes "$word")"; done
}

# kubernetes WORD: a YAML string in which Kubernetes expands no $(NAME).
# shellcheck disable=SC2016
kubernetes() { yaml "$(printf '%s' "$1" | sed 's/\$(/$$(/g')"; }

manifest() {
  local resource=google.com/tpu
  [ "$ACCELERATOR" = tpu ] || resource=nvidia.com/gpu
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  namespace: $NAMESPACE
$(annotations)
spec:
  failurePolicy:
    maxRestarts: $MAX_RESTARTS
    rules:
      - name: mistake
        action: FailJobSet
        onJobFailureReasons: [PodFailurePolicy]
        onJobFailureMessagePatterns: [".*exit code 2 .*"]
      - name: preempted
        action: RestartJobSetAndIgnoreMaxRestarts
        onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
    - name: hosts
      replicas: $SLICES
      template:
        spec:
          parallelism: $HOSTS
          completions: $HOSTS
          completionMode: Indexed
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2, 75]
              - action: FailJob
                onPodConditions:
                  - type: DisruptionTarget
                    status: "True"
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              # For the step that runs and a checkpoint of it; spot nodes get less from Google.
              terminationGracePeriodSeconds: 300
${SERVICE_ACCOUNT:+              serviceAccountName: $SERVICE_ACCOUNT}
              nodeSelector:
$(node_selector)
$(tolerations)
              containers:
                - name: train
                  image: $(yaml "$IMAGE")
                  command:
$(command_words)
                  env:
$(environment)
                  resources:
                    requests:
                      $resource: $HOST_CHIPS
                    limits:
                      $resource: $HOST_CHIPS
                  volumeMounts:
                    - name: storage
                      mountPath: $MOUNT
                    - name: shared-memory
                      mountPath: /dev/shm
              volumes:
                - name: storage
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: $BUCKET
                      mountOptions: "$GCSFUSE_OPTIONS"
                # Data workers hand batches over in it; a container's own has 64 MB.
                - name: shared-memory
                  emptyDir:
                    medium: Memory
YAML
}

file=$LAUNCH_DIR/$NAME.yaml
[ "$DRY_RUN" = true ] || mkdir -p "${file%/*}"
manifest | sed '/^$/d' | create "$file"
run kubectl create -f "$file"
note "state: kubectl -n $NAMESPACE get jobset $NAME"
note "log:   kubectl -n $NAMESPACE logs -f -c train -l jobset.sigs.k8s.io/jobset-name=$NAME,batch.kubernetes.io/job-completion-index=0"
note "end:   kubectl -n $NAMESPACE delete jobset $NAME (then this command starts it again from its last checkpoint)"
