"""Training batches of waveforms with their texts, for the audio tokenizer and the recogniser.

``batch(step)`` is a pure function of (seed, step), like that of the packed rows: a keyed permutation per epoch, no
state.
"""

import logging
import os
import pathlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from mimo_jax.data import audio as audio_lib
from mimo_jax.data import packing
from mimo_jax.data.manifest import Record, audio_path, read_manifest
from mimo_jax.data.permutation import key_of, permute

Batch = dict[str, np.ndarray]
TextIds = Callable[[str], Sequence[int]]

logger = logging.getLogger(__name__)


def character_ids(alphabet: str) -> TextIds:
    """Text -> ids 1 .. len(alphabet) of its lower-cased characters; others are left out. 0 stays free for padding."""
    table = {character: number for number, character in enumerate(alphabet, start=1)}
    return lambda text: [table[c] for c in text.lower() if c in table]


class WaveformSource:
    """Utterances of a manifest as fixed-shape batches.

    Args:
        manifest: folder with ``manifest.jsonl``, or the file; the ``scan`` folder of a preparation is the checked one.
        batch_size: utterances of the global batch.
        max_samples: S, samples at 24 kHz.
        text_ids: text -> ids for the ``text`` rows; recordings without text are then skipped. None gives no text.
        max_text: L; utterances with more ids are skipped.
        split: "train", "validation" or "test_voices".
        subsets: keep only these subsets; none keeps all.
        lengths: "whole" skips utterances longer than S; "crop" takes all, and of longer ones a part of S samples whose
            place depends on (seed, epoch, utterance); a cropped one has text length 0. "joined" fills each row with
            several whole utterances, one after the other, audio and text alike: little of a fixed-shape batch is
            padding then. Which utterances share a row is planned once, by best fit.
        seed: of order and crops.
        host_index, host_count: this host's slice of the batch.
        repeat: False gives one pass; rows behind its end have ``num_samples`` 0.
        shuffle: False keeps the manifest's order.
        cache_bytes: decoded audio kept in memory as int16.
        workers: decoding threads.

    Attributes:
        skipped: how many utterances were left out, by reason.

    Raises:
        ValueError: nothing is left, or the hosts do not divide the batch.
    """

    def __init__(
        self,
        manifest: str | os.PathLike[str],
        batch_size: int,
        max_samples: int,
        text_ids: TextIds | None = None,
        max_text: int = 0,
        split: str = "train",
        subsets: Sequence[str] = (),
        lengths: Literal["whole", "crop", "joined"] = "whole",
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
        repeat: bool = True,
        shuffle: bool = True,
        cache_bytes: int = 1 << 30,
        workers: int = 2,
    ):
        if batch_size % host_count or not 0 <= host_index < host_count:
            raise ValueError(f"batch of {batch_size}, host {host_index} of {host_count}: the hosts must divide it")
        path = pathlib.Path(manifest)
        self._root = path if path.is_dir() else path.parent
        self._batch_size, self._max_samples, self._max_text = batch_size, max_samples, max_text
        self._lengths, self._seed, self._repeat, self._shuffle = lengths, seed, repeat, shuffle
        per_host = batch_size // host_count
        self._host_rows = np.arange(host_index * per_host, (host_index + 1) * per_host)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._room = cache_bytes
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(max(1, workers))
        self.skipped: Counter[str] = Counter()
        self.records: list[Record] = []
        self._text: list[np.ndarray] = []
        self._samples_of: list[int] = []
        wanted = [r for r in read_manifest(path) if r.split == split and (not subsets or r.subset in subsets)]
        self._select(wanted, text_ids)
        if self.skipped:
            logger.warning("%s %s: skipped %s", path, split, dict(self.skipped))
        if not self.records:
            raise ValueError(
                f"{path}: no {split} utterance is left ({len(wanted)} there, skipped {dict(self.skipped)})"
            )
        self._rows = self._plan_rows()

    def _select(self, wanted: Sequence[Record], text_ids: TextIds | None) -> None:
        texts = [np.asarray(text_ids(r.text or "") if text_ids else [], np.int32) for r in wanted]
        for record, text, samples in zip(wanted, texts, self._pool.map(self._samples, wanted), strict=True):
            if isinstance(samples, str):
                self.skipped[samples] += 1
            elif text_ids and not len(text):
                self.skipped["no_text"] += 1
            elif len(text) > self._max_text:
                self.skipped["text_too_long"] += 1
            elif self._lengths != "crop" and samples > self._max_samples:
                self.skipped["audio_too_long"] += 1
            else:
                self.records.append(record)
                self._text.append(text)
                self._samples_of.append(samples)

    def _plan_rows(self) -> list[np.ndarray]:
        """Utterances of each row; one each, unless rows are joined."""
        if self._lengths != "joined":
            return [np.asarray([number]) for number in range(self.num_examples)]
        counts = np.stack([np.asarray(self._samples_of), np.zeros(self.num_examples, np.int64)], axis=1)
        plan = packing.plan_rows(counts, self._max_samples, seed=self._seed)
        rows = np.split(plan.example, plan.offsets[1:-1])
        longest = max(sum(len(self._text[number]) for number in row) for row in rows)
        if longest > self._max_text:
            raise ValueError(f"joined utterances have up to {longest} text ids: raise max_text = {self._max_text}")
        return rows

    def _samples(self, record: Record) -> int | str:
        """Length at 24 kHz, from the manifest where it is given; the reason where the file cannot be read."""
        if record.duration is not None:
            # A resampler may round up: one sample more than the duration says.
            return int(np.ceil(record.duration * audio_lib.SAMPLE_RATE))
        try:
            return len(audio_lib.load_audio(audio_path(record, self._root), start=record.start, end=record.end))
        except audio_lib.AudioError as error:
            return error.reason

    @property
    def num_examples(self) -> int:
        """Utterances that are left."""
        return len(self.records)

    def steps_per_pass(self) -> int:
        """Steps after which every utterance has come at least once."""
        return -(-len(self._rows) // self._batch_size)

    def token_counts(self, step: int) -> tuple[int, int]:
        """(0, 0): waveforms hold no positions of the language model; their stages have budgets in steps."""
        return 0, 0

    def _wave(self, number: int) -> np.ndarray:
        """int16 samples of an utterance, from memory or disk."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        record = self.records[number]
        wave = audio_lib.load_audio(audio_path(record, self._root), start=record.start, end=record.end)
        kept = np.round(np.clip(wave, -1, 1) * 32767).astype(np.int16)
        with self._lock:
            self._remember(number, kept)
        return kept

    def _remember(self, number: int, wave: np.ndarray) -> None:
        """Keep a wave, and let go of those not used for longest until it fits. The caller holds the lock."""
        if number in self._cache:
            return
        self._cache[number] = wave
        self._room -= wave.nbytes
        while self._room < 0 and self._cache:
            self._room += self._cache.popitem(last=False)[1].nbytes

    def _row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(int16 samples, text ids) of a row of the endless list; both empty behind the end of a single pass."""
        nothing = np.zeros(0, np.int16), np.zeros(0, np.int32)
        epoch, place = divmod(number, len(self._rows))
        if epoch and not self._repeat:
            return nothing
        if self._shuffle:
            place = int(permute(np.asarray(place), len(self._rows), key_of(self._seed, epoch)))
        utterances = self._rows[place]
        wave = np.concatenate([self._wave(int(one)) for one in utterances])
        text = np.concatenate([self._text[one] for one in utterances])
        if len(wave) <= self._max_samples:
            return wave, text
        if self._lengths != "crop":
            return wave[: self._max_samples], text
        room = len(wave) - self._max_samples + 1
        start = key_of(self._seed, epoch, place, 1) % room
        return wave[start : start + self._max_samples], nothing[1]

    def batch(self, step: int) -> Batch:
        """This host's utterances of a step.

        Returns:
            waveform float32 [B, S] at 24 kHz (zero behind the end), num_samples int32 [B], text int32 [B, L] (0 behind
            the end), text_length int32 [B].
        """
        count = len(self._host_rows)
        out: Batch = {
            "waveform": np.zeros((count, self._max_samples), np.float32),
            "num_samples": np.zeros(count, np.int32),
            "text": np.zeros((count, self._max_text), np.int32),
            "text_length": np.zeros(count, np.int32),
        }
        numbers = (step * self._batch_size + self._host_rows).tolist()
        for line, (wave, text) in enumerate(self._pool.map(self._row, numbers)):
            out["waveform"][line, : len(wave)] = wave.astype(np.float32) / 32767
            out["num_samples"][line] = len(wave)
            out["text"][line, : len(text)] = text
            out["text_length"][line] = len(text)
        return out
