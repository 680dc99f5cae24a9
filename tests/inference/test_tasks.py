"""Tasks by name: what is asked of the engine, what is made of its answers, and the whole chain on tiny models."""

import dataclasses
import subprocess
import sys
from types import SimpleNamespace

import huggingface_hub
import jax
import numpy as np
import pytest

from mimo_jax import convert
from mimo_jax.cli import UserError
from mimo_jax.data.sequence import arrays
from mimo_jax.data.text_tokenizer import TextTokenizer, train_text_tokenizer
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.decoding import TASKS
from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Result, Update
from mimo_jax.inference.tasks import Conversion, Message, MimoAudio, Question, Speech
from mimo_jax.interop import hf
from mimo_jax.models.mimo_audio import MimoAudio as Model
from mimo_jax.models.mimo_audio import MimoAudioConfig


def tiny_config(tokenizer):
    return MimoAudioConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        audio_channels=4,
        delay_pattern=(0, 1, 2, 3),
        speech_vocab_size=(17, 17, 9, 9),
        speech_zeroemb_idx=(16, 16, 8, 8),
        local_dim=16,
        local_layers=1,
        local_attn_heads=2,
        local_ffn_dim=32,
        input_local_layers=1,
        input_local_dim=16,
        empty_token_id=tokenizer.special.empty,
        initializer_range=0.3,
    )


class Script:
    """Stands in for the engine: notes the requests, answers with prepared positions."""

    def __init__(self, config, answers):
        self.config, self.answers, self.max_positions = config, answers, 500
        self.requests = []

    def generate(self, requests):
        self.requests = list(requests)
        return [self.answers[i % len(self.answers)] for i in range(len(requests))]

    def stream(self, request):
        """Two positions at a time."""
        self.requests, answer = [request], self.answers[0]
        empty = self.config.empty_token_id
        for start in range(0, len(answer.text), 2):
            before = (answer.text[:start] == empty).sum()
            text = answer.text[start : start + 2]
            last = start + 2 >= len(answer.text)
            codes = answer.codes[before : before + (text == empty).sum()]
            yield Update(1, text, codes, answer.stop_reason if last else None)


@pytest.fixture(scope="module")
def parts(tokenizer_tiny):
    tokenizer = train_text_tokenizer(["the cat sat on the mat", "say it softly"] * 3, vocab_size=290)
    return SimpleNamespace(tokenizer=tokenizer, config=tiny_config(tokenizer), codec=AudioCodec.load(tokenizer_tiny))


@pytest.fixture
def wave():
    return np.sin(np.arange(4000) / 7).astype(np.float32) * 0.3


def scripted(parts, text, stopped=True, patches=0):
    """A model whose engine answers with `text`, in which every `*` is a patch."""
    ids = []
    for piece in text.split("*"):
        ids += [*parts.tokenizer.encode(piece), parts.tokenizer.special.empty]
    ids = np.array(ids[:-1], np.int32)
    count = int((ids == parts.tokenizer.special.empty).sum())
    codes = np.arange(count * 16).reshape(count, 4, 4).astype(np.int32) % 8
    return MimoAudio(
        Script(parts.config, [Result(ids, codes, "stop" if stopped else "length")]), parts.tokenizer, parts.codec
    )


def prompt(model, number=0):
    """The prompt of a request, spelled, patches as `*`."""
    return model.tokenizer.decode(model.engine.requests[number].text).replace("<|empty|>", "*")


