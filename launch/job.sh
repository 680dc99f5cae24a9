# shellcheck shell=bash
# Sourced by local.sh, tpu_vm.sh, xpk.sh, gke.sh, slurm.sh, skypilot.sh and docker.sh: what they have in common.
#
#   read_job "$@"        --env=FILE [--dry-run] [NAME=VALUE ...]: reads and checks the job
#   job_command PYTHON   sets COMMAND, the process of one host
#   job_environment      sets SETTINGS, NAME=VALUE of its environment
#   check_run PROCESSES DEVICES    the gin files against the machine, where there is an environment to do it
#   run COMMAND ...      prints a command and runs it, with --dry-run only prints it
#   create FILE          prints standard input and writes it to FILE, with --dry-run only prints it
#
# Nothing here needs more than bash 3.2, which macOS has.

# shellcheck disable=SC2034,SC2329  # the launchers use what is set and defined here

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

JOB_VARIABLES=" NAME STAGES HARDWARE BINDINGS PREPARED MODEL_DIR INIT_FROM ENVIRONMENT MACHINE STORAGE MAX_RESTARTS IMAGE \
PROJECT ZONE CAPACITY RESERVATION CLUSTER NAMESPACE SERVICE_ACCOUNT RUNTIME_VERSION PARTITION ACCOUNT TIME SBATCH \
NODE_PYTHON PROCESSES "
JOB_ARRAYS=" STAGES BINDINGS ENVIRONMENT SBATCH "
DRY_RUN=false
MOUNT=/storage # where a bucket is mounted
LAUNCH_DIR=${MIMO_JAX_LAUNCH_DIR:-$ROOT/runs/launch} # where manifests and scripts are written
# Cloud Storage FUSE, as its driver for Kubernetes takes it: a checkpoint's folder is renamed once it is whole, which a bucket
# without hierarchical namespace does file by file and refuses by default; a folder that another host has just made is seen.
GCSFUSE_OPTIONS=implicit-dirs,rename-dir-limit=1000000,metadata-cache:negative-ttl-secs:0

note() { printf '%s\n' "$*"; }

# usage_if_asked "$@": prints the comment at the head of the launcher and exits.
usage_if_asked() {
  local argument
  for argument in "$@"; do
    case $argument in
      -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; exit 0 ;;
    esac
  done
}

read_job() {
  local argument file='' name overrides=()
  usage_if_asked "$@"
  for argument in "$@"; do
    case $argument in
      --env=*) file=${argument#--env=} ;;
      --dry-run) DRY_RUN=true ;;
      [A-Z_]*=*) overrides+=("$argument") ;;
      *) fail "$argument: unknown; see $0 --help" ;;
    esac
  done
  [ -n "$file" ] || fail "--env=FILE is missing: copy launch/job.env.example and fill it in"
  [ -f "$file" ] || fail "--env=$file: no such file; copy launch/job.env.example and fill it in"
  case $file in */*) ;; *) file=./$file ;; esac # without a slash bash would look for it in PATH
  while read -r name; do
    ! is_among "$name" "$JOB_VARIABLES" || continue
    # A list may go over several lines, each of which looks like a variable: ask bash, without the variable of that name
    # that this shell may have inherited.
    # shellcheck disable=SC2016  # for the other bash
    ! env -u "$name" bash -c '. "$1" && declare -p "$2"' - "$file" "$name" </dev/null >/dev/null 2>&1 ||
      fail "$file: unknown variable $name; those of launch/job.env.example are known"
  done < <(sed -nE 's/^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z_0-9]*)\+?=.*/\2/p' "$file")
  NAME='' STAGES=() HARDWARE='' BINDINGS=() PREPARED='' MODEL_DIR='' INIT_FROM='' ENVIRONMENT=() MACHINE='' STORAGE=''
  SLICES=1 MAX_RESTARTS=5 IMAGE='' PROJECT='' ZONE='' CAPACITY=spot RESERVATION='' CLUSTER='' NAMESPACE=default SERVICE_ACCOUNT=''
  RUNTIME_VERSION='' PARTITION='' ACCOUNT='' TIME=24:00:00 SBATCH=() NODE_PYTHON=.venv/bin/python PROCESSES=1
  # shellcheck disable=SC1090  # the user's
  . "$file" || fail "$file: bash cannot read it"
  for argument in ${overrides[@]+"${overrides[@]}"}; do
    name=${argument%%=*}
    is_among "$name" "$JOB_VARIABLES" || fail "$argument: unknown variable; those of launch/job.env.example are known"
    if is_among "$name" "$JOB_ARRAYS"; then
      # One entry, which a command line can hold, or none.
      case $argument in "$name=("*) fail "$argument: one entry without brackets, please; a list stands in $file" ;; esac
      if [ "$argument" = "$name=" ]; then eval "$name=()"; else eval "$name=(\"\${argument#*=}\")"; fi
    else
      printf -v "$name" %s "${argument#*=}"
    fi
  done
  check_job
}

