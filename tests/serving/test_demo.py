"""The demo: what its widgets ask of the model, what they show, what they refuse, and the page in a real browser.

The engine is a stand-in that says prepared things; prompts, codec, server and page are real.
"""

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

pytest.importorskip("gradio", reason="the demo needs gradio (requirements of serving)")

from mimo_jax.cli import UserError
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.decoding import TASKS
from mimo_jax.inference.requests import Update
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.inference.tasks import MimoAudio, Speech
from mimo_jax.serving import demo, demo_tasks
from mimo_jax.serving.demo_tasks import Inputs, Limits, Settings
from tests.inference.test_tasks import tiny_config
from tests.serving.browser import CHROMIUM, DRIVER, Page

LIMITS = Limits(seconds=2.5, voice_seconds=2.0, characters=100, examples=2, positions=200)
WRITTEN = "the cat sat<|im_end|>"
SPOKEN = "say*it*softly" + "*" * 20 + "<|eot|>*<|eostm|>"


class Engine:
    """Answers spoken tasks with `SPOKEN`, others with `WRITTEN` (`*` = a patch), two positions at a time."""

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer, self.max_positions = config, tokenizer, 500
        self.requests, self.pause = [], 0.0
        self.closed = threading.Event()  # somebody left before the end

    def stream(self, request):
        self.requests.append(request)
        self.closed.clear()
        spoken = self.tokenizer.token_id("<|eostm|>") in request.stop_tokens
        ids = []
        for piece in (SPOKEN if spoken else WRITTEN).split("*"):
            ids += [*self.tokenizer.encode(piece), self.config.empty_token_id]
        ids = np.array(ids[:-1], np.int32)
        return self._updates(ids, np.random.default_rng(0))

    def _updates(self, ids, rng):
        try:
            for start in range(0, len(ids), 2):
                time.sleep(self.pause)
                text = ids[start : start + 2]
                codes = rng.integers(0, 8, ((text == self.config.empty_token_id).sum(), 4, 4)).astype(np.int32)
                yield Update(1, text, codes, "stop" if start + 2 >= len(ids) else None)
        except GeneratorExit:
            self.closed.set()
            raise


@pytest.fixture(scope="module")
def model(tokenizer_tiny):
    tokenizer = train_text_tokenizer(["the cat sat on the mat", "say it softly"] * 3, vocab_size=290)
    return MimoAudio(Engine(tiny_config(tokenizer), tokenizer), tokenizer, AudioCodec.load(tokenizer_tiny))


@pytest.fixture(scope="module")
def voice():
    return (np.sin(np.arange(6000) / 9) * 0.3).astype(np.float32)


