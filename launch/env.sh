# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: makes the virtual environment from a lock file, or reuses it.
#
#   ensure_environment NAME    requirements/NAME.txt, NAME one of quickstart, dev (dev holds quickstart), beam,
#                              compile
#
# Sets VENV (default .venv in the repository; MIMO_JAX_VENV names another). An environment whose lock file, Python
# and place are unchanged is used as it is; one whose making was interrupted is made again from nothing. jax gets the
# plug-in of an NVIDIA GPU that the machine has, or of what MIMO_JAX_ACCELERATOR names (cuda, tpu, none). dev gets
# PyTorch for CPUs too, with which tests load what is exported; MIMO_JAX_TORCH=none leaves it and those tests out.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${MIMO_JAX_VENV:-$ROOT/.venv}

say() { printf '[env %4ss] %s\n' "$SECONDS" "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Prints the first Python of a supported version that can make virtual environments.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.13 python3.11 python3 python; do
    [ -n "$candidate" ] || continue
    # A command of that name may exist and still not run (version managers put shims there).
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
      >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  return 1
}

# Prints the name of the lock file with jax's plug-in: cuda, tpu or nothing.
accelerator() {
  case ${MIMO_JAX_ACCELERATOR:-auto} in
    cuda | tpu) printf '%s\n' "$MIMO_JAX_ACCELERATOR" ;;
    none) ;;
    auto) if nvidia-smi -L 2>/dev/null | grep -q GPU; then printf 'cuda\n'; fi ;;
    *) fail "MIMO_JAX_ACCELERATOR=$MIMO_JAX_ACCELERATOR: use cuda, tpu, none or auto" ;;
  esac
}

# Prints the name of the lock file with PyTorch, or nothing where it is not wanted.
torch_lock() {
  case ${MIMO_JAX_TORCH:-cpu} in
    cpu) printf 'torch\n' ;;
    none) ;;
    *) fail "MIMO_JAX_TORCH=$MIMO_JAX_TORCH: use cpu or none" ;;
  esac
}

