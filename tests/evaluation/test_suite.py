"""The suite with fake systems whose right figures are known."""

import dataclasses
import json

import numpy as np
import pytest

from mimo_jax.cli import UserError
from mimo_jax.data.audio import write_wav
from mimo_jax.data.manifest import Record
from mimo_jax.evaluation.losses import held_out_losses
from mimo_jax.evaluation.suite import HeldOutLosses, SuiteOptions, evaluate_chain
from mimo_jax.evaluation.systems import Reasoned, Systems

RATE = 24_000
OPTIONS = SuiteOptions(limit=6, other_limit=3, task_limit=4, samples=2, workers=1)


def _wave(number: int, seconds: float = 0.5) -> np.ndarray:
    """A tone whose frequency tells its number, so that a fake can hear it."""
    return (0.3 * np.sin(2 * np.pi * 100 * (number + 1) * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def _number(wave: np.ndarray) -> int:
    if len(wave) < 100:
        return -1
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return round(spectrum.argmax() * RATE / len(wave) / 100) - 1


class FakeJudge:
    def __init__(self, texts):
        self.texts = texts

    def transcribe(self, waves):
        return [self.texts.get(_number(wave), "") for wave in waves]


class FakeCodec:
    def encode(self, waves):
        return [np.round(wave[:, None] * 30000).astype(int) for wave in waves]

    def decode(self, codes):
        return [(c[:, 0] / 30000).astype(np.float32) for c in codes]


class FakeModel:
    """Hears and speaks without fault, except that every transcription starts with a wrong word."""

    def __init__(self, texts):
        self.texts, self.calls = texts, 0

    def asr(self, waves, *, seeds):
        self.calls += 1
        return ["wrong " + self.texts[_number(wave)] for wave in waves]

    def tts(self, texts, *, seeds):
        numbers = {text: number for number, text in self.texts.items()}
        return [_wave(numbers[text]) for text in texts]

    def continue_speech(self, waves, *, seeds):
        return [wave[:10] for wave in waves]

    def convert(self, requests, *, seeds):
        return [request.shots[0].target for request in requests]

    def answer_about_audio(self, waves, questions, *, seeds):
        return ["Fast." for _ in waves]

    def answer_after_thinking(self, waves, questions, *, seeds):
        return [Reasoned("fast", "It is fast.") if _number(wave) % 2 else Reasoned("", "It is") for wave in waves]

    def answer_in_writing(self, waves, *, seeds):
        return [self.texts[_number(wave) + 1] for wave in waves]

    def speak_as_instructed(self, texts, instructions, *, seeds):
        return [Reasoned(_wave(0), "Loudly.") for _ in texts]

    def answer_in_speech(self, waves, *, seeds):
        return [_wave(_number(wave) + 1) for wave in waves]


@pytest.fixture
def corpus(tmp_path):
    texts = {i: f"text number {word}" for i, word in enumerate("zero one two three four five six seven".split())}
    records = []
    for i, text in texts.items():
        write_wav(tmp_path / f"{i}.wav", _wave(i), RATE)
        qa = [{"question": "How fast?", "answer": "fast" if i % 2 else "slow"}]
        records.append(
            Record(
                f"v{i}",
                f"{i}.wav",
                text,
                split="validation",
                subset="core",
                qa=qa,
                reply=f"v{i + 1}" if i < 7 else None,
            )
        )
    for split in ("train", "validation"):
        for speed, seconds in (("slow", 1.0), ("fast", 0.5)):
            name = f"{split}-{speed}"
            write_wav(tmp_path / f"{name}.wav", _wave(0, seconds), RATE)
            records.append(
                Record(
                    name,
                    f"{name}.wav",
                    texts[0],
                    speaker="a",
                    split=split,
                    subset="wide",
                    parallel=f"p-{split}",
                    attributes={"rate": speed},
                )
            )
    systems = Systems(FakeJudge(texts), FakeCodec(), FakeModel(texts), RATE)
    return systems, records, tmp_path


class FakeRows:
    def batch(self, step):
        text = np.array([[9, 3, 9, 9, 0]])
        audio = np.zeros((1, 5, 2, 2), int)
        audio[0, 2] = [[step, 1], [step, 1]]
        return {
            "text": text,
            "audio": audio,
            "segment_ids": np.array([[1, 1, 1, 1, 0]]),
            "loss_mask": np.array([[True, True, True, False, False]]),
        }

    def steps_per_pass(self):
        return 4


def _losses(batch):
    return {"text_loss": (3.0, 2), "codebook_loss_1": (4.0, 2), "codebook_loss_2": (1.0, 2)}


def test_figures_of_known_systems(corpus, tmp_path):
    systems, records, root = corpus
    losses = HeldOutLosses(_losses, {"joint": FakeRows()}, empty_token_id=9)
    result = evaluate_chain(systems, records, root, tmp_path / "out", OPTIONS, losses)
    assert result["section"] == "core/validation"
    assert result["recogniser_wer_original"] == 0 and result["recogniser_wer_reconstruction"] == 0
    assert result["asr_wer_heldout"] == pytest.approx(1 / 3)
    assert result["recogniser_wer_tts"] == 0
    assert result["recogniser_wer_tts_chance"] == pytest.approx(1 / 3)
    assert result["spoken_question_accuracy"] == 1
    assert 0 < result["audio_question_accuracy"] < 1
    assert result["mel_distance"] < 0.5
    wide = result["sections"]["wide/validation"]
    assert wide["conversion_rate_nearer_target"]["value"] == 1 and wide["conversion_wer"]["n"] == 2
    assert result["text_loss"] == 1.5 and result["codebook_loss"] == [2.0, 0.5]
    assert result["codebook_unigram_entropy"] == pytest.approx([np.log(4), 0.0])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    samples = sorted(p.name for p in (tmp_path / "out/samples/core/validation").iterdir())
    assert {name.split("-")[0] for name in samples} == {"original", "reconstruction", "speak", "continue", "answer"}
    assert sum(name.startswith("speak") for name in samples) == 2


def test_resume_gives_the_same_bytes_and_computes_only_what_is_missing(corpus, tmp_path):
    systems, records, root = corpus
    out = tmp_path / "out"
    evaluate_chain(systems, records, root, out, OPTIONS)
    before = (out / "metrics.json").read_bytes()
    calls = systems.model.calls
    (out / "metrics.json").unlink()
    (out / "parts/core/validation/speech.json").unlink()
    (out / "parts/core/validation/original.json").write_text('{"settings"')
    evaluate_chain(systems, list(reversed(records)), root, out, OPTIONS)
    assert (out / "metrics.json").read_bytes() == before
    assert systems.model.calls == calls
    evaluate_chain(systems, records, root, out, OPTIONS, identity={"lm": "another"})
    assert systems.model.calls > calls


def test_a_run_measures_the_parts_it_names_and_keeps_those_that_are_there(corpus, tmp_path):
    systems, records, root = corpus
    out = tmp_path / "out"
    evaluate_chain(systems, records, root, out, OPTIONS)
    named = ("transcription", "audio_questions", "audio_questions_thinking", "written_answers", "instructed_speech")
    records = [dataclasses.replace(r, instruction="loudly") if r.id == "v1" else r for r in records]
    fresh = evaluate_chain(systems, records, root, tmp_path / "fresh", dataclasses.replace(OPTIONS, parts=named))
    assert sorted(p.stem for p in (tmp_path / "fresh/parts/core/validation").iterdir()) == sorted(named)
    assert "recogniser_wer_tts" not in fresh and fresh["audio_question_thinking_answered"] == 0.5
    assert fresh["audio_question_thinking_accuracy"] == fresh["audio_question_accuracy"]
    assert fresh["written_answer_accuracy"] == 1 and fresh["instructed_spoken"] == 1
    calls, records = systems.model.calls, corpus[1]
    more = evaluate_chain(systems, records, root, out, dataclasses.replace(OPTIONS, parts=named))
    assert systems.model.calls == calls and more["written_answer_accuracy"] == 1
    assert more["settings"] == json.loads((out / "parts/core/validation/speech.json").read_text())["settings"]


def test_written_instructions_are_a_part_of_their_own_and_leave_the_questions_as_they_are(corpus, tmp_path):
    systems, records, root = corpus
    named = dataclasses.replace(OPTIONS, parts=("audio_questions", "written_instructions"))
    before = evaluate_chain(systems, records, root, tmp_path / "before", named)
    assert "written_instruction_accuracy" not in before

    def told(record):
        entry = {"question": "write only the last word", "answer": record.text.split()[-1]}
        return dataclasses.replace(record, qa=[*record.qa, entry | {"kind": "instruction/last_word"}])

    # Those that had no question get an instruction too: it must not make them askable about their sound.
    new = [told(r) for r in records]
    result = evaluate_chain(systems, new, root, tmp_path / "after", named)
    assert result["audio_question_accuracy"] == before["audio_question_accuracy"]
    items = [
        json.loads((tmp_path / name / "parts/core/validation/audio_questions.json").read_text())["result"]["items"]
        for name in ("before", "after")
    ]
    assert items[0] == items[1]
    assert result["written_instruction_accuracy"] == 0  # "Fast." is none of the last words
    assert result["written_instruction_heard_wer"] == pytest.approx(1 / 3)
    assert set(result["sections"]["wide/validation"]) >= {"written_instruction_accuracy"}
    assert "audio_question_accuracy" not in result["sections"]["wide/validation"]


@pytest.mark.parametrize(
    ("parts", "message"), [(("speech", "singing"), "no part 'singing'; there are original"), ((), "no part is named")]
)
def test_parts_that_there_are_not(parts, message):
    with pytest.raises(UserError, match=message):
        SuiteOptions(parts=parts)


def test_without_held_out_texts(corpus, tmp_path):
    systems, records, root = corpus
    with pytest.raises(ValueError, match="validation"):
        evaluate_chain(systems, [r for r in records if r.split == "train"], root, tmp_path / "out")


def test_tokenizer_alone(corpus, tmp_path):
    systems, records, root = corpus
    result = evaluate_chain(Systems(systems.judge, systems.codec, None), records, root, tmp_path / "out", OPTIONS)
    assert "recogniser_wer_reconstruction" in result and "asr_wer_heldout" not in result


def test_loss_pass_stops_at_the_limit():
    part = held_out_losses(_losses, FakeRows(), 9, max_batches=3)
    assert part["counts"] == {"text_tokens": 6.0, "frames": 6}
    assert part["figures"]["codebook_unigram_entropy"][0] == pytest.approx(np.log(3))


def test_unreadable_recordings_are_left_out(corpus, tmp_path):
    systems, records, root = corpus
    (root / "3.wav").write_bytes(b"")
    (root / "train-fast.wav").unlink()
    result = evaluate_chain(systems, records, root, tmp_path / "out", SuiteOptions(limit=8, samples=1, workers=1))
    assert result["sections"]["core/validation"]["asr_wer_heldout"]["n"] == 7
    assert "conversion_wer" not in result["sections"]["wide/validation"]
