"""Scores of texts against jiwer, sacrebleu and values by hand."""

import json

import jiwer
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from mimo_jax.cli import UserError
from mimo_jax.evaluation import text_metrics


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
    assert text_metrics.corpus_rate(errors, units) == 1.0
    assert text_metrics.utterance_rates(errors, units).tolist() == [0.5, 2.0, 1.0, 0.0]
    assert text_metrics.mean_rate(errors, units) == pytest.approx(3.5 / 4)


def test_chinese_is_counted_by_characters():
    errors, units = text_metrics.word_errors(["打开门。", "我AB"], ["打关门", "我ab吗"], "zh")
    assert errors.tolist() == [1, 1] and units.tolist() == [3, 3]


def test_no_utterances_have_no_rate():
    errors, units = text_metrics.word_errors([], [], "en")
    assert np.isnan(text_metrics.corpus_rate(errors, units)) and np.isnan(text_metrics.mean_rate(errors, units))


WORDS = st.lists(st.sampled_from(["a", "b", "cat", "dog", "d'or"]), max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=8)


@given(PAIRS)
def test_the_corpus_rate_is_that_of_jiwer(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    errors, units = text_metrics.word_errors(references, hypotheses, "en")
    assert text_metrics.corpus_rate(errors, units) == pytest.approx(jiwer.wer(references, hypotheses))
    alone = [jiwer.wer(reference, hypothesis) for reference, hypothesis in pairs]
    assert text_metrics.utterance_rates(errors, units) == pytest.approx(alone)
    assert text_metrics.mean_rate(errors, units) == pytest.approx(np.mean(alone))


REFERENCES = ["The cat sat on the mat, and slept.", "It is raining again today.", "Birds sing in the tree."]
HYPOTHESES = ["The cat sat on a mat and slept.", "It rains again today.", "Birds sing in the tree."]


def test_bleu_is_that_of_sacrebleu():
    assert text_metrics.bleu(REFERENCES, HYPOTHESES, "en") == pytest.approx(
        sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    )
    assert text_metrics.bleu(REFERENCES, REFERENCES, "en") == pytest.approx(100)
    chinese = ["我今天很喜欢下雨的声音。", "鸟在树上唱歌"], ["我今天喜欢下雨的声音。", "鸟在树上唱歌"]
    assert text_metrics.bleu(*chinese, "zh") == pytest.approx(
        sacrebleu.corpus_bleu(chinese[1], [chinese[0]], tokenize="zh").score
    )
    assert text_metrics.bleu(*chinese, "zh") > 60 > text_metrics.bleu(*chinese, "en")  # there a sentence is one word
    assert text_metrics.bleu([], [], "en") == 0


def test_bleu_says_what_decided_it():
    assert "tok:zh|" in text_metrics.bleu_signature("zh") and sacrebleu.__version__ in text_metrics.bleu_signature("zh")
    metric = sacrebleu.BLEU()
    metric.corpus_score(HYPOTHESES, [REFERENCES])
    assert text_metrics.bleu_signature("en") == str(metric.get_signature())


def test_bleu_has_an_interval():
    counts = text_metrics.bleu_counts(REFERENCES, HYPOTHESES, "en")
    low, high = text_metrics.bootstrap(counts, text_metrics.bleu_of_counts, n=100)
    assert low < text_metrics.bleu(REFERENCES, HYPOTHESES, "en") < high <= 100.0001


def test_comet_is_a_plug_in(tmp_path):
    table = tmp_path / "scores.json"
    table.write_text(json.dumps({"你好\nhello\nhi": 0.75}))
    assert text_metrics.comet(f"fake:{table}", ["你好"], ["hello"], ["hi"]).tolist() == [0.75]
    with pytest.raises(UserError, match="pip install unbabel-comet"):
        text_metrics.comet("comet:Unbabel/wmt22-comet-da", ["a"], ["b"], ["c"])


def test_intervals_are_seeded_and_cover():
    rng = np.random.default_rng(0)
    values = rng.random(400)
    low, high = text_metrics.bootstrap(values, seed=1)
    assert (low, high) == text_metrics.bootstrap(values.tolist(), seed=1) != text_metrics.bootstrap(values, seed=2)
    error = values.std() / 20  # the standard error of the mean
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.2 * error)
    narrow = text_metrics.bootstrap(values, seed=1, level=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_intervals_of_ratios():
    errors, units = np.array([1, 0, 4, 2]), np.array([10, 5, 8, 9])
    assert text_metrics.bootstrap((errors, units), n=50) == text_metrics.bootstrap(
        (errors, units), lambda e, u: e.sum(1) / u.sum(1), n=50
    )
    low, high = text_metrics.bootstrap((errors, units))
    assert low < text_metrics.corpus_rate(errors, units) < high
    assert text_metrics.bootstrap((units, units), n=10) == (1, 1)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    values = np.arange(7.0)
    whole = text_metrics.bootstrap(values, n=20)
    monkeypatch.setattr(text_metrics, "_BOOTSTRAP_CELLS", 21)
    assert text_metrics.bootstrap(values, n=20) == whole


@pytest.mark.parametrize("arguments", [([],), ((np.ones(2), np.ones(3)),), ([1.0], None, 0, 10, 1.0)])
def test_what_has_no_interval_is_refused(arguments):
    with pytest.raises(ValueError, match="bootstrap"):
        text_metrics.bootstrap(*arguments)


def test_duration_ratios():
    waves = [np.zeros(50), np.zeros(0), np.zeros(3)]
    ratios = text_metrics.duration_ratio(waves, [np.zeros(100), np.zeros(4), np.zeros(0)])
    assert ratios[:2].tolist() == [0.5, 0] and np.isnan(ratios[2])
    assert text_metrics.duration_ratio([], []).shape == (0,)


def test_cosines():
    cosines = text_metrics.cosine_similarities(np.array([[3, 4], [1, 0], [0, 0]]), np.array([[4, 3], [0, 2], [1, 1]]))
    assert cosines == pytest.approx([24 / 25, 0, 0])
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(2, 2\)"):
        text_metrics.cosine_similarities(np.ones((1, 2)), np.ones((2, 2)))