def test_asr(parts, wave):
    model = scripted(parts, "the cat<|im_end|>")
    first, second = model.asr([wave, wave], instruction="Write", seeds=[5, 6])
    assert first.text == second.text == "the cat"
    assert first.thinking is None and first.wave is None and first.stop_reason == "stop"
    patches = "*" * -(-len(model.encode([wave])[0]) // 4)
    expected = (
        f"<|im_start|>user\n<|sosp|>{patches}<|eosp|>Write<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n"
    )
    assert prompt(model) == expected
    request = model.engine.requests[1]
    assert request.seed == 6 and not request.text_sampling.do_sample and request.max_new == 500
    assert request.stop_tokens == (model.tokenizer.special.end_of_text, model.tokenizer.special.im_end)
    audio = request.audio[request.text == model.tokenizer.special.empty].reshape(-1, 4)
    codes = model.encode([wave])[0]
    np.testing.assert_array_equal(audio[: len(codes)], codes)


def test_an_answer_that_ended_by_length_keeps_its_last_token(parts, wave):
    (answer,) = scripted(parts, "the cat sat", stopped=False).asr([wave])
    assert answer.text == "the cat sat" and answer.stop_reason == "length"


def test_tts_decodes_what_was_spoken(parts):
    model = scripted(parts, "the**cat<|eot|>*<|eostm|>")
    (answer,) = model.tts(["the cat"], instruction="Read")
    assert answer.text == "thecat"
    assert prompt(model) == "<|im_start|>user\nRead: The cat<|im_end|>\n<|im_start|>assistant\n<|sostm|>"
    np.testing.assert_array_equal(answer.codes, (np.arange(48) % 8).reshape(12, 4))
    np.testing.assert_allclose(answer.wave, parts.codec.decode([answer.codes])[0])
    (silent,) = scripted(parts, "<|eostm|>").tts(["x"])
    assert silent.wave.shape == (0,) and silent.codes.shape == (0, 4)


@pytest.mark.parametrize(
    "generated, stopped, thinking, text",
    [
        ("soft voice</think>\n<|sostm|>the*cat<|eot|>*<|eostm|>", True, "soft voice", "thecat"),
        ("soft voi", False, "soft voi", ""),
    ],
)
def test_thinking_comes_apart(parts, wave, generated, stopped, thinking, text):
    model = scripted(parts, generated, stopped)
    (answer,) = model.instruct_tts(["the cat"], ["softly"], [wave], instruction="Read")
    assert (answer.thinking, answer.text) == (thinking, text)
    assert prompt(model).endswith("Read: The cat(softly)<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert "<|sosp|>*" in prompt(model).split("user")[0]


def test_dialogues(parts, wave):
    model = scripted(parts, "yes<|im_end|>")
    turns = [Message("user", wave), Message("assistant", "the cat"), Message("user", "say")]
    (answer,) = model.speech_to_text_dialogue([turns], thinking=False)
    assert answer.text == "yes" and prompt(model).count("*") == -(-len(model.encode([wave])[0]) // 4)
    (answer,) = model.text_dialogue([[Message("user", "say")]], thinking=True)
    assert prompt(model) == "<|im_start|>user\nsay<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert (answer.text, answer.thinking) == ("", "yes")

    model = scripted(parts, "yes*<|eostm|>")
    spoken = [Message("user", wave), Message("assistant", Speech("cat", wave)), Message("user", wave)]
    (answer,) = model.spoken_dialogue([spoken], system_prompt="Be kind.", voice=wave)
    assert len(answer.wave) > 0
    assert prompt(model).startswith("<|im_start|>system\nYour voice should be:<|sosp|>*")
    assert prompt(model).count("<|sostm|>") == 2 and "user\nBe kind.\n\n<|sosp|>" in prompt(model)
    with pytest.raises(ValueError, match="must end with the user"):
        model.text_dialogue([[Message("user", "a"), Message("assistant", "b")]])


def test_base_model_tasks(parts, wave):
    codes = parts.codec.encode([wave], 4)[0][:7]
    model = scripted(parts, "cat<|endoftext|>")
    assert model.pretrain_asr([codes])[0].text == "cat" and prompt(model) == "<|sosp|>**<|eosp|>\n"
    model = scripted(parts, "the*<|eostm|>")
    model.pretrain_tts(["the cat"])
    assert prompt(model) == "the cat\n<|sostm|>"
    model.speech_to_speech([Conversion("Do it.", [(codes, Speech("cat", codes))], codes)])
    assert (
        prompt(model)
        == "[Int]:Do it.\n<|sosp|>**<|eosp|>\n<|sostm|>cat<|eot|>**<|eostm|> \n\n<|sosp|>**<|eosp|>\n<|sostm|>"
    )
    model = scripted(parts, "**<|eosp|>")
    (answer,) = model.continue_speech([codes])
    assert prompt(model) == "<|sosp|>*"  # 7 frames are one whole patch
    assert answer.codes.shape == (8, 4) and len(answer.wave) > 0


def test_few_shot_questions(parts, wave):
    codes = parts.codec.encode([wave], 4)[0][:8]
    model = scripted(parts, "b\n\n[Int]:c", stopped=False)
    (answer,) = model.few_shot_question_answering([Question("q", [("p", "a")], "law")])
    assert answer.text == "b" and answer.wave is None
    assert prompt(model) == "law\np\na \n\nq\n"
    request = model.engine.requests[0]
    assert (request.min_new, request.max_new) == (5, 10)
    model.few_shot_question_answering([Question(codes, [(codes, "a")])], max_new=3)
    assert prompt(model) == "[Int]:<|sosp|>**<|eosp|>\na \n\n<|sosp|>**<|eosp|>\n"
    assert model.engine.requests[0].min_new == 2
    model = scripted(parts, "b*<|eostm|>")
    (answer,) = model.few_shot_question_answering([Question(codes, [(codes, Speech("a", codes))], codes)])
    assert answer.text == "b" and len(answer.wave) > 0
    spoken = "<|sosp|>**<|eosp|>"
    assert prompt(model) == f"<Spe>:{spoken}\n{spoken}\n<|sostm|>a<|eot|>**<|eostm|> \n\n{spoken}\n<|sostm|>"
    model.few_shot_question_answering([Question("q", spoken=True)])
    assert prompt(model) == "[Int]:q\n<|sostm|>"
    with pytest.raises(ValueError, match="must all be spoken"):
        model.few_shot_question_answering([Question("q", [("p", "a"), ("p", Speech("a", codes))])])


def test_answers_come_in_pieces(parts):
    model = scripted(parts, "soft voice</think>\n<|sostm|>the*cat" + "*" * 12 + "<|eot|>**<|eostm|>")
    jobs = model.jobs.instruct_tts(["the cat"], ["softly"])
    pieces = list(model.stream(jobs[0], lookahead=4))
    (whole,) = model.answer(jobs)
    assert "".join(p.text for p in pieces) == whole.text == "thecat"
    assert "".join(p.thinking for p in pieces) == whole.thinking == "soft voice"
    assert [p.answer is None for p in pieces] == [True] * (len(pieces) - 1) + [False]
    wave = np.concatenate([p.wave for p in pieces])
    assert wave.shape == whole.wave.shape and wave.dtype == np.float32
    first = next(i for i, p in enumerate(pieces) if len(p.wave))
    assert first < len(pieces) - 4, "no sound before the end"
    np.testing.assert_array_equal(pieces[-1].answer.wave, wave)
    np.testing.assert_array_equal(pieces[-1].answer.codes, whole.codes)
    # Sound of text tasks is none.
    (piece,) = scripted(parts, "cat", stopped=False).stream(*model.jobs.text_dialogue([[Message("user", "say")]]))
    assert piece.text == "cat" and not len(piece.wave) and piece.answer.wave is None


def test_bad_inputs_are_named(parts, wave):
    model = scripted(parts, "x<|im_end|>")
    with pytest.raises(ValueError, match="audio 1 is int64"):
        model.asr([wave, np.zeros(5, np.int64)])
    with pytest.raises(ValueError, match="1 seeds for 2 inputs"):
        model.asr([wave, wave], seeds=[1])
    with pytest.raises(Exception, match="nowhere.wav"):
        model.asr(["nowhere.wav"])
    for task, inputs in (("tts", "the cat"), ("asr", wave), ("asr", "cat.wav")):
        with pytest.raises(ValueError, match="argument 1 is .*: tasks take lists"):
            getattr(model, task)(inputs)  # not an answer for each character
    model.engine.requests, model.engine.stream = [], lambda request: model.engine.requests.append(request)
    with pytest.raises(ValueError, match="lookahead = -1"):
        model.stream(*model.jobs.tts(["the cat"]), lookahead=-1)
    assert not model.engine.requests, "answered to nobody"
    other = dataclasses.replace(parts.config, empty_token_id=3)
    with pytest.raises(UserError, match="do not belong together"):
        MimoAudio(Script(other, []), parts.tokenizer, parts.codec)


@pytest.fixture(scope="module")
def folders(parts, tokenizer_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    shapes = hf.lm_shapes(parts.config)
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.2, x.shape).astype(np.float32) for x in leaves])
    parts.tokenizer.save(folder / "text")
    hf.save_lm(folder / "lm", parts.config, params, text_tokenizer_dir=folder / "text")
    return folder / "lm", tokenizer_tiny


def test_from_folders_to_answers(folders, wave):
    model = MimoAudio.load(*folders, max_batch=4, room=16)
    assert isinstance(model.engine, Engine) and isinstance(model.tokenizer, TextTokenizer)
    answers = model.tts(["the cat", "a mat", "sat"], max_new=12, seeds=[1, 2, 3])
    assert all(a.positions <= 12 and a.wave.dtype == np.float32 for a in answers)
    (again,) = model.tts(["a mat"], max_new=12, seeds=[2])
    np.testing.assert_array_equal(again.wave, answers[1].wave)
    text, audio, _ = arrays([], model.tokenizer.encode, model.layout)
    assert text.shape == (0,) and audio.shape == (0, 4, 4)
    assert model.asr([wave], max_new=5)[0].positions <= 5


def test_runs_and_repositories_are_models_too(folders, tmp_path, monkeypatch):
    lm, tokenizer = folders
    for name, folder in (("lm", lm), ("tokenizer", tokenizer)):
        assert convert.main(["import", "--weights", str(folder), "--out", str(tmp_path / name)]) == 0
    monkeypatch.setattr(huggingface_hub, "snapshot_download", {"someone/speech": str(lm)}.__getitem__)
    expected = MimoAudio.load(lm, tokenizer, max_batch=4, room=16).tts(["a mat"], max_new=12, seeds=[2])[0]
    models = [
        MimoAudio.load(tmp_path / "lm", tmp_path / "tokenizer", text_tokenizer=lm, max_batch=4, room=16),
        MimoAudio.load("someone/speech", str(tokenizer), max_batch=4, room=16),
    ]
    for model in models:
        np.testing.assert_array_equal(model.tts(["a mat"], max_new=12, seeds=[2])[0].wave, expected.wave)
    for arguments, message in (
        ((tmp_path / "lm", tokenizer), "has no text tokenizer"),
        ((tmp_path / "tokenizer", tokenizer), "not of a language model"),
        ((lm, tmp_path / "lm"), "not of an audio tokenizer"),
        (("someone/else", tokenizer), "someone/else: no such folder, and the hub"),
        (("/nowhere", tokenizer), "/nowhere: no such folder; give"),
    ):
        with pytest.raises(UserError, match=message):
            MimoAudio.load(*arguments)


def test_every_task_has_a_method():
    assert all(callable(getattr(MimoAudio, name)) for name in TASKS)
    assert Model is not MimoAudio


def test_import_is_lazy():
    code = (
        "import mimo_jax, sys; assert 'jax' not in sys.modules;"
        "from mimo_jax import MimoAudio; print(MimoAudio.__module__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "mimo_jax.inference.tasks"
