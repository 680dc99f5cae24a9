#!/usr/bin/env bash
# From a machine with Python 3.11, 3.12 or 3.13 to a trained model and its report. See usage below, or --help.
set -euo pipefail

usage() {
  cat <<'EOT'
./launch/quickstart.sh [--preset=smoke|quick|full] [--out=DIR] [--data=DIR] [further flags]

Trains the whole chain on real speech and writes a report: audio tokenizer, token preparation, pretraining in two
stages, instruction tuning, then transcribing, speaking, continuing and converting held-out speech, measuring,
exporting. Interrupted at any moment and started again with the same flags, it goes on where it was.

  --preset=quick   small; about 20 minutes on 2 CPU cores (the default)
  --preset=smoke   learns nothing and shows that everything runs; 6 minutes on 2 CPU cores, most of them compilation
  --preset=full    the same chain trained longer, on all tasks; hours on 2 CPU cores
  --out=DIR        where everything is written; the results are DIR/report.html and DIR/metrics.json
  --data=DIR       your own speech in place of the built-in corpus: audio files and DIR/manifest.jsonl with one line
                   per recording: {"audio": "a.flac", "text": "...", "speaker": "...", "caption": "...",
                   "start": 0.0, "end": 2.5}; only audio and text are needed

Everything runs in .venv, made here from requirements/quickstart.txt on the first call (3 GB, most of it TensorFlow; a
minute to some minutes, depending on the network) and reused afterwards. With an NVIDIA GPU in the machine it gets jax's
CUDA plug-in too, and the GPU is used. Environment variables: PYTHON (the interpreter to use), MIMO_JAX_VENV (another
place than .venv), MIMO_JAX_ACCELERATOR (cuda, tpu or none, instead of what is found). Further flags go to
`python -m mimo_jax.quickstart`; `--helpfull` lists them.
EOT
}

for argument in "$@"; do
  case $argument in -h | --help | -help) usage; exit 0 ;; esac
done

# shellcheck source=launch/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment quickstart
exec "$VENV/bin/python" -m mimo_jax.quickstart "$@"
