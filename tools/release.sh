#!/usr/bin/env bash
# Builds sdist and wheel of the version in mimo_jax/__init__.py into dist/ and proves the wheel: installed into an empty
# environment it trains. Publishes nothing; the last lines say what is left to do.
#
#   ./tools/release.sh [--draft]
#
#   --draft    also from a working tree with changes, or without the version's date in CHANGELOG.md: to try it
set -euo pipefail

case ${1:-} in -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; exit 0 ;; esac

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/../launch/env.sh"
cd "$ROOT"
case $* in
  '') draft=false ;;
  --draft) draft=true ;;
  *) fail "$*: unknown; see $0 --help" ;;
esac

version=$(sed -nE 's/^__version__ = "(.*)"$/\1/p' mimo_jax/__init__.py)
[ -n "$version" ] || fail 'mimo_jax/__init__.py has no line __version__ = "1.2.3"'
if [ "$draft" = false ]; then
  [ -z "$(git status --porcelain)" ] || fail "the working tree has changes: commit them, or use --draft"
  grep -qE "^## ${version//./\\.} \([0-9]{4}-[0-9]{2}-[0-9]{2}\)$" CHANGELOG.md ||
    fail "CHANGELOG.md has no line '## $version (YYYY-MM-DD)': write what changed and the day, or use --draft"
  ! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || fail "v$version is tagged already: raise __version__"
fi

ensure_environment dev
rm -rf "dist/$version"
mkdir -p dist
# The wheel is built from the sdist, so that what is published can be built from what is published.
"$VENV/bin/python" -m build --outdir "dist/$version" . >dist/build.log 2>&1 ||
  { tail -20 dist/build.log >&2; fail "the build failed: dist/build.log"; }
rm -f dist/build.log
"$VENV/bin/python" tools/try_wheel.py "dist/$version/mimo_jax-$version-py3-none-any.whl"

say "dist/$version is ready. What is left to do:"
printf '  %s\n' "git tag v$version && git push origin v$version" "uvx twine upload dist/$version/*"
