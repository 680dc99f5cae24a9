"""Scores of texts and of pairs of recordings in the benchmarks: error rates, BLEU, COMET, intervals.

`metrics` has the figures of the project's own suites; here are the conventions of the released evaluation code
(github.com/XiaomiMiMo/MiMo-Audio-Eval), so that figures can be put beside published ones.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

_CHARACTER_LANGUAGES = frozenset({"zh", "yue"})
_BOOTSTRAP_CELLS = 4_000_000  # of resampled indices at once: 32 MB
BLEU_ORDER = 4

Statistic = Callable[..., np.ndarray]


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


def corpus_rate(errors: np.ndarray, units: np.ndarray) -> float:
    """All edits over all reference units, the usual word (character) error rate; NaN if there are no units."""
    total = int(np.sum(units))
    return float(np.sum(errors)) / total if total else float("nan")


def utterance_rates(errors: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Error rate of each utterance float64 [N]; an empty reference counts as one unit, so that it has a rate."""
    return np.asarray(errors, np.float64) / np.maximum(units, 1)


def mean_rate(errors: np.ndarray, units: np.ndarray) -> float:
    """Mean of the utterances' error rates, which the released code reports; NaN without utterances."""
    return float(utterance_rates(errors, units).mean()) if len(units) else float("nan")


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
    """BLEU float64 [...], 0 to 100, of `bleu_counts` [..., N, 10]; for `bootstrap` too. 0 without hypotheses."""
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


def bleu(references: Sequence[str], hypotheses: Sequence[str], language: str) -> float:
    """Corpus BLEU, 0 to 100, of one reference each, by sacrebleu with its usual settings (`bleu_signature`).

    Args:
      references, hypotheses: as many of the one as of the other.
      language: of both texts, as of `bleu_counts`.
    """
    return float(bleu_of_counts(bleu_counts(references, hypotheses, language)))


def bleu_signature(language: str) -> str:
    """What decides a BLEU score, as sacrebleu writes it."""
    import sacrebleu

    return f"nrefs:1|case:mixed|eff:no|tok:{_bleu_tokenizer(language)}|smooth:exp|version:{sacrebleu.__version__}"


def _bleu_tokenizer(language: str) -> str:
    return "zh" if _base_language(language) in _CHARACTER_LANGUAGES else "13a"


def comet(spec: str, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Scores of translations float64 [N] by a trained metric; their mean is what papers report.

    Args:
      spec: a plug-in of the kind "translation_scorer" (`plugins`): ``comet:Unbabel/wmt22-comet-da?python=PATH``, or
        ``fake:PATH.json``.
      sources, hypotheses, references: texts, as many of each.

    Raises:
      UserError: the package is not installed in that Python, which the message says how to do.
      PluginError: it failed and can be tried again.
    """
    from mimo_jax.evaluation import plugins

    scorer: plugins.TranslationScorer = plugins.load("translation_scorer", spec)
    return scorer.score(sources, hypotheses, references)


def bootstrap(
    values: np.ndarray | Sequence[float] | tuple[np.ndarray, np.ndarray],
    statistic: Statistic | None = None,
    seed: int = 0,
    n: int = 1000,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval over items.

    Args:
      values: one per item [N, ...]; or a tuple (numerators [N], denominators [N]), as `word_errors` returns.
      statistic: resampled values [draws, N, ...] (two such arrays for a tuple) -> figures [draws]. By default the
        mean, for a tuple the ratio of the sums: pass `word_errors`' result for the interval of `corpus_rate`,
        `utterance_rates` for that of `mean_rate`, `bleu_counts` with `bleu_of_counts` for that of `bleu`.
      seed: decides the draws, with N and n.
      n: draws.
      level: of confidence.

    Returns:
      (low, high), NaN where a draw's figure is (no denominator in any item).

    Raises:
      ValueError: no items, arrays of different lengths, or a level outside 0 to 1.
    """
    arrays = [np.asarray(part) for part in values] if isinstance(values, tuple) else [np.asarray(values)]
    items = len(arrays[0])
    if not items or any(len(array) != items for array in arrays) or not 0 < level < 1 or n < 1:
        raise ValueError(
            f"a bootstrap needs items, arrays of one length, draws and a level between 0 and 1; got arrays of "
            f"{[len(array) for array in arrays]}, n={n}, level={level}"
        )
    if statistic is None:
        statistic = _ratio if len(arrays) == 2 else _mean
    rng = np.random.Generator(np.random.Philox(seed))
    at_once = max(1, _BOOTSTRAP_CELLS // items)
    figures = []
    for first in range(0, n, at_once):
        chosen = rng.integers(0, items, (min(at_once, n - first), items))
        figures.append(np.asarray(statistic(*(array[chosen] for array in arrays)), np.float64))
    low, high = np.quantile(np.concatenate(figures), ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _mean(values: np.ndarray) -> np.ndarray:
    return values.mean(1)


def _ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return numerators.sum(1) / denominators.sum(1)


def duration_ratio(waves: Sequence[np.ndarray], references: Sequence[np.ndarray]) -> np.ndarray:
    """Length of each wave [samples] over that of its reference [samples] at one sample rate: float64 [N].

    The measure of speaking-rate conversion: 0.5 is twice as fast. An empty reference makes NaN.
    """
    lengths = np.array([(len(wave), len(reference)) for wave, reference in zip(waves, references, strict=True)])
    lengths = lengths.reshape(-1, 2).astype(np.float64)
    return np.divide(lengths[:, 0], lengths[:, 1], out=np.full(len(lengths), np.nan), where=lengths[:, 1] > 0)


def cosine_similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row of ``first`` [N, D] with the same row of ``second`` [N, D]: float64 [N].

    A row of zeros, which embedders return for silence, has the cosine 0 with everything.

    Raises:
      ValueError: shapes that differ or are not [N, D].
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"cosines need two arrays of one shape [N, D], got {first.shape} and {second.shape}")
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide((first * second).sum(1), sizes, out=np.zeros(len(first)), where=sizes > 0)
