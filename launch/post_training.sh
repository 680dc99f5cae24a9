#!/usr/bin/env bash
# From a finished quickstart to an instruction-tuned model and its comparison with the base. See usage below.
set -euo pipefail

usage() {
  cat <<'EOT'
./launch/post_training.sh --quickstart=DIR [--out=DIR] [--preset=smoke|small|long] [further flags]

Tunes the quickstart's base on questions about recordings, spoken dialogue and instructed speech of a larger corpus, and
measures base and tuned model on held-out items, answering with and without thinking. Interrupted at any moment and
started again with the same flags, it goes on where it was.

  --quickstart=DIR where ./launch/quickstart.sh wrote (runs/quickstart); its base and tokenizers are used
  --preset=small   under an hour on 2 CPU cores (the default); long tunes on the same data for four times as many steps;
                   smoke learns nothing and shows that everything runs
  --out=DIR        where everything is written (runs/post_training); the results are DIR/comparison.md and
                   DIR/comparison.json, the recordings DIR/evaluation/*/samples

The environment is that of ./launch/quickstart.sh, and so are its variables.
EOT
}

for argument in "$@"; do
  case $argument in -h | --help | -help) usage; exit 0 ;; esac
done

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment quickstart
exec "$VENV/bin/python" -m mimo_jax.post_training "$@"
