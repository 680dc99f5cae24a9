#!/usr/bin/env bash
# Builds the image that gke.sh, xpk.sh, tpu_vm.sh and skypilot.sh run, for the accelerator of MACHINE, and pushes it.
#
#   ./launch/docker.sh --env=FILE [--dry-run] [NAME=VALUE ...]
#
# The image holds the checkout as it is: the package, its gin files and the locked requirements (launch/docker/Dockerfile).
set -euo pipefail

# shellcheck source=launch/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh"
read_job "$@"
need_machine
need_image
need_program docker "https://docs.docker.com/engine/install"
# Machines with accelerators are x86-64; a laptop may not be.
run docker build --platform=linux/amd64 "--build-arg=ACCELERATOR=$ACCELERATOR" "--file=$ROOT/launch/docker/Dockerfile" \
  "--tag=$IMAGE" "$ROOT"
run docker push "$IMAGE"
note "a registry of Google's wants: gcloud auth configure-docker ${IMAGE%%/*}"
