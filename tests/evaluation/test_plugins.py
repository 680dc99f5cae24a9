"""Plug-ins that need no network: fakes, the project's recogniser, hashed n-grams, timbre, COMET's own Python."""

import json
import sys

import jax
import numpy as np
import pytest

from mimo_jax.cli import UserError
from mimo_jax.data.audio import load_audio, resample, write_wav
from mimo_jax.evaluation import plugins
from mimo_jax.evaluation.plugins import fake

INTERFACES = {
    "transcriber": plugins.Transcriber,
    "judge": plugins.Judge,
    "text_embedder": plugins.TextEmbedder,
    "speaker_embedder": plugins.SpeakerEmbedder,
    "translation_scorer": plugins.TranslationScorer,
}


@pytest.fixture
def table(tmp_path):
    def write(entries, name="table.json"):
        path = tmp_path / name
        path.write_text(json.dumps(entries))
        return f"fake:{path}"

    return write


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_fakes_have_their_interface(kind, table):
    plugin = plugins.load(kind, table({"a": "b"}))
    assert isinstance(plugin, INTERFACES[kind])
    assert plugin.identity == plugins.load(kind, table({"a": "b"}, "copy.json")).identity  # by content
    assert plugin.identity != plugins.load(kind, table({"a": "c"}, "other.json")).identity


def test_a_fake_judge_replies_by_prompt(table):
    judge = plugins.load("judge", table({"good?": "YES", "bad?": "NO"}))
    assert judge.ask(["bad?", "good?", "bad?"]) == ["NO", "YES", "NO"]
    with pytest.raises(UserError, match="no entry for 'why\\?'"):
        judge.ask(["good?", "why?"])


def test_a_fake_fails_as_often_as_it_is_told(table):
    judge = plugins.load("judge", table({"a": {"failures": 2, "then": "YES"}}))
    for _ in range(2):
        with pytest.raises(plugins.PluginError, match="of 2 for 'a'"):
            judge.ask(["a"])
    assert judge.ask(["a"]) == ["YES"]


def test_a_fake_transcriber_knows_waves_by_label_or_samples(table, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.1, 100).astype(np.float32)
    spec = table({"说 hello": "hello there", fake.wave_key(noise): "noise"})
    labelled = fake.labelled_wave("说 hello", 3000)
    write_wav(tmp_path / "a.wav", labelled)
    read = load_audio(tmp_path / "a.wav")
    waves = [noise, labelled, read, np.concatenate([labelled, noise]), np.zeros(0, np.float32)]
    texts = plugins.load("transcriber", spec).transcribe(waves, 24_000, "en")
    assert texts == ["noise", "hello there", "hello there", "hello there", ""]
    with pytest.raises(UserError, match="no entry for 'wave:"):
        plugins.load("transcriber", spec).transcribe([noise[1:]], 24_000, "en")


def test_fake_embedders_scale_to_unit_length(table):
    spec = table({"cat": [3, 4], "none": [0.0, 0.0]})
    assert np.allclose(plugins.load("text_embedder", spec).embed(["none", "cat"]), [[0, 0], [0.6, 0.8]])
    waves = [np.zeros(0, np.float32), fake.labelled_wave("cat")]
    vectors = plugins.load("speaker_embedder", spec).embed(waves, 16_000)
    assert vectors.dtype == np.float32 and np.allclose(vectors, [[0, 0], [0.6, 0.8]])
    assert plugins.load("text_embedder", spec).embed([]).shape == (0, 2)


@pytest.mark.parametrize(
    ("entries", "message"), [({"a": 1}, "must be a text"), (["a"], "JSON object"), ({"a": {"then": "b"}}, "a text")]
)
def test_a_table_of_another_form_is_refused(entries, message, table):
    with pytest.raises(UserError, match=message):
        plugins.load("judge", table(entries)).ask(["a"])


