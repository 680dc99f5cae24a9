"""The evaluation of tokenizers: with a codec whose order of quality is known, and with an exported folder."""

import json
import re

import gin
import numpy as np
import pytest

from mimo_jax import cli
from mimo_jax import evaluate_tokenizer as command
from mimo_jax.data.audio import write_wav
from mimo_jax.data.manifest import Record
from mimo_jax.evaluation import code_statistics, codec_baselines, metrics
from mimo_jax.evaluation.judge import CtcJudge
from mimo_jax.evaluation.measured_tokenizer import MeasuredTokenizer
from mimo_jax.evaluation.random_codebooks import random_codebooks
from mimo_jax.evaluation.selection import Item, digest
from mimo_jax.evaluation.speaker import cosine_similarity, similarity_name
from mimo_jax.evaluation.tokenizer_parts import Referees
from mimo_jax.evaluation.tokenizer_suite import TokenizerOptions, evaluate_tokenizers
from mimo_jax.evaluation.tokenizer_tables import section_text, undefined
from mimo_jax.interop import hf
from mimo_jax.models.recogniser import RecogniserConfig
from mimo_jax.models.tokenizer import rvq
from mimo_jax.objectives.transcripts import Vocabulary
from tests.evaluation.codec_fixture import RATE, SENTENCES, FrameCodec, kmeans_codebooks, spectrum, speech

OPTIONS = TokenizerOptions(limit=2, calibration=2, usage_limit=4, speed_waves=2, speed_repeats=1, samples=1)


@pytest.fixture(scope="module")
def waves():
    return [speech(text) for text in SENTENCES]


