import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mimo_jax.data import manifest, manifest_files
from mimo_jax.data.audio import load_audio
from mimo_jax.data.corpus import build, describe, espeak, noise, texts
from mimo_jax.data.corpus.build import CorpusError, build_corpus
from mimo_jax.data.corpus.plan import CorpusConfig, generator, plan_corpus
from mimo_jax.data.corpus.voices import HELD_OUT_VOICES, NOISES, TRAIN_VOICES, VOICES
from mimo_jax.preparation.elements import Element
from mimo_jax.preparation.stages.decode import Decode

SMALL = dict(
    core_utterances=24,
    core_validation=6,
    core_test_voices=6,
    wide_utterances=60,
    wide_validation=0,
    wide_test_voices=0,
    texts=20,
)


def build_small(out: Path, **others: int) -> Path:
    return build_corpus(out, **{**SMALL, **others}, progress=False)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, str]:
    """Every file below a folder with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus")
    build_small(out, workers=1)
    return out


@pytest.fixture(scope="module")
def plan() -> tuple[list, list]:
    return plan_corpus(CorpusConfig(core_utterances=3000, wide_utterances=1500, texts=1000))


def test_speech_does_not_depend_on_what_was_said_before() -> None:
    first = {v: espeak.synthesize("turn on the light", voice.espeak) for v, voice in VOICES.items()}
    espeak.synthesize("something else entirely", "en-us", 300, 80, 10, 150)
    for name in reversed(VOICES):
        assert np.array_equal(espeak.synthesize("turn on the light", VOICES[name].espeak), first[name])
    assert len({wave.tobytes() for wave in first.values()}) == len(VOICES)


def test_espeak_parameters_do_what_they_say() -> None:
    plain = espeak.synthesize("seven eight nine")
    assert plain.dtype == np.float32 and 0.1 < np.abs(plain).max() <= 1.0
    assert len(espeak.synthesize("seven eight nine", rate=300)) < 0.8 * len(plain)
    assert noise.rms(espeak.synthesize("seven eight nine", volume=50)) < 0.8 * noise.rms(plain)
    assert not np.array_equal(espeak.synthesize("seven eight nine", pitch=80), plain)


@pytest.mark.parametrize(
    "arguments", [{"voice": "xx"}, {"voice": "en-us+nobody"}, {"rate": 1000}, {"pitch": -1}, {"text": " "}]
)
def test_espeak_refuses(arguments: dict) -> None:
    with pytest.raises(espeak.EspeakError):
        espeak.synthesize(**{"text": "hello", **arguments})


def test_same_bytes_for_any_number_of_workers(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_CHUNK", 17)
    build_small(tmp_path, workers=2)
    assert files(tmp_path) == files(corpus)


def test_resume_after_a_kill_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_CHUNK", 20)
    made = 0
    real = build.synthesise

    def dies_at_50(utterance):  # noqa: ANN001, ANN202
        nonlocal made
        made += 1
        if made == 50:
            raise KeyboardInterrupt
        return real(utterance)

    monkeypatch.setattr(build, "synthesise", dies_at_50)
    with pytest.raises(KeyboardInterrupt):
        build_small(tmp_path, workers=1)
    assert not (tmp_path / "manifest.jsonl").exists()
    half = tmp_path / "audio/core-train/0000/core-train-000000.flac"
    (half.parent / f".{half.name}.partial").write_bytes(b"half a file that a killed process left behind")
    half.unlink()
    part = next(iter(tmp_path.glob("parts-*/000000.jsonl")))
    part.unlink()  # as if it had been killed before this chunk was finished
    build_small(tmp_path, workers=1)
    # Chunks of 20: the first two were finished when the 50th died, the first was lost; so 76 were left to make.
    assert made == 50 + 76
    assert files(tmp_path) == files(corpus)
    before = made
    build_small(tmp_path, workers=1)
    assert made == before  # complete: nothing is made again


def test_other_settings_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="already holds"):
        build_small(corpus, seed=1)
    (tmp_path / "manifest.jsonl").write_text('{"audio": "mine.wav"}\n')
    with pytest.raises(CorpusError, match="not of the built-in corpus"):
        build_small(tmp_path)


def test_seed_changes_everything(corpus: Path) -> None:
    sizes = {k: v for k, v in SMALL.items() if k != "workers"}
    first, _ = plan_corpus(CorpusConfig(seed=0, **sizes))
    second, _ = plan_corpus(CorpusConfig(seed=1, **sizes))
    assert sum(a.record.text == b.record.text for a, b in zip(first, second, strict=True)) < len(first) / 4


def test_shares_of_the_wide_part_can_be_others() -> None:
    shares = {"styled": 0.3, "stories": 0.0, "dialogue": 0.4, "parallel": 0.0}
    wide = [u.record for u in plan_corpus(CorpusConfig(core_utterances=20, wide_utterances=200, wide_shares=shares))[0]]
    wide = [record for record in wide if record.subset == "wide" and record.split == "train"]
    assert len(wide) == 200 and not any(record.document or record.parallel for record in wide)
    assert sum(bool(record.reply) for record in wide) == 40 and sum(bool(record.instruction) for record in wide) == 60


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"songs": 0.1}, "no kind 'songs'; there are styled"),
        ({"styled": -0.1}, "styled must lie in 0..1"),
        ({"styled": 0.9}, "more than 1 together"),
    ],
)
def test_shares_that_are_none(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorpusConfig(wide_shares=shares)


def test_written_audio_is_good_and_as_described(corpus: Path) -> None:
    records = manifest_files.read_manifest(corpus)
    assert len(records) == 96
    for record in records:
        (checked,) = Decode().process(Element(dataclasses.replace(record, audio=str(corpus / record.audio))))
        assert isinstance(checked, Element) and checked.record.duration == record.duration  # the rate was right, too
    assert all(0.4 < record.duration < 12 for record in records)
    by_id = {record.id: record for record in records}
    noisy = [record for record in records if record.clean]
    assert noisy
    for record in noisy:
        wave = load_audio(corpus / record.audio)
        clean = load_audio(corpus / by_id[record.clean].audio)
        gain = float(wave @ clean / (clean @ clean))
        measured = 20 * np.log10(noise.rms(gain * clean) / noise.rms(wave - gain * clean))
        assert measured == pytest.approx(record.attributes["snr_db"], abs=1.5)


def test_core_texts(plan: tuple[list, list]) -> None:
    core = [u.record for u in plan[0] if u.record.subset == "core"]
    words = {word for record in core for word in record.text.split()}
    assert 30 <= len(words) <= 45
    digits = [set(r.text.split()) <= set(texts.DIGITS) for r in core if r.split == "train"]
    assert 0.56 < np.mean(digits) < 0.64
    rng = generator(5)
    commands = {text for text in (texts.core_text(rng, digits=False) for _ in range(10_000))}
    assert len(commands) >= 1500
    held_out = [r.text for r in core if r.split == "validation"]
    assert len(held_out) == len(set(held_out)) == 240
    several = {}
    for record in core:
        several.setdefault(record.text, set()).add(record.speaker)
    assert any(len(voices) > 1 for voices in several.values())


def test_splits_share_no_text_and_no_new_voice(plan: tuple[list, list]) -> None:
    said: dict[str, set[str]] = {split: set() for split in manifest.SPLITS}
    heard: dict[str, set[str]] = {split: set() for split in manifest.SPLITS}
    for utterance in plan[0]:
        said[utterance.record.split].add(utterance.record.text)
        heard[utterance.record.split].add(utterance.record.speaker)
    for record in plan[1]:
        said[record.split].update(record.text.split(". "))
        said[record.split].update([record.reply] if record.reply else [])
    assert not said["train"] & said["validation"]
    assert not (said["train"] | said["validation"]) & said["test_voices"]
    assert heard["train"] == heard["validation"] == {voice.name for voice in TRAIN_VOICES}
    assert heard["test_voices"] == {voice.name for voice in HELD_OUT_VOICES}
    babble = {voice for u in plan[0] if u.noise and u.record.split == "train" for voice, _ in u.noise.talkers}
    assert babble and not babble & {voice.espeak for voice in HELD_OUT_VOICES}


@pytest.mark.parametrize("split", manifest.SPLITS)
def test_every_task_format_has_labels(plan: tuple[list, list], split: str) -> None:
    records = [u.record for u in plan[0] if u.record.subset == "wide" and u.record.split == split]
    by_id = {record.id: record for record in records}
    assert len(records) == len(by_id)
    assert all(record.caption for record in records)
    assert sum(record.instruction is not None for record in records) > 20
    questions = {item["question"] for record in records for item in record.qa}
    assert len(questions) == 2 * len(describe.QUESTION_TOPICS)
    assert all(i["answer"] in i.get("choices", [i["answer"]]) for record in records for i in record.qa)
    asked = [record for record in records if record.reply]
    assert len({record.attributes["kind"] for record in asked}) == 4
    for record in asked:
        reply = by_id[record.reply]
        assert record.attributes["answer"] in reply.text and reply.speaker != record.speaker
    noisy = [record for record in records if record.clean]
    assert {record.attributes["noise"] for record in noisy} == set(NOISES)
    assert all(by_id[record.clean].text == record.text for record in noisy)
    groups: dict[str, list] = {}
    for record in records:
        if record.parallel:
            groups.setdefault(record.parallel, []).append(record)
    assert groups and all(len({r.text for r in g}) == 1 and len({r.speaker for r in g}) == 2 for g in groups.values())
    documents: dict[str, list] = {}
    for record in records:
        if record.document:
            documents.setdefault(record.document["id"], []).append(record)
    for story in documents.values():
        assert [r.document["index"] for r in story] == list(range(len(story))) and len(story) >= 3
        assert len({r.speaker for r in story}) == 1
    assert documents


def test_text_only_material(plan: tuple[list, list]) -> None:
    records = plan[1]
    assert {record.split for record in records} == {"train", "validation"}
    assert {record.subset for record in records} == {"core", "wide"}
    assert sum(record.reply is not None for record in records) > 100


def test_captions_name_what_is_heard() -> None:
    style = {"rate": "fast", "pitch": "high", "volume": "normal", "intonation": "normal"}
    facts = {"gender": "woman", "accent": "British", "noise": "white", "snr_db": 0, **style}
    for i in range(20):
        caption = describe.caption(generator(i), facts)
        assert "woman" in caption and "a British accent" in caption and "loud white noise" in caption
        instruction = describe.instruction(generator(i), style)
        assert "high" in instruction and any(w in instruction for w in ("quickly", "fast", "hurry"))


def test_main_explains_itself_and_reports_mistakes(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "mimo_jax.corpus", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    shown = run("--help")
    assert "--core_utterances" in shown.stdout and "python -m mimo_jax.corpus --out=DIR" in shown.stdout
    bad = run(f"--out={tmp_path}", "--wide_utterances=-1")
    assert bad.returncode == 1 and "wide_utterances must not be negative" in bad.stderr
    assert "Traceback" not in bad.stderr