@pytest.fixture(scope="module")
def inputs(model, voice):
    return Inputs(model, {"hum": voice}, LIMITS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A usable recording and some that are not."""
    folder = tmp_path_factory.mktemp("recordings")
    made = SimpleNamespace(**{name: str(folder / f"{name}.wav") for name in ("good", "long", "text", "silent")})
    soundfile.write(made.good, np.sin(np.arange(24000) / 20) * 0.3, 24000)
    soundfile.write(made.long, np.sin(np.arange(80000) / 20) * 0.3, 24000)
    soundfile.write(made.silent, np.zeros(24000), 24000)
    (folder / "text.wav").write_text("this is no recording\n" * 100)
    return made


def prompt(model, job):
    """The prompt of a job, spelled, runs of patches as one `*`."""
    text = model.tokenizer.decode(model.request(job).text)
    return "*".join(part for part in text.replace("<|empty|>", "*").split("*") if part)


# ----- inputs -> jobs -------------------------------------------------------------------------------------------------


def test_recordings_that_cannot_be_used_are_explained(inputs, files):
    assert inputs.recording(files.good).shape == (24000,)
    for path, message in (
        (None, "The recording is missing: upload"),
        (files.text, "The recording cannot be used: no known audio format"),
        (files.long, r"longer than the upper limit \(.*the limit is 2.5 s\)"),
        (files.silent, "silence threshold"),
    ):
        with pytest.raises(UserError, match=message) as error:
            inputs.recording(path)
        assert "/" not in str(error.value), "a path of the server"


def test_texts_are_checked(inputs):
    assert inputs.words(" the cat\n") == "the cat" and inputs.words(None, optional=True) == ""
    with pytest.raises(UserError, match="The question is empty"):
        inputs.words("  ", "the question")
    with pytest.raises(UserError, match="has 101 characters, the limit is 100"):
        inputs.words("a" * 101)


def test_speaking_with_and_without_style_and_voice(model, inputs, files):
    job = inputs.speak(3, "the cat", "", False, None, None)
    assert job.decoding is TASKS["tts"] and job.seed == 3 and not job.thinking
    job = inputs.speak(0, "the cat", "softly", False, "", None)
    assert "The cat(softly)" in prompt(model, job) and job.thinking
    job = inputs.speak(0, "the cat", "softly", False, "hum", None)
    assert "<|sosp|>*" in prompt(model, job).split("user")[0]
    job = inputs.speak(0, "say softly: cat", "", True, None, files.good)
    assert "Say softly: cat" in prompt(model, job) and "<|sosp|>*" in prompt(model, job).split("user")[0]
    job = inputs.speak(0, "the cat", "", False, "hum", None)
    assert "Say the following aloud: the cat" in prompt(model, job)
    with pytest.raises(UserError, match="style is given twice"):
        inputs.speak(0, "the cat", "softly", True, None, None)
    with pytest.raises(UserError, match="no voice 'him'"):
        inputs.speak(0, "the cat", "", False, "him", None)
    with pytest.raises(UserError, match=r"The voice cannot be used.*limit is 2 s"):
        inputs.speak(0, "the cat", "", False, None, files.long)


def test_other_tasks_make_their_prompts(model, inputs, files):
    assert prompt(model, inputs.transcribe(0, files.good)).startswith("<|im_start|>user\n<|sosp|>*<|eosp|>")
    job = inputs.understand(0, files.good, "who?", True)
    assert "who?" in prompt(model, job) and job.thinking
    assert prompt(model, inputs.continue_speech(0, files.good)).startswith("<|sosp|>")
    job = inputs.convert(0, "Do it.", files.good, None, None, "", files.good, files.good, "the cat")
    assert prompt(model, job) == (
        "[Int]:Do it.\n<|sosp|>*<|eosp|>\n<|sostm|>the cat<|eot|>*<|eostm|> \n\n<|sosp|>*<|eosp|>\n<|sostm|>"
    )
    with pytest.raises(UserError, match="The target of example 2 is missing"):
        inputs.convert(0, "Do it.", files.good, None, None, "", files.good, None, "the cat")
    with pytest.raises(UserError, match="No examples"):
        inputs.convert(0, "Do it.", files.good, None, None, None)


def test_a_dialogue_grows(model, inputs, files):
    turns = inputs.turn([], files.good)
    [*_, last] = model.stream(inputs.talk(0, turns, "Be kind.", "hum", None))
    turns = demo_tasks.answered(turns, last.answer, "/answer.wav")
    assert isinstance(turns[1].message.content, Speech)
    shown = demo_tasks.messages(turns)
    assert [m["role"] for m in shown] == ["user", "assistant", "assistant"]
    assert shown[0]["content"] == {"path": files.good} and shown[2]["content"] == {"path": "/answer.wav"}
    assert shown[1]["content"] == "sayitsoftly"
    turns = inputs.turn(turns, files.good)
    spelled = prompt(model, inputs.talk(0, turns, "Be kind.", None, None))
    assert spelled.count("user\nBe kind.") >= 1 and "<|sostm|>sayitsoftly<|eot|>*<|eostm|>" in spelled
    with pytest.raises(UserError, match="not both"):
        inputs.turn([], files.good, "and this")
    with pytest.raises(UserError, match="The message is empty"):
        inputs.turn([], None, " ")


def test_chats_are_decoded_as_what_they_hold(inputs, files):
    assert inputs.chat(0, inputs.turn([], None, "say it"), False).decoding is TASKS["text_dialogue"]
    job = inputs.chat(0, inputs.turn(inputs.turn([], files.good), None, "say it"), True)
    assert job.decoding is TASKS["speech_to_text_dialogue"] and job.thinking


def test_settings_that_stand_are_the_tasks_own():
    own = Settings.of(TASKS["asr"], 50)
    assert own[:5] == (0, 50, 0.0, 1.0, 0)
    assert own.options(own) == {"max_new": 50}
    changed = own._replace(text_temperature=0.5, text_top_k=3, audio_temperature=0.0)
    assert changed.options(own) == {
        "max_new": 50,
        "text_sampling": Sampling(True, 0.5, 3, None),
        "audio_sampling": GREEDY,
    }
    least = own._replace(text_temperature=0.5, text_top_p=0).options(own)["text_sampling"]
    assert 0 < least.top_p < 0.01, "the slider's lower end keeps the best token, not all"
    with pytest.raises(UserError, match="setting is empty"):
        own._replace(max_new=None).options(own)


# ----- answers -> what is shown ---------------------------------------------------------------------------------------


def test_pieces_add_up(model, inputs):
    job = inputs.speak(0, "the cat", "", False, None, None)
    pieces = list(model.stream(job))
    shown = list(demo_tasks.follow(pieces, model.sample_rate))
    assert shown[-1].text == shown[-1].answer.text == "sayitsoftly" and shown[0].text == "say"
    sounds = [s.sound for s in shown if s.sound is not None]
    assert len(sounds) > 1 and all(sound[:4] == b"RIFF" for sound in sounds)
    samples = b"".join(sound[44:] for sound in sounds)
    assert samples == demo_tasks.pcm(shown[-1].answer.wave).tobytes()
    answer = shown[-1].answer
    seconds = len(answer.wave) / model.sample_rate
    assert demo_tasks.status(answer, model.sample_rate) == f"{seconds:.1f} s of speech, {answer.positions} positions"


# ----- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(model, voice):
    return demo.build(model, {"hum": voice}, LIMITS)


def work(page, number):
    """The function behind the main button of a tab."""
    return [fn.fn for fn in page.fns.values() if fn.concurrency_id == "model"][number]


def settings(task):
    return Settings.of(TASKS[task], LIMITS.positions)


def test_all_tabs_share_one_limit_and_have_no_public_api(page):
    main = [fn for fn in page.fns.values() if fn.concurrency_id == "model"]
    assert len(main) == 7 and all(fn.concurrency_limit == LIMITS.running for fn in main)
    assert all(fn.api_visibility == "private" for fn in page.fns.values())
    assert not page.analytics_enabled


def test_transcription_step_by_step(page, files):
    *_, last = work(page, 0)(files.good, *settings("asr"))
    assert "the cat sat" in last.values()


def test_mistakes_become_messages(page, files, model, monkeypatch):
    import gradio

    from mimo_jax.inference.service import OverloadedError

    with pytest.raises(gradio.Error, match="recording is missing"):
        list(work(page, 0)(None, *settings("asr")))

    def full(request):
        raise OverloadedError("9 requests are being answered or wait; try again later")

    monkeypatch.setattr(model.engine, "stream", full)
    with pytest.raises(gradio.Error, match="try again later"):
        list(work(page, 0)(files.good, *settings("asr")))


def test_leaving_closes_the_stream(page, model):
    steps = work(page, 1)("the cat", "", False, "", None, *settings("tts"))
    next(steps), next(steps)
    assert not model.engine.closed.is_set()
    steps.close()
    assert model.engine.closed.is_set()


def test_a_stopped_turn_is_not_remembered(page, files):
    talk = work(page, 2)
    before = []
    steps = talk(before, files.good, "", "", None, *settings("spoken_dialogue"))
    next(steps), next(steps)
    steps.close()
    assert before == []
    *_, last = talk(before, files.good, "", "", None, *settings("spoken_dialogue"))
    (turns,) = [v for v in last.values() if isinstance(v, list) and v and isinstance(v[0], demo_tasks.Turn)]
    assert len(turns) == 2 and turns[1].path.endswith(".wav") and len(soundfile.read(turns[1].path)[0])


@pytest.fixture(scope="module")
def url(page):
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **demo.OPTIONS)
    yield address
    page.close()


def ask(url, data=None, kind="application/json"):
    """(status, body) of a request."""
    request = urllib.request.Request(url, data, {"Content-Type": kind} if data else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_only_uploaded_files_are_served_and_taken(url, page, files):
    import asyncio

    import gradio

    assert ask(url)[0] == 200
    for path in ("/etc/passwd", demo.__file__, files.good):
        assert ask(f"{url}gradio_api/file={path}")[0] == 403
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\n'
    body = head.encode() + bytes((Limits.megabytes << 20) + 1) + f"\r\n--{boundary}--\r\n".encode()
    assert ask(f"{url}gradio_api/upload", body, f"multipart/form-data; boundary={boundary}")[0] == 413
    recordings = [b for b in page.blocks.values() if isinstance(b, gradio.Audio) and b.interactive is not False]
    recordings = [b for b in recordings if not b.streaming]
    assert len(recordings) > 5
    for recording in recordings:
        for path in (files.good, "https://example.org/a.wav"):
            with pytest.raises(gradio.Error, match="Only uploaded"):
                asyncio.run(recording.async_move_resource_to_block_cache(path))


def test_the_command_explains_mistakes(tmp_path):
    for flags, message in (
        ([], "--lm is missing"),
        (["--lm=/nowhere", f"--tokenizer={tmp_path}"], "--lm=/nowhere: no such folder"),
        ([f"--lm={tmp_path}", f"--tokenizer={tmp_path}", "--voices=/nowhere"], "--voices=/nowhere: no such folder"),
        (["here"], "unexpected argument 'here'"),
    ):
        command = [sys.executable, "-m", "mimo_jax.demo", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 2 and message in done.stderr


# ----- a browser ------------------------------------------------------------------------------------------------------


# Players need not be part of the document.
_LISTEN = """
const play = HTMLMediaElement.prototype.play
window.players = new Set()
HTMLMediaElement.prototype.play = function () { window.players.add(this); return play.apply(this) }
"""
_PLAYED = """
return [...window.players, ...document.querySelectorAll('audio')].some(a => !a.error && a.currentTime > 0.05)
"""


@pytest.fixture(scope="module")
def browser(url, tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver (Debian: apt-get install chromium chromium-driver)")
    pytest.importorskip("selenium")
    opened = Page(url, tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.driver.quit()


def test_in_a_browser_a_recording_is_transcribed(browser, files, url):
    browser.click("button[role=tab]", "Transcribe")
    upload = browser.wait(lambda: browser.driver.find_elements("css selector", "input[type=file]"), "upload")
    upload[0].send_keys(files.good)
    browser.wait(lambda: browser.find("button[aria-label='Clear']"), "recording")
    browser.click("button.primary", "Transcribe")
    browser.wait(lambda: browser.field("Transcript").get_attribute("value") == "the cat sat", "transcript")
    asked = [address for address in browser.requested() if address.startswith("http")]
    assert asked and all(address.startswith(url) for address in asked)


def test_in_a_browser_a_text_is_spoken_and_heard(browser):
    browser.click("button[role=tab]", "Speak")
    browser.field("Text").send_keys("the cat")
    browser.driver.execute_script(_LISTEN)
    browser.click("button.primary", "Speak")
    browser.wait(lambda: browser.field("Spoken text").get_attribute("value") == "sayitsoftly", "words")
    # It plays without being asked to.
    browser.wait(lambda: browser.driver.execute_script(_PLAYED), "sound that plays")


def test_in_a_browser_stop_ends_the_work(browser, model, monkeypatch):
    monkeypatch.setattr(model.engine, "pause", 0.3)
    browser.click("button[role=tab]", "Speak")
    asked = len(model.engine.requests)
    browser.click("button.primary", "Speak")
    browser.wait(lambda: len(model.engine.requests) > asked, "request")
    browser.click("button.stop", "Stop")
    assert model.engine.closed.wait(10)
    browser.wait(lambda: browser.find("p", "Stopped"), "message")


def test_in_a_browser_mistakes_are_told(browser):
    browser.click("button[role=tab]", "Understand")
    browser.click("button.primary", "Answer")
    browser.wait(lambda: any("recording is missing" in e.text for e in browser.find(".toast-body")), "message")