@pytest.fixture(scope="module")
def codec(waves):
    return FrameCodec.trained(waves)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two training utterances, two with held-out texts, two in a held-out voice; one of them untranscribed."""
    root, records = tmp_path_factory.mktemp("corpus"), []
    for i, text in enumerate(SENTENCES):
        split = "train" if i < 2 else "validation"
        write_wav(root / f"{i}.wav", speech(text), RATE)
        records.append(Record(f"a{i}", f"{i}.wav", text, split=split, subset="user"))
    for i, text in enumerate(SENTENCES[:2]):
        write_wav(root / f"other{i}.wav", speech(text, "en-gb-scotland"), RATE)
        records.append(Record(f"b{i}", f"other{i}.wav", text if i else None, split="test_voices", subset="user"))
    (root / "manifest.jsonl").write_text(
        "\n".join(json.dumps({k: v for k, v in vars(r).items() if v not in (None, {}, [])}) for r in records)
    )
    return root, records


class Listener:
    """Hears one text in everything."""

    def transcribe(self, waves):
        return ["open the kitchen door" for _ in waves]


@pytest.fixture(scope="module")
def measured(codec, corpus, tmp_path_factory):
    root, records = corpus
    out = tmp_path_factory.mktemp("out")
    referees = Referees(Listener(), cosine_similarity(spectrum), 1)
    quiet = codec_baselines.Baseline("half", 1.0, "", lambda w, _: codec_baselines.Coded([x / 2 for x in w], 1000.0))
    result = evaluate_tokenizers({"toy": codec}, [quiet], records, root, out, OPTIONS, referees)
    return result, out


def rows_of(result, section, kind):
    return [row for row in result["sections"][section] if row["kind"] == kind]


def value(row, name):
    return row["figures"][name]["value"]


@pytest.mark.parametrize("section", ["user/validation", "user/test_voices"])
def test_more_codebooks_are_better_and_random_ones_worse(measured, section):
    result, _ = measured
    own, random = rows_of(result, section, "tokenizer"), rows_of(result, section, "random")
    assert [row["codebooks"] for row in own] == [row["codebooks"] for row in random] == [1, 2, 3, 4]
    for name, sign in (("mel_distance", -1), ("stoi", 1), ("pesq_nb", 1)):
        values = [sign * value(row, name) for row in own]
        assert values == sorted(values) and values[-1] > values[0], name
        assert sign * value(random[-1], name) < values[-1], name
        assert sign * value(random[0], name) < values[0], name
    assert value(own[-1], "speaker_similarity") > value(own[0], "speaker_similarity")
    assert similarity_name(cosine_similarity(spectrum)) == "tests.evaluation.codec_fixture.spectrum"


def test_differences_are_paired(measured):
    result, _ = measured
    rows = result["differences"]["user/validation"]
    assert [(row["system"], row["codebooks"]) for row in rows] == [
        ("toy, random codebooks - toy", n) for n in (1, 2, 3, 4)
    ]
    own, random = (rows_of(result, "user/validation", kind)[-1] for kind in ("tokenizer", "random"))
    assert value(rows[-1], "mel_distance") == pytest.approx(value(random, "mel_distance") - value(own, "mel_distance"))
    assert rows[-1]["figures"]["mel_distance"]["interval_95"][0] > 0
    assert value(rows[-1], "recogniser_wer_reconstruction") == 0


def test_rates_of_the_rows(measured, codec):
    result, _ = measured
    rows = rows_of(result, "user/validation", "tokenizer")
    assert [row["kbps"] for row in rows] == pytest.approx([500 * bits / 1000 for bits in (6, 12, 17, 22)])
    assert all(0 < row["kbps_entropy"] <= row["kbps"] for row in rows)
    assert rows_of(result, "user/validation", "baseline")[0]["kbps_measured"] == 1.0


def test_error_rates_leave_out_what_has_no_text(measured):
    result, _ = measured
    (original,) = rows_of(result, "user/test_voices", "original")
    assert original["figures"]["recogniser_wer_original"]["n"] == 1
    assert result["utterances"] == {"user/validation": 2, "user/test_voices": 2}


def test_speed_and_use_are_told(measured, codec):
    result, _ = measured
    about = result["tokenizers"]["toy"]
    assert about["speed"]["batch"]["encode_rtf"] > 0 and about["speed"]["single"]["waves"] == 1
    assert [u["size"] for u in about["use"]["codebooks"]] == list(codec.codebook_sizes)
    assert about["use"]["utterances"] == 4


def test_a_second_run_takes_what_is_stored(measured, corpus):
    result, out = measured

    class Broken(FrameCodec):
        def encode(self, waves):
            raise AssertionError("computed again")

    root, records = corpus
    quiet = codec_baselines.Baseline("half", 1.0, "", lambda *_: 1 / 0)
    again = evaluate_tokenizers(
        {"toy": Broken([np.zeros((n, 1)) for n in (64, 64, 32, 32)])}, [quiet], records, root, out, OPTIONS
    )
    assert again["sections"] == result["sections"]


def test_parts_belong_to_the_manifest_and_the_waves(corpus):
    _, records = corpus
    items = [Item(record, np.full(4, i, np.float32)) for i, record in enumerate(records)]
    first = digest(records, items)
    assert first == digest(list(records), list(items))
    assert first != digest(records[1:], items)
    assert first != digest(records, [Item(records[0], np.full(4, 0.5, np.float32)), *items[1:]])


def test_names_of_rows_are_told_apart(codec, corpus, tmp_path):
    root, records = corpus
    for name in ("original", "Opus"):
        opus = codec_baselines.Baseline("Opus", 6.0, "", lambda *_: 1 / 0)
        with pytest.raises(ValueError, match=f"two rows would be named '{name}'"):
            evaluate_tokenizers({name: codec}, [opus], records, root, tmp_path, OPTIONS)


def test_columns_without_figures_are_left_out(codec, corpus, tmp_path):
    root, records = corpus
    options = TokenizerOptions(codebooks=(4,), limit=1, calibration=0, usage_limit=1, speed_waves=1, speed_repeats=1)
    result = evaluate_tokenizers({"toy": codec}, [], records, root, tmp_path, options)
    text = section_text("user/validation", result["sections"]["user/validation"], 1)
    assert "WER" not in text and "speaker" not in text and "STOI" in text and "random" not in text


def test_tables_say_what_their_means_leave_out():
    def row(system, **counts):
        figures = {name: {"value": 1.0, "n": n, "interval_95": [1.0, 1.0]} for name, n in counts.items()}
        return {"system": system, "kind": "tokenizer", "codebooks": 2, "figures": figures}

    original = {"system": "original", "kind": "original", "figures": {}}
    rows = [original, row("a", stoi=9, pesq_wb=10, mel_distance=10, recogniser_wer=4), row("b", stoi=9, pesq_wb=7)]
    assert undefined(rows, 10) == [
        "PESQ-WB is undefined for 3 of 10 utterances and leaves them out: b, 2",
        "STOI is undefined for 1 of 10 utterances and leaves them out: every row",
        "mel distance is undefined for 10 of 10 utterances and leaves them out: b, 2",
    ]
    assert section_text("core/validation", rows, 10).endswith("b, 2")


def test_use_of_codebooks_by_hand():
    (first, second) = code_statistics.codebook_use([np.array([[0, 0], [1, 0]]), np.array([[2, 0], [3, 0]])], (4, 8))
    assert (first.usage, first.perplexity, first.entropy_bits) == pytest.approx((1.0, 4.0, 2.0))
    assert (second.usage, second.perplexity, second.entropy_bits) == pytest.approx((1 / 8, 1.0, 0.0))
    # The published tokenizer: 8 codebooks at 25 Hz are 1.55 kbit/s.
    assert code_statistics.nominal_kbps([1024, 1024, *[128] * 6], 25) == pytest.approx(1.55)
    with pytest.raises(ValueError, match="give frames of 2 codebooks"):
        code_statistics.codebook_use([], (4, 8))


def test_random_codebooks_never_add_to_the_residual_and_lose_to_learned_ones():
    x = np.random.default_rng(0).normal(size=(400, 24)).astype(np.float32) * np.linspace(0.1, 2, 24, dtype=np.float32)
    left = []
    for books in (random_codebooks(x, (32,) * 4, 0), kmeans_codebooks(x, (32,) * 4)):
        rest, powers = x, [np.square(x).mean()]
        for book in books:
            rest = rest - book[np.asarray(rvq.nearest(rest, book))]
            powers.append(np.square(rest).mean())
        assert powers == sorted(powers, reverse=True)
        left.append(powers[-1])
    assert left[0] > 1.1 * left[1]
    with pytest.raises(ValueError, match="at least two frames"):
        random_codebooks(x[:1], (4,), 0)


def test_random_codebooks_of_a_tokenizer_are_worse_than_learned_ones(tokenizer_tiny, waves):
    """Of the features that the encoder makes; the tiny tokenizer's decoder has learned nothing."""
    config, variables = hf.load_tokenizer(tokenizer_tiny)
    plain = MeasuredTokenizer(config, variables)
    short = [wave[8000:14_000] for wave in waves]
    features = plain.features(short)
    learned = kmeans_codebooks(features, plain.codebook_sizes)
    random = plain.with_random_codebooks(short, 0)
    assert len(plain.encode(short)[0]) > 1 and features.shape[1] == config.d_model
    left = {}
    for name, books in (("learned", learned), ("random", [random.codebook(i) for i in range(4)])):
        rest = features
        for book in books:
            rest = rest - book[np.asarray(rvq.nearest(rest, book))]
        left[name] = np.square(rest).mean()
    assert left["learned"] < 0.9 * left["random"] < 0.9 * np.square(features - features.mean(0)).mean()


