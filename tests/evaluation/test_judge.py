"""The judge: saved and loaded alike, and indifferent to the batch."""

import jax
import numpy as np
import pytest

from mimo_jax.evaluation.judge import CtcJudge
from mimo_jax.models.recogniser import Recogniser, RecogniserConfig
from mimo_jax.objectives.transcripts import Vocabulary

CONFIG = RecogniserConfig(num_words=2, d_model=8, dilations=(1,), num_mels=8, n_fft=640)


@pytest.fixture(scope="module")
def judge():
    params = Recogniser(CONFIG).init(jax.random.key(0), np.zeros((1, 4800), np.float32), np.array([4800]))["params"]
    return CtcJudge(CONFIG, params, Vocabulary(("yes", "no")))


def test_transcripts_survive_saving_and_do_not_depend_on_the_batch(judge, tmp_path):
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 0.1, n).astype(np.float32) for n in (0, 4000, 24_000, 30_000)]
    texts = judge.transcribe(waves)
    assert texts[0] == "" and any(texts)
    assert [judge.transcribe([wave])[0] for wave in waves] == texts
    judge.save(tmp_path / "judge")
    assert CtcJudge.load(tmp_path / "judge").transcribe(waves) == texts


def test_a_folder_without_a_recogniser_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        CtcJudge.load(tmp_path)


def test_too_many_words_are_refused(judge):
    with pytest.raises(ValueError, match="3 words"):
        CtcJudge(CONFIG, judge.params, Vocabulary(("a", "b", "c")))
