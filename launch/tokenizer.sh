#!/usr/bin/env bash
# From a machine with Python 3.11, 3.12 or 3.13 to a trained audio tokenizer and its measurements. See usage below.
set -euo pipefail

usage() {
  cat <<'EOT'
./launch/tokenizer.sh [--preset=smoke|small] [--out=DIR] [--data=DIR] [--compare] [further flags]

Trains the audio tokenizer alone, longer than the quickstart does and with 20 codebooks, in both stages, and measures it
on held-out texts and voices at every number of codebooks, beside baselines. Interrupted at any moment and started again
with the same flags, it goes on where it was.

  --preset=small   about an hour on 2 CPU cores (the default); smoke learns nothing and shows that everything runs
  --compare        also trains what it is compared with: as many steps without the discriminators, and stage 1 without
                   the audio-to-text loss; twice the time
  --out=DIR        where everything is written (runs/tokenizer); the results are DIR/measured/report.html and metrics.json
  --data=DIR       your own speech in place of the built-in corpus, as for the quickstart

The environment is that of ./launch/quickstart.sh, and so are its variables.
EOT
}

for argument in "$@"; do
  case $argument in -h | --help | -help) usage; exit 0 ;; esac
done

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment quickstart
exec "$VENV/bin/python" -m mimo_jax.train_tokenizer "$@"
