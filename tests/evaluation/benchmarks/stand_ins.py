"""What stands in for models, recognisers and judges: exact, and as quick as reading a table."""

import hashlib
import shutil
from types import SimpleNamespace

import numpy as np

from mimo_jax.data.audio import write_wav
from mimo_jax.evaluation.benchmarks.base import integer_of, readable
from mimo_jax.evaluation.plugins.base import PluginError
from mimo_jax.evaluation.plugins.fake import label_of, labelled_wave
from mimo_jax.inference.tasks import Answer

RATE = 24_000
# Measured as sound, and therefore made like speech: bursts of noise.
LIKE_SPEECH = ("denoising", "tokenizer_reconstruction")


def speech_like(name, seconds=1.5):
    rng = np.random.default_rng(integer_of(name))
    times = np.arange(int(seconds * RATE)) / RATE
    envelope = np.clip(np.sin(2 * np.pi * 3 * times), 0.02, 1)
    carrier = sum(np.sin(2 * np.pi * f * times + rng.uniform(0, 6)) / n for n, f in enumerate((150, 320, 900, 2300), 1))
    return (0.2 * envelope * (carrier + 0.1 * rng.normal(size=len(times)))).astype(np.float32)


def write_data(golden, folder):
    """Copies the benchmarks' data and writes the recordings that they name; each carries its path as a label."""
    shutil.copytree(golden / "benchmarks", folder)
    for name in (folder / "recordings.txt").read_text().split():
        spoken = name.split("/")[0] in LIKE_SPEECH
        write_wav(folder / name, speech_like(name) if spoken else labelled_wave(name, RATE // 4), RATE)
    return folder


class Model:
    """Answers without a network; codes of a recording follow from its samples.

    Args:
      answer: job -> (text, thinking, wave), the wave None where nothing is spoken.
      limit: prompts with more segments than this cannot run.
    """

    def __init__(self, answer, limit=1000):
        self._answer, self._limit = answer, limit
        self.sample_rate, self.config = RATE, SimpleNamespace(group_size=4)
        self.codec = SimpleNamespace(decode=lambda codes: [self.heard[c.tobytes()] for c in codes])
        self.jobs, self.heard, self.calls = [], {}, 0

    def encode(self, audios):
        out = []
        for wave in audios:
            digest = hashlib.sha256(np.ascontiguousarray(wave).tobytes()).digest()
            codes = np.frombuffer(digest, np.uint8).astype(np.int32).reshape(-1, 4)[:, :2] % 16
            self.heard[codes.tobytes()] = wave
            out.append(codes)
        return out

    def answer(self, jobs):
        if any(len(job.segments) > self._limit for job in jobs):
            raise ValueError(f"a prompt of more than {self._limit} segments")
        self.calls += 1
        self.jobs += jobs
        out = []
        for job in jobs:
            text, thinking, wave = self._answer(job)
            if job.decoding.spoken and wave is None:
                wave = np.zeros(0, np.float32)
            out.append(Answer(text, thinking, wave if job.decoding.spoken else None, None, len(text) + 1, "stop"))
        return out


def scripted(task, script):
    """A model that answers the items of a task from a table: id -> text, (thinking, text), or what is to be heard."""
    by_seed = {integer_of(0, task, name): said for name, said in script.items()}

    def answer(job):
        said = by_seed[job.seed]
        thinking, said = said if isinstance(said, tuple) else (None, said)
        if isinstance(said, np.ndarray):
            return "", thinking, said
        return said, thinking, labelled_wave(said, RATE // 4) if said else None

    return Model(answer)


def hashing(job):
    """Answers that follow from the prompt, the decoding and the seed, all of them."""
    digest = hashlib.sha256(f"{readable(job.segments)} {job.decoding} {job.seed}".encode()).hexdigest()
    text = ("Option A", "Option B", "A", "B", "Dog bark", "Yes", "")[int(digest[0], 16) % 7]
    return f"{text} {digest[:6]}".strip(), None, labelled_wave(digest[:12], RATE // 4 + int(digest[:2], 16))


class Ears:
    """Hears the label of a wave; texts in `deaf` fail as often as it says."""

    identity = "ears"

    def __init__(self, deaf=None):
        self.deaf, self.calls = dict(deaf or {}), 0

    def transcribe(self, waves, sample_rate, language):
        self.calls += len(waves)
        texts = [label_of(wave) or "" for wave in waves]
        for text in texts:
            if self.deaf.get(text, 0) > 0:
                self.deaf[text] -= 1
                raise PluginError(f"did not hear {text!r}")
        return texts


class Judge:
    """Replies by a part of the prompt; a list of replies is worked off, an exception in it is raised."""

    identity = "judge"

    def __init__(self, replies):
        self.replies, self.prompts = {k: list(v) if isinstance(v, list) else v for k, v in replies.items()}, []

    def ask(self, prompts, waves=None):
        self.prompts += prompts
        return [self._reply(prompt) for prompt in prompts]

    def _reply(self, prompt):
        [reply] = [v for part, v in self.replies.items() if part in prompt]
        if isinstance(reply, list):
            reply = reply.pop(0) if len(reply) > 1 else reply[0]
        if isinstance(reply, Exception):
            raise reply
        return reply


class Vectors:
    """Unit vectors by text, or by the label of a wave; zeros for what is not in the table or silent."""

    identity = "vectors"

    def __init__(self, table):
        self._table = table

    def embed(self, things, sample_rate=None):
        names = things if sample_rate is None else [label_of(wave) for wave in things]
        return np.array([self._table.get(name, (0, 0)) for name in names], np.float32)
