"""A prepared folder of made-up examples, written without the preparation: for tests of packing and loading."""

import dataclasses
import json

import numpy as np

from mimo_jax.data.all_formats import formats
from mimo_jax.data.records import Example, to_bytes, write_records
from mimo_jax.data.sequence import AudioSegment, Layout, StreamedSegment, TextSegment, render
from mimo_jax.data.text_tokenizer import train_text_tokenizer

WORDS = "one two three four five six turn the light on off open door please".split()
_SPOKEN = ("tts", "instruct", "dialogue", "conversion", "continuation")


def _segments(task, rng):
    """A question with speech, an answer with loss; spoken where the task speaks, in several turns where it has them."""

    def words(low, high):
        return " ".join(rng.choice(WORDS, int(rng.integers(low, high))))

    def codes():
        return rng.integers(0, [1024, 1024] + [128] * 6, (int(rng.integers(8, 90)), 8)).astype(np.int32)

    segments = []
    for turn in range(int(rng.integers(1, 5)) if task.endswith("multiturn") else 1):
        segments.append(TextSegment(f"<|im_start|>user\nturn {turn}: "))
        if "text" not in task:
            segments.append(AudioSegment(codes()))
        segments.append(TextSegment(f"{words(1, 12)}<|im_end|>\n"))
        if any(name in task for name in _SPOKEN) and "text" not in task:
            segments.append(StreamedSegment(words(2, 9), codes(), loss=True))
        segments.append(TextSegment(f"{words(2, 30)}<|endoftext|>", loss=True))
    return segments


def make_prepared(folder, tasks=(), counts=(60, 12), seed=0):
    """Write ``counts`` train and validation examples of the tasks (all formats by default), in two record files."""
    tokenizer = train_text_tokenizer([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))], 400)
    tokenizer.save(folder / "text_tokenizer")
    layout = Layout(tokenizer.special)
    written = {}
    for task in tasks or formats():
        rng = np.random.Generator(np.random.Philox([seed, len(written)]))
        for split, count in zip(("train", "validation"), counts, strict=True):
            made = [render(_segments(task, rng), tokenizer.encode, layout) for _ in range(count)]
            data = [to_bytes(Example.of(f"{task}-{split}-{i}", task, one)) for i, one in enumerate(made)]
            root = folder / "examples" / task
            root.mkdir(parents=True, exist_ok=True)
            half = len(data) // 2
            write_records(root / f"{split}-00000-of-00002.array_record", data[:half])
            write_records(root / f"{split}-00001-of-00002.array_record", data[half:])
            lengths = [(len(one.text) - one.audio_positions, one.audio_positions) for one in made]
            np.save(root / f"{split}-lengths.npy", np.asarray(lengths, np.int32))
            written.setdefault(task, {})[split] = count
    manifest = {"layout": dataclasses.asdict(layout), "examples": written, "vocab_size": tokenizer.vocab_size}
    (folder / "prepare.json").write_text(json.dumps(manifest))
    return folder
