#!/usr/bin/env bash
# Trains on a Slurm cluster with GPUs: one process per node, which drives all GPUs of it.
#
#   ./launch/slurm.sh --env=FILE [--dry-run] [NAME=VALUE ...]
#
# Run it on a login node, in a checkout that the nodes see, with an environment that they see (NODE_PYTHON; on one of them
# MIMO_JAX_ACCELERATOR=cuda ./launch/quickstart.sh --help makes it). STORAGE is a folder that all nodes see. Every process
# runs under mimo_jax.supervise. Five minutes before TIME is over the run saves, and the job is requeued; so it is after a
# preemption or the loss of a node.
set -euo pipefail

# shellcheck source=launch/job.sh
. "$(dirname "${BASH_SOURCE[0]}")/job.sh"
read_job "$@"
need_machine
[ "$ACCELERATOR" = cuda ] || fail "MACHINE=$MACHINE: slurm.sh is for GPUs, as in h100:32x8"
[ -z "$BUCKET" ] || fail "STORAGE=$STORAGE: slurm.sh wants a folder that all nodes see, such as /lustre/me/mimo"
require TIME '([0-9]+-)?[0-9]+(:[0-9]{2}){0,2}' "write HH:MM:SS, or DAYS-HH:MM:SS"
[ -z "$PARTITION" ] || require PARTITION '[A-Za-z0-9_.,-]+' "the name of a partition"
[ -z "$ACCOUNT" ] || require ACCOUNT '[A-Za-z0-9_.-]+' "the name of an account"
[ "$DRY_RUN" = true ] || [ -x "$ROOT/$NODE_PYTHON" ] || [ -x "$NODE_PYTHON" ] ||
  fail "NODE_PYTHON=$NODE_PYTHON: no such program in $ROOT; make the environment, or name its Python"
# sbatch reads them between quotes, and % as its own.
case $MODEL_FOLDER in *[\"\\%]*) fail "MODEL_DIR=$MODEL_DIR: Slurm names a log in it, which takes no \", \\ and %" ;; esac
need_program sbatch "run slurm.sh on a login node of the cluster"
check_run "$HOSTS" $((HOSTS * HOST_DEVICES))

job_environment
supervised "$NODE_PYTHON"
# On Slurm jax gives each process one GPU by default, for it expects one process per GPU. Here a process drives the node:
# rows of a batch that several GPUs share (sequence, tensor) must lie within a process.
devices=$(seq 0 $((HOST_CHIPS - 1)) | tr '\n' ',')
SETTINGS+=("JAX_LOCAL_DEVICE_IDS=${devices%,}")

batch_script() {
  local option
  cat <<SCRIPT
#!/bin/bash
#SBATCH --job-name=$NAME
#SBATCH --nodes=$HOSTS
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=$HOST_CHIPS
#SBATCH --exclusive
#SBATCH --time=$TIME
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="$MODEL_FOLDER/slurm-%j.log"
#SBATCH --signal=TERM@300
SCRIPT
  [ -z "$PARTITION" ] || printf '#SBATCH --partition=%s\n' "$PARTITION"
  [ -z "$ACCOUNT" ] || printf '#SBATCH --account=%s\n' "$ACCOUNT"
  for option in ${SBATCH[@]+"${SBATCH[@]}"}; do printf '#SBATCH %s\n' "$option"; done
  cat <<SCRIPT
cd $(quoted "$ROOT") || exit 2
export $(quoted "${SETTINGS[@]}")

# Before the limit of time Slurm sends SIGTERM to every process (not to this script): all save after the same step and end
# with 75. A job that was cancelled ends so, too, and stays ended. The first node to end must not have the others killed, one
# of which writes the last files: ten minutes are theirs. No binding: the one process of a node is to have all its cores.
srun --kill-on-bad-exit=0 --wait=600 --cpu-bind=none --label $(quoted "${COMMAND[@]}")
code=\$?
echo "ended with exit code \$code"
if [ \$code = 75 ] && [ "\$(squeue --noheader --format=%T --jobs="\$SLURM_JOB_ID")" = RUNNING ]; then
  exec scontrol requeue "\$SLURM_JOB_ID"
fi
exit \$code
SCRIPT
}

file=$LAUNCH_DIR/$NAME.sbatch
[ "$DRY_RUN" = true ] || mkdir -p "${file%/*}" "$MODEL_FOLDER"
batch_script | create "$file"
run sbatch "$file"
note "state: squeue --name=$NAME"
note "log:   tail -F $MODEL_FOLDER/slurm-*.log"
note "end:   scancel --name=$NAME (processes get Slurm's KillWait, 30 s by default, to save)"
