"""Training batches of waveforms with their texts, for the audio tokenizer and the recogniser.

``batch(step)`` is a pure function of (seed, step), like that of the packed rows: a keyed permutation per epoch, no
state.
"""

import itertools
import logging
import os
import pathlib
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from mimo_jax.data import audio as audio_lib
from mimo_jax.data import packing
from mimo_jax.data.manifest import Record, audio_path
from mimo_jax.data.manifest_files import iterate_manifest
from mimo_jax.data.permutation import key_of, permute
from mimo_jax.data.utterances import UtteranceTable

Batch = dict[str, np.ndarray]
TextIds = Callable[[str], Sequence[int]]

TEXT_KINDS = ("transcript", "caption")
"""What a text may be; `text_kind` of a batch is the place in this list."""
FRAME_SAMPLES = 960
"""Samples of a code frame at 24 kHz and 25 Hz: packed utterances begin at its multiples."""
PATCH_SAMPLES = 4 * FRAME_SAMPLES
"""Samples of a patch, 160 ms: what budgets and speeds count audio in."""

_NO_TEXT = np.zeros(0, np.int32)
_AT_ONCE = 4096  # lines of the manifest in memory

logger = logging.getLogger(__name__)


class Utterance(NamedTuple):
    """One utterance of a row: int16 samples, text ids (none: no text loss), place in `TEXT_KINDS`."""

    wave: np.ndarray
    text: np.ndarray
    kind: int = 0


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
        text_ids: text -> ids for the ``text`` rows; recordings without text are then skipped, unless `untexted`. None
            gives no text.
        max_text: L; utterances with more ids are skipped. Rows of several hold no more together: with little room for
            text they have less audio (`fill`).
        untexted: keep recordings without text, with text length 0: they are learned from by reconstruction alone.
        caption_share: how often the text of an utterance that has a caption and a transcript is its caption, drawn by
            (seed, epoch, utterance). One that has only a caption is captioned if this is more than 0.
        split: "train", "validation" or "test_voices".
        subsets: keep only these subsets; none keeps all.
        lengths: "whole" skips utterances longer than S; "crop" takes all, and of longer ones a part of S samples whose
            place depends on (seed, epoch, utterance); a cropped one has text length 0. "joined" fills each row with
            several whole utterances, one after the other, audio and text alike: little of a fixed-shape batch is
            padding then. Which utterances share a row is planned once, by best fit. "packed" does so, too, but keeps
            them apart: each begins at a multiple of `FRAME_SAMPLES` with at least one such frame free before it, so
            that the tokenizer gives each what it gives it alone (`models.tokenizer.extents`); one of exactly S loses
            its last sample, which would take a code frame more. Both skip what is longer than S: cut long recordings
            into utterances first (`mimo_jax.prepare`).
        seed: of order and crops.
        host_index, host_count: this host's slice of the batch.
        repeat: False gives one pass; rows behind its end have ``num_samples`` 0.
        shuffle: False keeps the manifest's order.
        cache_bytes: decoded audio kept in memory as int16.
        workers: decoding threads.

    Attributes:
        skipped: how many utterances were left out, by reason.
        fill: share of the rows' samples that is audio.

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
        untexted: bool = False,
        caption_share: float = 0.0,
        lengths: Literal["whole", "crop", "joined", "packed"] = "whole",
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
        if lengths == "packed" and max_samples % FRAME_SAMPLES:
            raise ValueError(f"max_samples is {max_samples}: packed rows need a multiple of {FRAME_SAMPLES}")
        path = pathlib.Path(manifest)
        self._caption_share, self._untexted = caption_share, untexted
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
        self._text_ids = text_ids
        self._utterances = UtteranceTable(path)
        there = self._select(path, split, subsets)
        if self.skipped:
            logger.warning("%s %s: skipped %s", path, split, dict(self.skipped))
        if not self.num_examples:
            raise ValueError(f"{path}: no {split} utterance is left ({there} there, skipped {dict(self.skipped)})")
        samples = self._utterances.samples
        self._members, self._row_offsets = self._plan_rows(samples)
        self.fill = samples.sum() / (self.num_rows * max_samples)
        logger.info(
            "%s %s: %d utterances in %d rows, fill %.3f", path, split, self.num_examples, self.num_rows, self.fill
        )

    def _select(self, path: pathlib.Path, split: str, subsets: Sequence[str]) -> int:
        """Fills the table; how many utterances there are to choose from."""
        wanted = (
            (place, record)
            for place, record in iterate_manifest(path)
            if record.split == split and (not subsets or record.subset in subsets)
        )
        there = 0
        while some := list(itertools.islice(wanted, _AT_ONCE)):
            there += len(some)
            lengths = self._pool.map(self._samples, (record for _, record in some))
            for (place, record), samples in zip(some, lengths, strict=True):
                self._add(place, record, samples)
        return there

    def _add(self, place: tuple[int, int], record: Record, samples: int | str) -> None:
        """An utterance into the table, or into the account of those left out."""
        ids = [len(found) for found in self._texts(record)]
        if isinstance(samples, str):
            self.skipped[samples] += 1
        elif self._text_ids and not max(ids) and not self._untexted:
            self.skipped["no_text"] += 1
        elif max(ids) > self._max_text:
            self.skipped["text_too_long"] += 1
        elif self._lengths != "crop" and samples > self._max_samples:
            self.skipped["audio_too_long"] += 1
        else:
            if samples > self._max_samples:  # a part of it has no text
                ids = [0, 0]
            # n samples have 1 + n // FRAME_SAMPLES code frames.
            self._utterances.add(place, min(samples, self._max_samples - (self._lengths == "packed")), *ids)

    def _texts(self, record: Record) -> list[np.ndarray]:
        """Ids of transcript and caption; none where there is none, or it is not wanted."""
        caption = record.caption if self._caption_share > 0 else None
        ids = self._text_ids
        return [np.asarray(ids(text) if ids and text else [], np.int32) for text in (record.text, caption)]

    def _plan_rows(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(utterances in the order of rows, where each row begins among them); one each, unless joined or packed."""
        if self._lengths not in ("joined", "packed"):
            return np.arange(len(samples)), np.arange(len(samples) + 1)
        sizes, room = samples, self._max_samples
        if self._lengths == "packed":  # in code frames, the free one behind each included: the last needs none
            sizes, room = sizes // FRAME_SAMPLES + 2, room // FRAME_SAMPLES + 1
        # Much text in little audio takes the share of the row that its ids take of max_text: no row has too many.
        ids = np.maximum(self._utterances.transcript_ids, self._utterances.caption_ids)
        sizes = np.maximum(sizes, -(-ids * room // max(self._max_text, 1)))
        plan = packing.plan_rows(np.stack([sizes, np.zeros_like(sizes)], axis=1), room, seed=self._seed)
        return plan.example, plan.offsets

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
        return len(self._utterances)

    @property
    def num_rows(self) -> int:
        """Rows that hold each of them once."""
        return len(self._row_offsets) - 1

    def steps_per_pass(self) -> int:
        """Steps after which every utterance has come at least once."""
        return -(-self.num_rows // self._batch_size)

    def token_counts(self, step: int) -> tuple[int, int]:
        """(text ids, patches of 160 ms of audio) in the global batch of a step, with lengths from the manifest."""
        text = samples = 0
        for number in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, utterances = self._numbers(number)
            for one in utterances:
                samples += self._utterances.samples_of(one)
                text += self._utterances.ids_of(one)[self._kind(one, epoch)]
        return text, round(samples / PATCH_SAMPLES)

    def _wave(self, number: int) -> np.ndarray:
        """int16 samples of an utterance, from memory or disk."""
        with self._lock:
            if number in self._cache:
                self._cache.move_to_end(number)
                return self._cache[number]
        record = self._utterances.record(number)
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

    def _numbers(self, number: int) -> tuple[int, list[int]]:
        """(epoch, utterances) of a row of the endless list; none behind the end of a single pass."""
        epoch, place = divmod(number, self.num_rows)
        if epoch and not self._repeat:
            return epoch, []
        if self._shuffle:
            place = int(permute(np.asarray(place), self.num_rows, key_of(self._seed, epoch)))
        return epoch, self._members[slice(*self._row_offsets[place : place + 2])].tolist()

    def _row(self, number: int) -> list[Utterance]:
        """What a row of the endless list is filled with."""
        epoch, numbers = self._numbers(number)
        found = []
        for one in numbers:
            kind = self._kind(one, epoch)
            # Packed utterances have the room that was planned, should a file be longer than its manifest says.
            size = self._utterances.samples_of(one) if self._lengths == "packed" else None
            has_text = self._utterances.ids_of(one)[kind] > 0
            text = self._texts(self._utterances.record(one))[kind] if has_text else _NO_TEXT
            found.append(Utterance(self._wave(one)[:size], text, kind))
        if self._lengths != "crop" or not found or len(found[0].wave) <= self._max_samples:
            return found
        room = len(found[0].wave) - self._max_samples + 1
        start = key_of(self._seed, epoch, numbers[0], 1) % room
        return [Utterance(found[0].wave[start : start + self._max_samples], _NO_TEXT)]

    def _kind(self, number: int, epoch: int) -> int:
        """Which text of an utterance an epoch asks for."""
        transcript, caption = self._utterances.ids_of(number)
        if not caption or not transcript:
            return int(caption > 0)
        return int(key_of(self._seed, epoch, number, 2) % 2**20 < self._caption_share * 2**20)

    def batch(self, step: int) -> Batch:
        """This host's rows of a step.

        Returns:
            waveform float32 [B, S] at 24 kHz (zero where there is nothing), text int32 [B, L] (likewise), and

            * one sequence a row: num_samples int32 [B], text_length int32 [B];
            * packed, U = `max_utterances`: starts int32 [B, U] in samples, num_samples int32 [B, U] (0 = none),
                text_segments int32 [B, L]: 1 + place of the utterance that the text belongs to, 0 = nothing.

            With captions or packed also text_kind int32 [B, U] (U = 1 if not packed), see `TEXT_KINDS`.
        """
        count = len(self._host_rows)
        batch: Batch = {
            "waveform": np.zeros((count, self._max_samples), np.float32),
            "text": np.zeros((count, self._max_text), np.int32),
        }
        packed = self._lengths == "packed"
        if packed:
            for name in ("starts", "num_samples", "text_kind"):
                batch[name] = np.zeros((count, self.max_utterances), np.int32)
            batch["text_segments"] = np.zeros((count, self._max_text), np.int32)
        else:
            batch |= {"num_samples": np.zeros(count, np.int32), "text_length": np.zeros(count, np.int32)}
            if self._caption_share:
                batch["text_kind"] = np.zeros((count, 1), np.int32)
        fill = _fill_packed if packed else _fill_joined
        numbers = (step * self._batch_size + self._host_rows).tolist()
        for line, utterances in enumerate(self._pool.map(self._row, numbers)):
            if utterances:
                fill({name: values[line, ...] for name, values in batch.items()}, utterances)
        return batch

    @property
    def max_utterances(self) -> int:
        """Utterances of the fullest row."""
        return int(np.diff(self._row_offsets).max())


def _fill_joined(row: Batch, utterances: list[Utterance]) -> None:
    """Lays utterances one after the other into a row, as one sequence."""
    wave = np.concatenate([one.wave for one in utterances])[: len(row["waveform"])]
    text = np.concatenate([one.text for one in utterances])
    row["waveform"][: len(wave)] = wave.astype(np.float32) / 32767
    row["text"][: len(text)] = text
    row["num_samples"][...], row["text_length"][...] = len(wave), len(text)
    if "text_kind" in row:
        row["text_kind"][0] = utterances[0].kind


def _fill_packed(row: Batch, utterances: list[Utterance]) -> None:
    """Lays utterances into a row with a code frame free between them."""
    start = behind = 0
    for place, (wave, text, kind) in enumerate(utterances):
        row["waveform"][start : start + len(wave)] = wave.astype(np.float32) / 32767
        row["text"][behind : behind + len(text)] = text
        row["text_segments"][behind : behind + len(text)] = place + 1
        row["starts"][place], row["num_samples"][place], row["text_kind"][place] = start, len(wave), kind
        start, behind = start + (len(wave) // FRAME_SAMPLES + 2) * FRAME_SAMPLES, behind + len(text)