# Prints what the installed state depends on: the lock files, the packaging, the place (the package is installed editable).
fingerprint() {
  local torch=$TORCH
  [ "$1" = dev ] || torch=
  "$VENV/bin/python" - "$ROOT" "$ROOT/requirements/$1.txt" "$ROOT/requirements/compiled.txt" "$ROOT/setup.py" \
    ${ACCELERATOR:+"$ROOT/requirements/$ACCELERATOR.txt"} ${torch:+"$ROOT/requirements/$torch.txt"} <<'PY'
import hashlib, pathlib, sys
digest = hashlib.sha256(f"{sys.argv[1]} {sys.version}".encode())
for name in sys.argv[2:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

stamp_is_current() {
  local stamp=$VENV/.mimo_jax-$1.stamp
  [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$1" 2>/dev/null)" ]
}

make_venv() {
  local python
  python=$(find_python) || fail "no Python 3.11, 3.12 or 3.13 with venv found; install one" \
    "(Debian, Ubuntu: apt install python3-venv) or name it: PYTHON=/path/to/python3.12 $0"
  say "making $VENV with $("$python" --version 2>&1) ($(command -v "$python"))"
  rm -rf "$VENV"
  mkdir -p "$VENV"
  : >"$VENV/.mimo_jax-building"
  "$python" -m venv "$VENV" || fail "'$python -m venv $VENV' failed"
}

# install ARGS: as `pip install ARGS`, through uv where uv works. PYTHONDONTWRITEBYTECODE is dropped for the
# installation: with nothing compiled, every later import of TensorFlow takes 10 s more.
install() {
  if [ -x "$VENV/bin/uv" ]; then
    # uv does not read pip's settings: hand on a package index that was set for pip.
    if env -u PYTHONDONTWRITEBYTECODE ${PIP_INDEX_URL:+UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"} \
      "$VENV/bin/uv" pip install --quiet --python "$VENV/bin/python" --compile-bytecode "$@"; then
      return 0
    fi
    say "uv could not install it (see above); trying pip"
  fi
  pip_install "$@"
}

pip_install() {
  env -u PYTHONDONTWRITEBYTECODE "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --compile "$@"
}

# On Linux, PyPI's build of PyTorch is for NVIDIA GPUs and cannot be imported without gigabytes of CUDA packages. The
# build for CPUs is named +cpu and is on PyTorch's own index, which is not waited for: pip's settings may name another place.
install_torch() {
  local torch index=
  torch=$(grep -o '^torch==[0-9.]*' "$ROOT/requirements/$TORCH.txt")
  if [ "$(uname -s)" = Linux ]; then
    torch=$torch+cpu
    index=https://download.pytorch.org/whl/cpu
  fi
  grep -v '^torch==' "$ROOT/requirements/$TORCH.txt" >"$VENV/.mimo_jax-torch.txt"
  install --no-deps -r "$VENV/.mimo_jax-torch.txt" &&
    pip_install --no-deps "$torch" ${index:+--extra-index-url "$index" --retries 1 --timeout 10} &&
    "$VENV/bin/python" -c 'import torch'
}

install_environment() {
  local name=$1
  : >"$VENV/.mimo_jax-building"
  rm -f "$VENV"/.mimo_jax-*.stamp
  if ! [ -x "$VENV/bin/uv" ]; then
    say "installing uv"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check 'uv>=0.8' ||
      say "uv cannot be installed here; using pip, which is slower"
  fi
  say "installing requirements/$name.txt ($(grep -c '==' "$ROOT/requirements/$name.txt") packages)"
  install --no-deps -r "$ROOT/requirements/$name.txt" || fail "the packages of requirements/$name.txt could not be installed"
  if [ -n "$ACCELERATOR" ]; then
    say "installing requirements/$ACCELERATOR.txt"
    install --no-deps -r "$ROOT/requirements/$ACCELERATOR.txt" ||
      fail "the packages of requirements/$ACCELERATOR.txt could not be installed; MIMO_JAX_ACCELERATOR=none does without"
  fi
  [ "$name" = beam ] || [ "$name" = compile ] || install --no-deps -r "$ROOT/requirements/compiled.txt" 2>"$VENV/.mimo_jax-compiled.log" ||
    say "PESQ left out: it is built from source and that failed (no C compiler or no Python headers?" \
      "$VENV/.mimo_jax-compiled.log tells). All else works; to have it, install them, delete $VENV and start again"
  install --no-deps -e "$ROOT" || fail "mimo_jax itself could not be installed from $ROOT"
  if [ "$name" = dev ] && [ -n "$TORCH" ]; then
    say "installing requirements/$TORCH.txt"
    if ! install_torch; then
      rm -f "$VENV/.mimo_jax-building" # the rest is whole: the next start goes on from here
      fail "PyTorch, with which tests load exported models, could not be installed (see above): try again," \
        "or go without it and without these tests: MIMO_JAX_TORCH=none"
    fi
  fi
  fingerprint "$name" >"$VENV/.mimo_jax-$name.stamp.tmp"
  mv "$VENV/.mimo_jax-$name.stamp.tmp" "$VENV/.mimo_jax-$name.stamp"
  rm -f "$VENV/.mimo_jax-building"
}

ensure_environment() {
  local name=$1
  ACCELERATOR=$(accelerator)
  TORCH=$(torch_lock)
  if command -v flock >/dev/null 2>&1; then # two commands started at once: the second waits and finds it made
    exec 9>"$VENV.lock"
    flock 9
  fi
  if [ -e "$VENV/.mimo_jax-building" ]; then
    say "$VENV was left half made; making it again"
    make_venv
  elif [ -e "$VENV" ] && ! [ -f "$VENV/pyvenv.cfg" ]; then
    fail "$VENV exists and is no virtual environment: move it away, or name another place with MIMO_JAX_VENV"
  elif ! "$VENV/bin/python" -c 'import pip' >/dev/null 2>&1; then
    make_venv
  fi
  if stamp_is_current dev || stamp_is_current "$name"; then
    say "using $VENV"
  else
    install_environment "$name"
    say "environment ready"
  fi
  exec 9>&- || true
}
