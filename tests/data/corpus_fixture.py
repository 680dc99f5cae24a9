"""A handful of synthetic recordings with every kind of annotation, and a codec that needs no training."""

import hashlib

import numpy as np

from mimo_jax.data.audio import write_flac
from mimo_jax.data.manifest import Record, TextRecord
from mimo_jax.data.manifest_files import write_manifest, write_texts

WORDS = ["one", "two", "three", "four", "five", "six", "turn", "the", "light", "on", "off", "open", "door", "please"]


class FakeCodec:
    """Frames of 960 samples; a code is a coarse function of the frame's loudness and sign changes."""

    codebook_sizes = (1024, 1024, 128, 128, 128, 128, 128, 128)
    fingerprint = "fake-1"

    def __init__(self):
        self.calls = 0

    def encode(self, waves):
        self.calls += 1
        return [self._one(w) for w in waves]

    def _one(self, wave):
        frames = -(-len(wave) // 960)
        cut = np.pad(wave, (0, frames * 960 - len(wave))).reshape(frames, 960)
        loud = (np.abs(cut).mean(1) * 4000).astype(np.int64)[:, None]
        turns = (np.diff(np.sign(cut), axis=1) != 0).sum(1)[:, None]
        codes = loud * np.arange(1, 9) + turns * np.arange(8, 0, -1)
        return (codes % np.asarray(self.codebook_sizes)).astype(np.int32)


def _wave(key, seconds):
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    rng = np.random.Generator(np.random.Philox(seed))
    return (0.1 * rng.standard_normal(int(seconds * 24000))).astype(np.float32)


def _annotations(i, split, ids):
    speaker = f"voice{i % 3}"
    fields = {
        "speaker": speaker,
        "caption": f"A {'slow' if i % 2 else 'fast'} voice number {i % 3}.",
        "attributes": {"rate": "slow" if i % 2 else "fast", "gender": "male"},
        "instruction": "say it slowly" if i % 2 else "say it fast",
        "qa": [{"question": "How fast is it?", "answer": "slow" if i % 2 else "fast", "choices": ["slow", "fast"]}],
    }
    if i % 4 == 0 and i + 1 < len(ids):
        fields["reply"] = ids[i + 1]
    if i % 5 < 3:
        fields["document"] = {"id": f"{split}-doc{i // 5}", "index": i % 5}
    return fields


def make_corpus(folder, count=40, seed=0):
    """Write ``count`` train and ``count // 4`` validation recordings with manifest and texts; returns the records."""
    rng = np.random.Generator(np.random.Philox(seed))
    records, texts = [], []
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for split, n in (("train", count), ("validation", count // 4)):
        ids = [f"{split}{i:03d}" for i in range(n)]
        for i, record_id in enumerate(ids):
            text = " ".join(rng.choice(WORDS, size=int(rng.integers(2, 16))).tolist())
            fields = _annotations(i, split, ids)
            if i % 7 == 6:  # the same words by the next voice
                text, fields["parallel"] = records[-1].text, records[-1].id
                records[-1] = Record(**{**vars(records[-1]), "parallel": records[-1].id})
            audio = f"audio/{record_id}.flac"
            write_flac(folder / audio, _wave(record_id, 0.3 + 0.1 * len(text.split())), 24000)
            records.append(Record(record_id, audio, text, split=split, subset="core", **fields))
        texts += [TextRecord(f"{split}-text{i}", f"text number {i} is here", split, "core") for i in range(n)]
        texts.append(TextRecord(f"{split}-asked", "what comes after one", split, "core", "two"))
    write_manifest(folder / "manifest.jsonl", records)
    write_texts(folder / "texts.jsonl", texts)
    return records
