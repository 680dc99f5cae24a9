"""Scores of texts against jiwer, sacrebleu and values by hand."""

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.evaluation import text_metrics
from mimo_jax.evaluation.benchmarks import statistic


@pytest.mark.parametrize(
    ("text", "language", "normal"),
    [
        ("Don\u2019t  STOP, me-now!", "en", "don't stop menow"),
        ("$5 \u2013 5\uff05 <a>", "en", "5 5 a"),
        ("打开 Door，３次。", "zh", "打 开 d o o r 3 次"),
        ("打开门", "zh-CN", "打 开 门"),
        ("「你好！」", "zh", "你 好"),
        ("Café Über", "de", "café über"),
        ("...", "en", ""),
        ("हिन्दी।", "hi", "हिन्दी"),
    ],
)
def test_normalisation(text, language, normal):
    assert text_metrics.normalise(text, language) == normal


def test_errors_of_each_utterance():
    errors, units = text_metrics.word_errors(
        ["one two three four", "", "a b", "..."], ["One too three four five", "x y", "", ""], "en"
    )
    assert errors.tolist() == [2, 2, 2, 0] and units.tolist() == [4, 0, 2, 0]
    assert text_metrics.utterance_rates(errors, units).tolist() == [0.5, 2.0, 1.0, 0.0]


def test_chinese_is_counted_by_characters():
    errors, units = text_metrics.word_errors(["打开门。", "我AB"], ["打关门", "我ab吗"], "zh")
    assert errors.tolist() == [1, 1] and units.tolist() == [3, 3]


WORDS = st.lists(st.sampled_from(["a", "b", "cat", "dog", "d'or"]), max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=8)


@given(PAIRS)
def test_the_corpus_rate_is_that_of_jiwer(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    errors, units = text_metrics.word_errors(references, hypotheses, "en")
    assert errors.sum() / units.sum() == pytest.approx(jiwer.wer(references, hypotheses))
    alone = [jiwer.wer(reference, hypothesis) for reference, hypothesis in pairs]
    assert text_metrics.utterance_rates(errors, units) == pytest.approx(alone)


REFERENCES = ["The cat sat on the mat, and slept.", "It is raining again today.", "Birds sing in the tree."]
HYPOTHESES = ["The cat sat on a mat and slept.", "It rains again today.", "Birds sing in the tree."]


def bleu(references, hypotheses, language):
    return float(text_metrics.bleu_of_counts(text_metrics.bleu_counts(references, hypotheses, language)))


def test_bleu_is_that_of_sacrebleu():
    assert bleu(REFERENCES, HYPOTHESES, "en") == pytest.approx(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)
    assert bleu(REFERENCES, REFERENCES, "en") == pytest.approx(100)
    chinese = ["我今天很喜欢下雨的声音。", "鸟在树上唱歌"], ["我今天喜欢下雨的声音。", "鸟在树上唱歌"]
    assert bleu(*chinese, "zh") == pytest.approx(sacrebleu.corpus_bleu(chinese[1], [chinese[0]], tokenize="zh").score)
    assert bleu(*chinese, "zh") > 60 > bleu(*chinese, "en")  # there a sentence is one word
    assert bleu([], [], "en") == 0
    assert bleu(REFERENCES, [""] * 3, "en") == 0


def test_bleu_has_an_interval():
    counts = text_metrics.bleu_counts(REFERENCES, HYPOTHESES, "en")
    found = statistic.estimate(counts, "bleu", draws=100)
    assert found.low < found.value < found.high <= 100.0001
    assert found.value == pytest.approx(bleu(REFERENCES, HYPOTHESES, "en"))


def test_intervals_are_seeded_and_cover(monkeypatch):
    values = np.random.default_rng(0).random(400)
    shares = [(value, 1.0) for value in values]
    found = statistic.estimate(shares, seed=1)
    assert found == statistic.estimate(shares, seed=1) != statistic.estimate(shares, seed=2)
    error = values.std() / 20  # the standard error of the mean
    wanted = (values.mean() - 1.96 * error, values.mean() + 1.96 * error)
    assert (found.low, found.high) == pytest.approx(wanted, abs=0.2 * error)
    assert (found.value, found.n) == (pytest.approx(values.mean()), 400)
    monkeypatch.setattr(statistic, "_BLOCK", 1000)  # fewer draws at a time
    assert statistic.estimate(shares, seed=1) == found


def test_intervals_of_ratios():
    found = statistic.estimate([(1, 10), (0, 5), (4, 8), (2, 9)])
    assert found.low < found.value < found.high and found.value == pytest.approx(7 / 32)
    same = statistic.estimate([(2, 2), (5, 5)], draws=10)
    assert (same.low, same.value, same.high) == (1, 1, 1)
    for nothing in ([], [(1, 0)]):
        with pytest.raises(ValueError, match="no items"):
            statistic.estimate(nothing)
