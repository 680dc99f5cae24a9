#!/usr/bin/env bash
# Training under t5x (github.com/google-research/t5x), in an environment of its own; see docs/t5x.md.
#
#   ./launch/t5x.sh install                        makes the environment, and the checkout of t5x in it
#   ./launch/t5x.sh train --gin_file=gin/t5x/tiny.gin --gin.MODEL_DIR="'DIR'" --gin.PREPARED="'PREPARED'"
#   ./launch/t5x.sh convert t5x-import --checkpoint DIR --out RUN     python -m mimo_jax.convert in it
#   ./launch/t5x.sh test [pytest arguments]        tests/interop/test_t5x.py
#
# t5x is on no package index: it is fetched at the commit T5X_COMMIT (default: the one that is tested) from T5X_SOURCE,
# a URL or a local git directory (default: GitHub), or used where it is if T5X_SOURCE is a folder with its tree. The
# environment is .venv-t5x, made or reused from requirements/seqio.txt; MIMO_JAX_T5X_VENV names another. What t5x needs
# beyond it is installed, too; for airio and jestimator, which are on no index either, the modules in
# mimo_jax/interop/t5x/stand_ins stand in unless they are there.
set -euo pipefail

case ${1:-} in -h | --help | "") sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
VENV=${MIMO_JAX_T5X_VENV:-$ROOT/.venv-t5x}
T5X_SOURCE=${T5X_SOURCE:-https://github.com/google-research/t5x}
T5X_COMMIT=${T5X_COMMIT:-cc342d419ec3e3e9c4bf1df33c82330cafdc1e16}

# fetch_t5x FOLDER: t5x's tree at T5X_COMMIT, without its test data and what others contributed.
fetch_t5x() {
  local folder=$1 git_dir=$T5X_SOURCE
  rm -rf "$folder" "$folder.partial"
  mkdir -p "$folder.partial"
  if ! git --git-dir="$git_dir" rev-parse --git-dir >/dev/null 2>&1; then
    git_dir=$T5X_SOURCE/.git
  fi
  if ! git --git-dir="$git_dir" rev-parse --git-dir >/dev/null 2>&1; then
    git_dir=$folder.git
    rm -rf "$git_dir"
    git init --quiet --bare "$git_dir"
    git --git-dir="$git_dir" fetch --quiet --depth 1 "$T5X_SOURCE" "$T5X_COMMIT" ||
      fail "t5x could not be fetched from $T5X_SOURCE; name a copy of its repository: T5X_SOURCE=DIR $0"
  fi
  git --git-dir="$git_dir" archive "$T5X_COMMIT" LICENSE t5x ':(exclude)t5x/testdata' ':(exclude)t5x/contrib' |
    tar -x -C "$folder.partial" || fail "$T5X_SOURCE: no commit $T5X_COMMIT in it; name another: T5X_COMMIT=... $0"
  mv "$folder.partial" "$folder"
  rm -rf "$folder.git"
}

install_t5x() {
  local folder=$VENV/t5x-$T5X_COMMIT stamp
  if [ -f "$T5X_SOURCE/t5x/train.py" ] && [ ! -e "$T5X_SOURCE/.git" ]; then
    folder=$(cd "$T5X_SOURCE" && pwd)
  elif ! [ -f "$folder/t5x/train.py" ]; then
    say "fetching t5x at $T5X_COMMIT from $T5X_SOURCE"
    fetch_t5x "$folder"
  fi
  stamp=$(printf '%s\n' "$folder" "$ROOT" "$(cat "$VENV"/.mimo_jax-{dev,seqio}.stamp 2>/dev/null || true)")
  if [ "$(cat "$VENV/.mimo_jax-t5x.stamp" 2>/dev/null)" != "$stamp" ]; then
    say "installing what t5x needs beside requirements/seqio.txt"
    install --constraint "$ROOT/requirements/dev.txt" fiddle==0.3.1 cached-property==2.0.1 pytest hypothesis ||
      fail "fiddle and cached-property, which t5x imports, could not be installed"
    # Behind all installed packages on the path: real modules win over the stand-ins.
    printf '%s\n' "$folder" "$ROOT/mimo_jax/interop/t5x/stand_ins" \
      >"$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz_mimo_jax_t5x.pth"
    "$VENV/bin/python" -c 'import t5x.train' >"$VENV/.mimo_jax-t5x.log" 2>&1 ||
      fail "t5x cannot be imported from $folder; $VENV/.mimo_jax-t5x.log tells why"
    printf '%s\n' "$stamp" >"$VENV/.mimo_jax-t5x.stamp"
  fi
}

ensure_environment seqio
install_t5x
cd "$ROOT"
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/mimo_jax/jax}
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
command=$1
shift
case $command in
  install) say "t5x is ready: $0 train ..." ;;
  # -P: with the working folder on Python's path, gin takes runs/, which the quickstart makes, for a package of gin
  # files, and dies.
  train) exec "$VENV/bin/python" -P -m t5x.train --gin_search_paths="$ROOT/gin" "$@" ;;
  convert) exec "$VENV/bin/python" -m mimo_jax.convert "$@" ;;
  test) exec "$VENV/bin/python" -m pytest tests/interop/test_t5x.py "$@" ;;
  *) fail "$command: use install, train, convert or test; $0 --help tells more" ;;
esac