@pytest.mark.parametrize(
    "name, kbps, stored", [("Opus 6k", 6.0, 6.3), ("AMR-NB 4.75k", 4.75, 5.3), ("Codec2 1.6k", 1.6, 1.65)]
)
def test_public_codecs_have_their_bit_rate_and_no_delay(waves, name, kbps, stored):
    found, missing = codec_baselines.public_codecs()
    chosen = [b for b in found if b.name == name]
    if not chosen:
        pytest.skip(f"not here: {missing}")
    coded = chosen[0].run(waves[:2], RATE)
    assert chosen[0].kbps == kbps and 0.98 * kbps < coded.bits_per_second / 1000 < stored
    assert [len(w) for w in coded.waves] == [len(w) for w in waves[:2]]
    quality = [metrics.speech_quality(w, c, RATE) for w, c in zip(waves, coded.waves, strict=False)]
    late = metrics.speech_quality(waves[0], np.roll(coded.waves[0], 960), RATE)
    assert quality[0].stoi > 0.7 and late.mel_distance > quality[0].mel_distance


def test_absent_codecs_are_named(monkeypatch):
    monkeypatch.setattr(codec_baselines.importlib.util, "find_spec", lambda name: None)
    found, missing = codec_baselines.public_codecs()
    assert not found and "PyAV" in missing[0] and "pycodec2" in missing[1] and "mimo_jax[codecs]" in missing[1]


