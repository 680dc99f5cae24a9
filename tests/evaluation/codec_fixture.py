"""Speech with known texts, and a codec whose quality is known to grow: k-means codebooks on short frames."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from sklearn.cluster import KMeans

from mimo_jax.data.audio import resample
from mimo_jax.data.corpus.espeak import SAMPLE_RATE, synthesize
from mimo_jax.evaluation.random_codebooks import random_codebooks
from mimo_jax.models.tokenizer import rvq

RATE = 24_000
FRAME = 48  # 2 ms: short enough for few vectors to describe it
SENTENCES = (
    "open the kitchen door",
    "seven boats went down the river",
    "turn the light off please",
    "it was a bright cold day in april",
)


@functools.cache
def speech(text: str, voice: str = "en-us", rate: int = 175) -> np.ndarray:
    """Speech float32 [samples] at `RATE`, peak 0.5, at most 1 s."""
    wave = resample(synthesize(text, voice=voice, rate=rate, pitch=50), SAMPLE_RATE, RATE)
    return (wave * np.float32(0.5 / np.abs(wave).max()))[:RATE]


def kmeans_codebooks(x: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Residual codebooks of x [N, D], learned on it."""
    books = []
    for size in sizes:
        found = KMeans(size, n_init=1, max_iter=20, random_state=0).fit(x)
        books.append(found.cluster_centers_.astype(np.float32))
        x = x - books[-1][found.predict(x)]
    return books


class FrameCodec:
    """Residual vector quantisation of plain frames of samples, as a `TokenizerSystem`."""

    def __init__(self, books: list[np.ndarray]):
        self.books = books
        self.codebook_sizes = tuple(len(book) for book in books)
        self.frame_rate, self.sample_rate = RATE / FRAME, RATE

    @classmethod
    def trained(cls, waves, sizes=(64, 64, 32, 32)) -> FrameCodec:
        return cls(kmeans_codebooks(np.concatenate([frames(wave) for wave in waves]), sizes))

    def encode(self, waves):
        tree = {f"layers_{i}": {"embed": jnp.asarray(book)} for i, book in enumerate(self.books)}
        return [np.asarray(rvq.encode(tree, jnp.asarray(frames(wave))[None], len(self.books))[0]) for wave in waves]

    def decode(self, codes):
        return [np.sum([self.books[i][c[:, i]] for i in range(c.shape[1])], axis=0).reshape(-1) for c in codes]

    def with_random_codebooks(self, waves, seed):
        x = np.concatenate([frames(wave) for wave in waves])
        return FrameCodec(random_codebooks(x, self.codebook_sizes, seed))


def spectrum(wave: np.ndarray, sample_rate: int) -> np.ndarray:
    """What stands for a speaker embedding, [4000]."""
    assert sample_rate == RATE
    return np.abs(np.fft.rfft(wave, RATE))[:4000]


def frames(wave: np.ndarray) -> np.ndarray:
    """float32 [ceil(samples / FRAME), FRAME]."""
    return np.pad(wave, (0, -len(wave) % FRAME)).reshape(-1, FRAME).astype(np.float32)