is_among() { case $2 in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# require NAME PATTERN WHAT: the variable matches the extended regular expression, or WHAT says what it should be.
require() {
  [[ ${!1} =~ ^($2)$ ]] || fail "$1=${!1}: $3"
}

check_job() {
  local stage word
  require NAME '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "lowercase letters, digits and hyphens, at most 40, a letter first"
  require MAX_RESTARTS '[0-9]+' "a whole number is wanted"
  # Such as the \r of a file from Windows: they would end a line of a manifest or script.
  for word in "$HARDWARE" "$PREPARED" "$MODEL_DIR" "$INIT_FROM" "$STORAGE" "$NODE_PYTHON" ${STAGES[@]+"${STAGES[@]}"} \
    ${BINDINGS[@]+"${BINDINGS[@]}"} ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"} ${SBATCH[@]+"${SBATCH[@]}"}; do
    case $word in *[[:cntrl:]]*) fail "$(quoted "$word"): no line ends and other control characters, please" ;; esac
  done
  case $STORAGE in
    gs://*)
      require STORAGE 'gs://[a-z0-9][a-z0-9_.-]{1,61}[a-z0-9](/[A-Za-z0-9_.=-]+)*/?' \
        "write gs://BUCKET or gs://BUCKET/FOLDER; a bucket's name has 3 to 63 lowercase letters, digits, -, _ and ."
      BUCKET=${STORAGE#gs://} BUCKET=${BUCKET%%/*}
      FOLDER=${STORAGE#gs://"$BUCKET"} FOLDER=${FOLDER%/}
      ROOT_FOLDER=$MOUNT$FOLDER
      ;;
    /*) BUCKET='' ROOT_FOLDER=${STORAGE%/} ;;
    *) fail "STORAGE=$STORAGE: gs://BUCKET[/FOLDER], or the whole path of a folder that all machines see" ;;
  esac
  [ -n "$MODEL_DIR" ] || fail "MODEL_DIR is empty: name the folder of the run's checkpoints in $STORAGE"
  case "$MODEL_DIR $PREPARED $INIT_FROM" in *://*) fail "MODEL_DIR, PREPARED and INIT_FROM lie in STORAGE=$STORAGE: write" \
    "their path in it; a bucket is mounted, training reads and writes files only" ;; esac
  MODEL_FOLDER=$(in_storage "$MODEL_DIR")
  # Anywhere else it would be a folder of the container, which ends with it.
  [ -z "$BUCKET" ] || case $MODEL_FOLDER in
    "$MOUNT"/?*) ;;
    *) fail "MODEL_DIR=$MODEL_DIR: write its path in STORAGE=$STORAGE without / in front" ;;
  esac
  [ ${#STAGES[@]} -gt 0 ] || fail "STAGES is empty: name at least one run file, such as gin/runs/pretrain_7b_understanding.gin"
  [ -z "$HARDWARE" ] || find_gin HARDWARE "$HARDWARE"
  for stage in "${STAGES[@]}"; do
    # Quotes would mean one thing to mimo_jax.pretrain and another here.
    case $stage in *[\'\"\\]*) fail "STAGES: $stage: write bindings with quotes into BINDINGS or a gin file" ;; esac
    case $stage in *.gin | *.gin' '*) ;; *) fail "STAGES: '$stage' should begin with a gin run file" ;; esac
    set -f
    for word in $stage; do case $word in *.gin) find_gin STAGES "$word" ;; esac; done
    set +f
  done
  for word in ${BINDINGS[@]+"${BINDINGS[@]}"}; do
    case $word in --*) fail "BINDINGS: write ${word#--gin.} without dashes in front" ;; *=*) ;; *) fail "BINDINGS: $word: write NAME=VALUE" ;; esac
  done
  for word in ${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"}; do
    [[ $word =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] || fail "ENVIRONMENT: $word: write NAME=VALUE"
  done
  [ -z "$MACHINE" ] || check_machine
}

in_storage() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s\n' "$ROOT_FOLDER/$1" ;; esac; }

# find_gin VARIABLE FILE: as mimo_jax.cli finds it when it is started in the checkout.
find_gin() {
  case $2 in
    /*) [ -f "$2" ] || fail "$1: $2: no such file" ;;
    *) [ -f "$ROOT/$2" ] || [ -f "$ROOT/gin/$2" ] || fail "$1: $2: no such file in $ROOT or $ROOT/gin" ;;
  esac
}

# From MACHINE: ACCELERATOR (tpu, cuda), KIND, TOPOLOGY, SLICES, CHIPS (of a slice or node), HOSTS (of a slice, or all),
# HOST_CHIPS, HOST_DEVICES (as jax counts them).
check_machine() {
  local dimensions product=1 size
  [[ $MACHINE =~ ^([a-z0-9]+):([0-9]+(x[0-9]+)*)(x([0-9]+)slices)?$ ]] ||
    fail "MACHINE=$MACHINE: write KIND:TOPOLOGY, such as v5p:4x8x8, v5e:16x16x2slices or h100:32x8 (nodes x GPUs)"
  KIND=${BASH_REMATCH[1]} TOPOLOGY=${BASH_REMATCH[2]} SLICES=${BASH_REMATCH[5]:-1}
  [ "$SLICES" -ge 1 ] || fail "MACHINE=$MACHINE: at least one slice"
  dimensions=" ${TOPOLOGY//x/ } "
  for size in $dimensions; do product=$((product * size)); done
  case $KIND in
    a100 | h100 | h200 | b200)
      ACCELERATOR=cuda
      [[ $TOPOLOGY =~ ^([1-9][0-9]*)x([1-8])$ ]] && [ "$SLICES" = 1 ] ||
        fail "MACHINE=$MACHINE: write $KIND:NODESxGPUS with at most 8 GPUs a node"
      HOSTS=${BASH_REMATCH[1]} HOST_CHIPS=${BASH_REMATCH[2]}
      HOST_DEVICES=$HOST_CHIPS CHIPS=$product
      return
      ;;
    v4 | v5p | tpu7x)
      # The shapes that there are: small ones, then multiples of 4 in each dimension.
      is_among "$TOPOLOGY" " 1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 " || [[ $TOPOLOGY =~ ^[0-9]+x[0-9]+x[0-9]+$ ]] || product=0
      if ! is_among "$TOPOLOGY" " 1x1x1 2x2x1 2x2x2 2x2x4 2x4x4 "; then
        for size in $dimensions; do [ $((size % 4)) = 0 ] || product=0; done
      fi
      ;;
    v5e | v6e) is_among "$TOPOLOGY" " 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 " || product=0 ;;
    *) fail "MACHINE=$MACHINE: unknown kind $KIND; v4, v5e, v5p, v6e, tpu7x, a100, h100, h200 and b200 are known" ;;
  esac
  case $KIND in
    v5e | v6e) size="1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16" ;;
    *) size="2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4" ;;
  esac
  [ "$product" -gt 0 ] || fail "MACHINE=$MACHINE: a topology of $KIND is $size"
  ACCELERATOR=tpu CHIPS=$product HOST_CHIPS=4
  [ "$CHIPS" -ge 4 ] || HOST_CHIPS=$CHIPS
  HOSTS=$((CHIPS / HOST_CHIPS))
  HOST_DEVICES=$HOST_CHIPS
  [ "$KIND" != tpu7x ] || HOST_DEVICES=$((2 * HOST_CHIPS)) # each half of a chip is a device
}

# What a launcher cannot do without.
need_machine() { [ -n "$MACHINE" ] || fail "MACHINE is empty: name one, such as v5p:4x8x8 or h100:32x8"; }
need_tpu() { need_machine; [ "$ACCELERATOR" = tpu ] || fail "MACHINE=$MACHINE: $(basename "$0") is for TPUs"; }
need_bucket() { [ -n "$BUCKET" ] || fail "STORAGE=$STORAGE: $(basename "$0") mounts a bucket: write gs://BUCKET[/FOLDER]"; }
need_image() {
  case " $HARDWARE ${STAGES[*]} " in *" /"*.gin*) fail "STAGES, HARDWARE: the image holds the files of $ROOT; put yours there" ;; esac
  require IMAGE '[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9._-]+)+(:[A-Za-z0-9_.-]+)?(@sha256:[0-9a-f]{64})?' \
    "the image's whole name, such as us-docker.pkg.dev/PROJECT/images/mimo_jax:latest"
}
need_project() {
  require PROJECT '([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]' \
    "a project ID has 6 to 30 lowercase letters, digits and hyphens and begins with a letter"
}
need_zone() { require ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone looks like us-east5-a"; }
need_capacity() {
  require CAPACITY 'spot|on-demand|reserved' "use spot, on-demand or reserved"
}
# need_program NAME WHERE: unless this is a dry run.
need_program() {
  [ "$DRY_RUN" = true ] || command -v "$1" >/dev/null 2>&1 || fail "$1 is not installed: $2"
}

# stage_flags STAGE: FLAGS, the gin files and bindings of a stage as flags of mimo_jax.train.
stage_flags() {
  local word
  FLAGS=("--gin_file=${1%% *}")
  [ -z "$HARDWARE" ] || FLAGS+=("--gin_file=$HARDWARE")
  set -f # a * in a binding is no file name
  for word in ${1#"${1%% *}"}; do case $word in *.gin) FLAGS+=("--gin_file=$word") ;; *) FLAGS+=("--gin.$word") ;; esac; done
  set +f
}

# common_flags: COMMON, the bindings of every stage.
common_flags() {
  local word
  COMMON=()
  [ -z "$PREPARED" ] || COMMON+=("--gin.PREPARED=$(in_storage "$PREPARED")")
  for word in ${BINDINGS[@]+"${BINDINGS[@]}"}; do COMMON+=("--gin.$word"); done
}

# job_command PYTHON: COMMAND, in words.
job_command() {
  local stage
  common_flags
  if [ ${#STAGES[@]} = 1 ]; then
    stage_flags "${STAGES[0]}"
    COMMAND=("$1" -m mimo_jax.train "${FLAGS[@]}" "--gin.MODEL_DIR=$MODEL_FOLDER")
    [ -z "$INIT_FROM" ] || COMMAND+=("--gin.INIT_FROM=$(in_storage "$INIT_FROM")")
  else
    COMMAND=("$1" -m mimo_jax.pretrain "--out=$MODEL_FOLDER")
    for stage in "${STAGES[@]}"; do
      COMMAND+=("--stage=${stage%% *}${HARDWARE:+ $HARDWARE}${stage#"${stage%% *}"}")
    done
    [ -z "$INIT_FROM" ] || COMMAND+=("--init_from=$(in_storage "$INIT_FROM")")
  fi
  COMMAND+=(${COMMON[@]+"${COMMON[@]}"})
}

# supervised PYTHON [OPTION ...]: COMMAND under mimo_jax.supervise, for platforms that do not restart processes.
supervised() {
  local python=$1
  shift
  job_command "$python"
  COMMAND=("$python" -m mimo_jax.supervise "--model_dir=$MODEL_FOLDER" "--max_restarts=$MAX_RESTARTS" "$@" -- "${COMMAND[@]}")
}

job_environment() {
  # Compiling a step of the 7B takes minutes; what one start has compiled the next one reads.
  SETTINGS=("JAX_COMPILATION_CACHE_DIR=$ROOT_FOLDER/cache/jax")
  # jax takes 75 % of a GPU's memory by default; gin/hardware and docs/scale.md count on 92 %.
  [ "${ACCELERATOR:-}" != cuda ] || SETTINGS+=("XLA_PYTHON_CLIENT_MEM_FRACTION=0.92")
  SETTINGS+=(${ENVIRONMENT[@]+"${ENVIRONMENT[@]}"})
}

# check_run PROCESSES DEVICES: the gin files, every binding, and the mesh against the machine (python -m mimo_jax.check_run).
check_run() {
  local python=${MIMO_JAX_PYTHON:-$VENV/bin/python} stage from=${INIT_FROM:+"$(in_storage "$INIT_FROM")"}
  if ! "$python" -c 'import jax, gin' >/dev/null 2>&1; then
    note "not checked: gin files, bindings and mesh against $MACHINE ($python has no jax; ./launch/quickstart.sh makes" \
      "an environment, MIMO_JAX_PYTHON names another)"
    return
  fi
  common_flags
  for stage in "${STAGES[@]}"; do
    stage_flags "$stage"
    (cd "$ROOT" && "$python" -m mimo_jax.check_run "--processes=$1" "--devices=$2" "--slices=$SLICES" \
      "${FLAGS[@]}" "--gin.MODEL_DIR=$MODEL_FOLDER" ${from:+"--gin.INIT_FROM=$from"} ${COMMON[@]+"${COMMON[@]}"}) ||
      fail "${stage%% *} with HARDWARE=$HARDWARE does not go with ${MACHINE:+MACHINE=}${MACHINE:-$1 processes} (see above)"
    from=$MODEL_FOLDER # as mimo_jax.pretrain gives the next stage its folder
  done
}

# quoted WORD ...: as a shell reads it back.
quoted() {
  local word line=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) line="$line '$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
      *) line="$line $word" ;;
    esac
  done
  printf '%s\n' "${line# }"
}

# yaml WORD: a string in double quotes, which is JSON and YAML; check_job has refused control characters.
yaml() {
  printf '"%s"\n' "$(printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g')"
}

run() {
  printf '+ %s\n' "$(quoted "$@")"
  [ "$DRY_RUN" = true ] || "$@"
}

create() {
  local text
  text=$(cat)
  printf '# %s\n%s\n' "$1" "$text"
  [ "$DRY_RUN" = true ] || printf '%s\n' "$text" >"$1"
}
