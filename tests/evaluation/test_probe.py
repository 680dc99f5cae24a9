"""The semantic probe: reads features that hold the text, reads nothing from noise, the same every time."""

import json

import gin
import numpy as np
import pytest

from mimo_jax import cli
from mimo_jax import probe_tokenizer as command
from mimo_jax.data.audio import write_wav
from mimo_jax.evaluation import metrics, probe_suite
from mimo_jax.evaluation.probe import ProbeTraining, train_probe
from mimo_jax.evaluation.probe_suite import QuantizedFeatures
from mimo_jax.models.recogniser import RecogniserConfig

LETTERS = "abcd"
LINEAR = RecogniserConfig(num_words=0, dilations=(), outputs_per_state=2)
TRAINING = ProbeTraining(LINEAR, steps=60, batch_size=8, learning_rate=3e-2)


def material(count, seed, informative=True):
    """Texts of six letters, and three noisy frames for each: a vector of its own (or of chance), space first."""
    rng = np.random.default_rng(seed)
    vectors = np.random.default_rng(99).normal(size=(len(LETTERS), 8))
    features, texts = [], []
    for _ in range(count):
        letters = rng.integers(0, len(LETTERS), 6)
        seen = letters if informative else rng.integers(0, len(LETTERS), 6)
        frames = np.repeat(vectors[seen], 3, axis=0) + 0.2 * rng.normal(size=(18, 8))
        features.append((5 + 100 * frames).astype(np.float32))  # far from unit scale
        texts.append("".join(LETTERS[i] for i in letters))
    return features, texts


def error(training, informative):
    probe = train_probe(*material(64, 0, informative), training)
    features, texts = material(16, 1, informative)
    read = probe.transcribe(features, batch_size=6)
    return metrics.character_error_rate(texts, read).value, read


def test_reads_what_is_there_and_nothing_else():
    there, read = error(TRAINING, True)
    noise, _ = error(TRAINING, False)
    assert there < 0.35 and noise > 0.6
    assert error(TRAINING, True) == (there, read)


def test_convolutions_see_neighbours():
    model = RecogniserConfig(num_words=0, dilations=(1,), d_model=32, kernel_size=3, outputs_per_state=1)
    there, _ = error(ProbeTraining(model, steps=60, batch_size=8, learning_rate=1e-2), True)
    noise, _ = error(ProbeTraining(model, steps=60, batch_size=8, learning_rate=1e-2), False)
    assert there < 0.3 < 0.6 < noise


def test_few_utterances_and_bad_input():
    features, texts = material(3, 2)
    probe = train_probe(features, texts, ProbeTraining(LINEAR, steps=2, batch_size=8))
    assert len(probe.transcribe(features)) == 3 and np.isfinite(probe.loss) and probe.unused == 0
    assert probe.transcribe([]) == []
    with pytest.raises(ValueError, match="3 utterances with 2 texts"):
        train_probe(features, texts[:2], TRAINING)


def test_texts_without_room_are_counted():
    features, _ = material(3, 2)
    # 4 frames x 2 outputs; a text of n letters is n + 1 bytes, and a repeated letter needs a blank.
    probe = train_probe([f[:4] for f in features], ["abcdabc", "abcdaab", "a"], ProbeTraining(LINEAR, 1, 2))
    assert probe.unused == 1


def test_quantised_features_are_sums_of_vectors():
    books = [np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([[10.0, 10.0]], np.float32)]
    features = QuantizedFeatures([np.array([[0, 0], [1, 0]])], books)
    assert len(features) == 1
    np.testing.assert_array_equal(features[0], [[11, 10], [10, 11]])
    assert features[0].dtype == np.float32


def test_command_probes_folders(tokenizer_tiny, tmp_path, capsys):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(6):
        write_wav(tmp_path / f"{i}.wav", 0.1 * rng.normal(size=2400).astype(np.float32), 24_000)
        split = "train" if i < 4 else "validation"
        lines.append({"audio": f"{i}.wav", "text": "a b", "split": split, "duration": 9.0 if i == 0 else 0.1})
    # Without a duration, and too long; alone in its section.
    write_wav(tmp_path / "long.wav", 0.1 * rng.normal(size=7 * 24_000).astype(np.float32), 24_000)
    lines.append({"audio": "long.wav", "text": "a b", "split": "train"})
    lines.append({"audio": "0.wav", "start": 0.0, "end": 0.1, "text": "a b", "split": "test_voices", "duration": 0.1})
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    gin.clear_config()
    bindings = [
        f"OUT = '{tmp_path / 'out'}'",
        f"MANIFEST = '{tmp_path}'",
        f"TOKENIZERS = {{'one': '{tokenizer_tiny}', 'two': '{tokenizer_tiny}'}}",
        "STEPS = 2",
        "BATCH_ROWS = 2",
        "CODEBOOKS = 2",
        "convolutions/recogniser.RecogniserConfig.d_model = 8",
        "convolutions/recogniser.RecogniserConfig.dilations = (1,)",
    ]
    cli.parse_gin(["gin/runs/probe_tokenizer.gin"], bindings)
    try:
        result = gin.get_configurable(command.probe_tokenizer)()
    finally:
        gin.clear_config()
    rows = [(row["source"], row["probe"]) for row in result["rows"]]
    assert rows == [(s, p) for s in ("one", "two", probe_suite.MEL) for p in ("linear", "convolutions")]
    assert result["train_utterances"] == 3  # one is too long
    assert result["rows"][0]["sections"] == result["rows"][2]["sections"]
    assert "user/validation CER" in capsys.readouterr().out
    assert [
        result["rows"][0]["sections"][f"user/{s}"]["cer_chance"] is None for s in ("validation", "test_voices")
    ] == [
        False,
        True,
    ]
    with pytest.raises(cli.UserError, match=r"tokenizer: 9 codebooks asked for, the tokenizer has 1\.\.4"):
        command.probe_tokenizer(
            manifest=str(tmp_path),
            out_dir=str(tmp_path / "more"),
            tokenizer=str(tokenizer_tiny),
            options=probe_suite.ProbeOptions(codebooks=9),
        )