def test_fake_vectors_of_several_lengths_are_refused(table):
    with pytest.raises(UserError, match="several lengths"):
        plugins.load("text_embedder", table({"a": [1], "b": [1, 2]})).embed(["a", "b"])


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nothing.json: no such file"):
        plugins.load("judge", f"fake:{tmp_path}/nothing.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(UserError, match="broken.json: not JSON"):
        plugins.load("judge", f"fake:{tmp_path}/broken.json")


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("oracle", "fake:a.json", "no kind.*'oracle'.*transcriber, judge, text_embedder, speaker_embedder"),
        ("judge", "rule", "fake:PATH.json, openai:BASE_URL#MODEL"),
        ("judge", "hashing", "no plug-in 'hashing'"),
        ("text_embedder", "hashing:4", "transformers:MODEL"),
        ("judge", "fake:", "no plug-in 'fake:'"),
        ("speaker_embedder", "openai:http://a/v1#b", "builtin"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(kind, spec, message):
    with pytest.raises(UserError, match=message):
        plugins.load(kind, spec)


def test_the_ctc_transcriber_is_the_projects_recogniser_at_any_rate(tmp_path):
    from mimo_jax.evaluation.judge import CtcJudge
    from mimo_jax.models.recogniser import Recogniser, RecogniserConfig
    from mimo_jax.objectives.transcripts import Vocabulary

    config = RecogniserConfig(num_words=2, d_model=8, dilations=(1,), num_mels=8, n_fft=640)
    params = Recogniser(config).init(jax.random.key(0), np.zeros((1, 4800), np.float32), np.array([4800]))["params"]
    judge = CtcJudge(config, params, Vocabulary(("yes", "no")))
    judge.save(tmp_path / "judge")
    plugin = plugins.load("transcriber", f"ctc:{tmp_path}/judge")
    assert isinstance(plugin, plugins.Transcriber)
    rng = np.random.default_rng(0)
    waves = [rng.normal(0, 0.1, 24_000).astype(np.float32), np.zeros(0, np.float32)]
    texts = plugin.transcribe(waves, 24_000, "en")
    assert texts == judge.transcribe(waves) and texts[0]
    low = plugin.transcribe([waves[0][:16_000]], 16_000, "en")
    assert low == judge.transcribe([resample(waves[0][:16_000], 16_000, 24_000)])
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    CtcJudge(config, other, Vocabulary(("yes", "no"))).save(tmp_path / "other")
    assert plugins.load("transcriber", f"ctc:{tmp_path}/other").identity != plugin.identity
    with pytest.raises(UserError, match="no config.json"):
        plugins.load("transcriber", f"ctc:{tmp_path}")


def test_hashed_ngrams_find_the_choice_that_an_answer_repeats():
    embedder = plugins.load("text_embedder", "hashing")
    assert isinstance(embedder, plugins.TextEmbedder)
    choices = embedder.embed(["A barking dog", "A passing train", "雨声", "Birds"])
    answers = embedder.embed(["I hear a dog that is barking.", "the TRAIN!", "这是雨声。", "bird"])
    assert (answers @ choices.T).argmax(1).tolist() == [0, 1, 2, 3]
    assert np.allclose(np.linalg.norm(choices, axis=1), 1) and choices.dtype == np.float32
    assert not embedder.embed(["", " ... "]).any()
    assert embedder.embed([]).shape == (0, 4096)
    assert np.allclose(embedder.embed(["Ｂｉｒｄｓ!"]), choices[3])


def test_timbre_tells_clear_voices_apart():
    from mimo_jax.data.corpus.build import synthesise
    from mimo_jax.data.corpus.plan import utterance_of
    from mimo_jax.data.corpus.voices import VOICES

    texts = ["The weather in the north was cold this morning.", "Seven boats left the harbour before noon."]
    voices = [VOICES[name] for name in ("alice", "brian", "david", "elsie")]
    waves = [[synthesise(utterance_of(voice, text)) for voice in voices] for text in texts]
    embedder = plugins.load("speaker_embedder", "builtin")
    assert isinstance(embedder, plugins.SpeakerEmbedder)
    first, second = (embedder.embed(part, 24_000) for part in waves)
    assert (first @ second.T).argmax(1).tolist() == [0, 1, 2, 3]
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    quiet = embedder.embed([0.01 * waves[0][0], np.zeros(0, np.float32), np.zeros(100, np.float32)], 24_000)
    assert np.allclose(quiet[0], first[0], atol=1e-4) and not quiet[1:].any()
    assert embedder.embed([waves[0][0][:5]], 24_000).shape == (1, 19)


COMET = """
import json
def download_model(name):
    if name == "broken":
        raise RuntimeError("no such model")
    return "path of " + name
class Output:
    def __init__(self, scores):
        self.scores = scores
class Model:
    def predict(self, items, batch_size, gpus, progress_bar):
        return Output([len(item["src"]) + 10 * len(item["mt"]) + 100 * len(item["ref"]) + gpus for item in items])
def load_from_checkpoint(path):
    assert path.startswith("path of ")
    print("noise on the output")
    return Model()
"""


def test_comet_runs_in_a_python_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "comet.py").write_text(COMET)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    scorer = plugins.load("translation_scorer", f"comet:some/model?python={sys.executable}&gpus=1")
    assert scorer.score(["你", "好好"], ["a", "ab"], ["", "c"]).tolist() == [12, 123]
    assert scorer.score([], [], []).shape == (0,) and "some/model" in scorer.identity
    with pytest.raises(plugins.PluginError, match="no such model") as caught:
        plugins.load("translation_scorer", "comet:broken").score(["a", "a"], ["b", "b"], ["c", "c"])
    assert set(caught.value.failures) == {0, 1}  # none of them is to be tried by itself


def test_comet_needs_its_package(tmp_path):
    with pytest.raises(UserError, match="pip install unbabel-comet"):
        plugins.load("translation_scorer", "comet:some/model").score(["a"], ["b"], ["c"])
    with pytest.raises(UserError, match="cannot be run"):
        plugins.load("translation_scorer", f"comet:some/model?python={tmp_path}/python").score(["a"], ["b"], ["c"])
    with pytest.raises(UserError, match="no option"):
        plugins.load("translation_scorer", "comet:some/model?pyton=x")
