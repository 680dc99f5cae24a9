"""Scores of texts in the benchmarks: error rates and BLEU, as sums that `benchmarks.statistic` makes figures of.

`metrics` has the figures of the project's own suites; here are the conventions of the released evaluation code
(github.com/XiaomiMiMo/MiMo-Audio-Eval), so that figures can be put beside published ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

_CHARACTER_LANGUAGES = frozenset({"zh", "yue"})
BLEU_ORDER = 4


def _base_language(language: str) -> str:
    return language.lower().replace("_", "-").partition("-")[0]


def normalise(text: str, language: str) -> str:
    """A text as error rates compare it: units with single spaces between them.

    Lower case; punctuation and symbols but ``'`` are removed, not made spaces ("well-known" is one word, as in the
    released code); in Chinese every character is a unit, Latin letters and digits too. Unlike the released code,
    full-width and other compatibility forms count as their plain ones (NFKC), a typographic apostrophe is ``'``, and
    Chinese texts are lower case too. Traditional and simplified characters are different characters, and numbers are
    not spelled out: recognisers are asked for the script and the spelling of the references.

    Args:
      text: any.
      language: ISO 639-1 code, a region after it makes no difference; "zh" and "yue" are counted by characters.
    """
    folded = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    kept = "".join(c for c in folded if c == "'" or c.isspace() or unicodedata.category(c)[0] in "LNM")
    if _base_language(language) in _CHARACTER_LANGUAGES:
        return " ".join("".join(kept.split()))
    return " ".join(kept.split())


def word_errors(references: Sequence[str], hypotheses: Sequence[str], language: str) -> tuple[np.ndarray, np.ndarray]:
    """Edits and reference units of each pair after `normalise`.

    Args:
      references, hypotheses: as many of the one as of the other.
      language: as of `normalise`.

    Returns:
      (substitutions + deletions + insertions int64 [N], reference units int64 [N]), units being words or, in Chinese,
      characters. A reference without any has as many edits as the hypothesis has units.
    """
    import jiwer

    pairs = [
        (normalise(reference, language), normalise(hypothesis, language))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]
    units = np.array([len(reference.split()) for reference, _ in pairs], np.int64)
    errors = np.array([len(hypothesis.split()) for _, hypothesis in pairs], np.int64)
    filled = np.flatnonzero(units)  # jiwer refuses empty references
    if len(filled):
        measured = jiwer.process_words([pairs[i][0] for i in filled], [pairs[i][1] for i in filled])
        for i, chunks in zip(filled, measured.alignments, strict=True):
            errors[i] = sum(
                max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                for chunk in chunks
                if chunk.type != "equal"
            )
    return errors, units


def utterance_rates(errors: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Error rate of each utterance float64 [N]; an empty reference counts as one unit, so that it has a rate."""
    return np.asarray(errors, np.float64) / np.maximum(units, 1)


def bleu_counts(references: Sequence[str], hypotheses: Sequence[str], language: str) -> np.ndarray:
    """What BLEU is made of, sentence by sentence: sums over sentences are those of the corpus.

    Args:
      references, hypotheses: as many of the one as of the other.
      language: of both texts; "zh" is cut into characters, all others as mteval-v13a does.

    Returns:
      int64 [N, 10]: n-grams of 1 to 4 words found, n-grams there are, words of the hypothesis, words of the reference.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=_bleu_tokenizer(language), effective_order=False)
    rows = []
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        score = metric.corpus_score([hypothesis], [[reference]])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, np.int64).reshape(-1, 2 * BLEU_ORDER + 2)


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU float64 [...], 0 to 100, of `bleu_counts` [..., N, 10]. 0 without hypotheses."""
    from sacrebleu.metrics import BLEU

    totals = np.asarray(counts, np.int64).sum(-2)
    scores = [
        BLEU.compute_bleu(
            row[:BLEU_ORDER].tolist(),
            row[BLEU_ORDER : 2 * BLEU_ORDER].tolist(),
            int(row[-2]),
            int(row[-1]),
            smooth_method="exp",
        ).score
        for row in totals.reshape(-1, totals.shape[-1])
    ]
    return np.array(scores, np.float64).reshape(totals.shape[:-1])


def _bleu_tokenizer(language: str) -> str:
    return "zh" if _base_language(language) in _CHARACTER_LANGUAGES else "13a"
