"""Builds the built-in speech corpus.

    python -m mimo_jax.corpus --out=DIR

Synthesises multi-voice speech locally (no download), with true labels for every task format: transcripts, speakers,
accents, styles, noises, captions, questions and answers, documents, spoken dialogue, parallel and clean/noisy pairs.
Writes FLAC at 24 kHz, manifest.jsonl (the format of your own data, too), texts.jsonl and corpus.json. The default sizes
make about 7 hours in a minute or two on two cores. Interrupted, it goes on where it was when started again.
"""

from __future__ import annotations

import json

from absl import app, flags

from mimo_jax.data.corpus.build import SUMMARY_NAME, CorpusError, build_corpus
from mimo_jax.data.corpus.espeak import EspeakError
from mimo_jax.data.corpus.plan import WIDE_SHARES, CorpusConfig

_D = CorpusConfig()
_OUT = flags.DEFINE_string("out", None, "Folder to write the corpus to.", required=True)
_SEED = flags.DEFINE_integer("seed", _D.seed, "Everything random follows from it.")
_CORE = flags.DEFINE_integer("core_utterances", _D.core_utterances, "Training utterances of digits and commands.")
_CORE_VALIDATION = flags.DEFINE_integer("core_validation", _D.core_validation, "Core: unseen texts, seen voices.")
_CORE_TEST = flags.DEFINE_integer("core_test_voices", _D.core_test_voices, "Core: unseen texts, unseen voices.")
_WIDE = flags.DEFINE_integer("wide_utterances", _D.wide_utterances, "Training utterances of all task formats.")
_WIDE_VALIDATION = flags.DEFINE_integer("wide_validation", _D.wide_validation, "Wide: unseen texts, seen voices.")
_WIDE_TEST = flags.DEFINE_integer("wide_test_voices", _D.wide_test_voices, "Wide: unseen texts, unseen voices.")
_TEXTS = flags.DEFINE_integer("texts", _D.texts, "Text-only training records.", lower_bound=0)
_SHARES = flags.DEFINE_list(
    "wide_shares",
    [],
    f"Other shares of the wide training utterances, KIND=SHARE,...; without it they are "
    f"{','.join(f'{kind}={share:g}' for kind, share in WIDE_SHARES.items())}, and plain sentences are the rest.",
)
_INSTRUCTIONS = flags.DEFINE_float(
    "instructions",
    _D.instructions,
    "Share of the utterances of 2 to 8 words that get a written instruction about their words (`qa`).",
)
_WORKERS = flags.DEFINE_integer("workers", None, "Processes; one per core if not given.", lower_bound=1)


def _shares(given: list[str]) -> dict[str, float]:
    """KIND=SHARE each.

    Raises:
      ValueError: something else.
    """
    shares = {}
    for item in given:
        kind, _, share = item.partition("=")
        try:
            shares[kind] = float(share)
        except ValueError:
            raise ValueError(f"--wide_shares: {item!r} is not KIND=SHARE, such as dialogue=0.4") from None
    return shares


def main(argv: list[str]) -> None:
    """Builds the corpus and prints its figures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    try:
        path = build_corpus(
            _OUT.value,
            seed=_SEED.value,
            core_utterances=_CORE.value,
            wide_utterances=_WIDE.value,
            core_validation=_CORE_VALIDATION.value,
            core_test_voices=_CORE_TEST.value,
            wide_validation=_WIDE_VALIDATION.value,
            wide_test_voices=_WIDE_TEST.value,
            texts=_TEXTS.value,
            wide_shares=_shares(_SHARES.value),
            instructions=_INSTRUCTIONS.value,
            workers=_WORKERS.value,
        )
    except (CorpusError, EspeakError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    print(json.dumps(json.loads((path.parent / SUMMARY_NAME).read_text(encoding="utf-8")), indent=1))
    print(f"corpus: {path}")


if __name__ == "__main__":
    app.run(main)