def test_griffin_lim_is_near_the_original(waves):
    baseline = codec_baselines.griffin_lim(
        sample_rate=RATE, n_fft=960, hop_length=240, window_length=960, n_mels=80, iterations=16
    )
    (made,) = baseline.run(waves[:1], RATE).waves
    assert len(made) == len(waves[0]) and baseline.kbps == 256
    assert metrics.mel_distance(waves[0], made, RATE) < 0.8
    assert metrics.speech_quality(waves[0], made, RATE).stoi > 0.9
    with pytest.raises(ValueError, match="resample"):
        baseline.run(waves[:1], 16_000)


def test_command_compares_exported_folders(corpus, tokenizer_tiny, tmp_path, capsys):
    root, _ = corpus
    gin.clear_config()
    own = tmp_path / "own.gin"
    own.write_text(
        "from __gin__ import dynamic_registration\nfrom mimo_jax.evaluation import speaker\n"
        "from tests.evaluation import codec_fixture\nSPEAKER = @speaker.cosine_similarity()\n"
        "speaker.cosine_similarity.embed = @codec_fixture.spectrum\n"
    )
    files = ["gin/runs/evaluate_tokenizer.gin", str(own)]
    bindings = [
        f"OUT = '{tmp_path / 'out'}'",
        f"MANIFEST = '{root}'",
        f"TOKENIZERS = {{'one': '{tokenizer_tiny}', 'two': '{tokenizer_tiny}'}}",
        "CODEBOOKS = (1, 3)",
        "LIMIT = 1",
        "BATCH_FRAMES = 2048",
        "USAGE_LIMIT = 2",
        "GRIFFIN_LIM_ITERATIONS = 0",
        "PUBLIC_CODECS = False",
        "tokenizer_suite.TokenizerOptions.calibration = 0",
        "tokenizer_suite.TokenizerOptions.speed_repeats = 1",
    ]
    cli.parse_gin(files, bindings)
    try:
        result = gin.get_configurable(command.evaluate_tokenizer)()
    finally:
        gin.clear_config()
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
    for expected in (
        "one, 3",
        "two, 1",
        " speaker\n",
        "No error rates",
        "Griffin-Lim was left",
    ):
        assert expected in printed
    # original + 2 tokenizers x 2 numbers of codebooks, in each of two sections
    assert page.count("<audio") == 2 * 5 and not re.search(r"https?://|@import|url\(", page)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["sections"] == result["sections"]
    one, two = ([r for r in result["sections"]["user/validation"] if r["system"] == name] for name in ("one", "two"))
    assert [r["figures"] for r in one] == [r["figures"] for r in two]
    (row, _) = result["differences"]["user/validation"]
    assert row["system"] == "two - one" and row["figures"]["mel_distance"]["interval_95"] == [0, 0]
    assert "Differences" in page and "two - one, 3" in printed


def test_mistakes_are_named(corpus, tokenizer_tiny, tmp_path):
    root, _ = corpus
    common = {"manifest": str(root), "out_dir": str(tmp_path), "public_codecs": False, "griffin_lim_iterations": 0}
    with pytest.raises(cli.UserError, match="TOKENIZER=DIR"):
        command.evaluate_tokenizer(**common)
    with pytest.raises(cli.UserError, match="no such folder"):
        command.evaluate_tokenizer(**common, tokenizer="nowhere")
    with pytest.raises(cli.UserError, match="use another name"):
        command.evaluate_tokenizer(**common, tokenizers={"a/b": str(tokenizer_tiny)})
    with pytest.raises(ValueError, match="usage_limit = 0: give at least 1"):
        TokenizerOptions(usage_limit=0)
    params = {"w": np.zeros(1, np.float32)}
    CtcJudge(RecogniserConfig(num_words=0, sample_rate=8000), params, Vocabulary()).save(tmp_path / "judge")
    with pytest.raises(cli.UserError, match="a recogniser of 8000 Hz cannot judge tokenizers of 24000 Hz"):
        command.evaluate_tokenizer(**common, tokenizer=str(tokenizer_tiny), recogniser_dir=str(tmp_path / "judge"))
    with pytest.raises(cli.UserError, match=r"tokenizer: codebooks \[9\] asked for, the tokenizer has 1\.\.4"):
        command.evaluate_tokenizer(**common, tokenizer=str(tokenizer_tiny), options=TokenizerOptions(codebooks=(9,)))
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.wav", "text": "a", "split": "train"}\n')
    with pytest.raises(cli.UserError, match="no held-out record"):
        command.evaluate_tokenizer(**{**common, "manifest": str(tmp_path)}, tokenizer=str(tokenizer_tiny))
