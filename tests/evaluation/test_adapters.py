"""The exported model as the evaluation sees it."""

import numpy as np
import pytest

from mimo_jax.evaluation.adapters import ReleasedModel
from mimo_jax.inference.sampling import Sampling
from mimo_jax.inference.tasks import Answer, MimoAudio


class Recorder:
    """Stands for `MimoAudio`: remembers what every task was asked with, and answers with one second of silence."""

    def __init__(self):
        self.asked = {}

    def __getattr__(self, task):
        def answer(given, *rest, **options):
            self.asked[task] = options
            wave = np.zeros(24000, np.float32)
            return [Answer("words", None, wave, None, positions=1, stop_reason="stop") for _ in given]

        return answer


@pytest.mark.parametrize("sampling", [None, Sampling(True, temperature=0.4)])
def test_the_choice_of_sampling_reaches_every_spoken_task(monkeypatch, sampling):
    recorder = Recorder()
    monkeypatch.setattr(MimoAudio, "load", classmethod(lambda cls, *args, **kwargs: recorder))
    model = ReleasedModel("lm", "tokenizer", max_text=7, max_speech=9, audio_sampling=sampling, max_thought=50)
    waves = [np.zeros(10, np.float32)] * 2
    model.tts(["a", "b"], seeds=[0, 1])
    model.continue_speech(waves, seeds=[0, 1])
    model.answer_in_speech(waves, seeds=[0, 1])
    model.convert([], seeds=[])
    assert set(recorder.asked) == {"tts", "continue_speech", "spoken_dialogue", "speech_to_speech"}
    for options in recorder.asked.values():
        assert options["audio_sampling"] == sampling and options["max_new"] == 9
    assert model.asr(waves, seeds=[0, 1]) == ["words"] * 2
    assert model.answer_after_thinking(waves, ["q", "q"], seeds=[0, 1])[1].answer == "words"
    assert recorder.asked["audio_understanding"]["thinking"] and recorder.asked["audio_understanding"]["max_new"] == 57
    assert len(model.speak_as_instructed(["a"], ["softly"], seeds=[0])[0].answer) == 24000
    assert recorder.asked["instruct_tts"] == {"max_new": 59, "audio_sampling": sampling, "seeds": [0]}
    assert model.answer_in_writing(waves, seeds=[0, 1]) == ["words"] * 2
    assert recorder.asked["speech_to_text_dialogue"]["max_new"] == 7
    assert "audio_sampling" not in recorder.asked["asr"] and recorder.asked["asr"]["max_new"] == 7
