"""seqio tasks and mixtures over a prepared folder: with `interop.t5x`, the only user of TensorFlow and seqio.

Every task format is registered as ``mimo_<format>`` and every mixture as ``mimo_<mixture>`` when this module is
imported; they read the record files of the folder named by `set_prepared` (or by ``MIMO_JAX_PREPARED``). For users of
seqio and t5x, and to compare with: training here reads the same files through `loader`.

    MIMO_JAX_PREPARED=DIR python -m mimo_jax.data.tasks      # lists features, tasks and mixtures

Rates are those of the mixture as declared, by tokens. seqio draws examples by them, not tokens, and knows no share of
text: its mixtures hold the loader's examples in other proportions.
"""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from mimo_jax.data.all_formats import formats
from mimo_jax.data.mixtures import MIXTURES
from mimo_jax.data.prepared import Prepared
from mimo_jax.data.records import from_bytes
from mimo_jax.data.sequence import Layout, expand_audio
from mimo_jax.data.text_tokenizer import TextTokenizer

PREFIX = "mimo_"
SPLITS = ("train", "validation", "test_voices")
_folder: str | None = os.environ.get("MIMO_JAX_PREPARED")


def set_prepared(folder: str | os.PathLike[str]) -> None:
    """Name the prepared folder that all tasks read."""
    global _folder
    _folder = os.fspath(folder)
    _prepared.cache_clear()


@functools.cache
def _prepared() -> Prepared:
    if _folder is None:
        raise ValueError("no prepared folder: call mimo_jax.data.tasks.set_prepared, or set MIMO_JAX_PREPARED")
    return Prepared(_folder)


def layout() -> Layout:
    """Layout of the prepared folder's sequences: its special tokens, empty codes, frames per patch."""
    return _prepared().layout


class PreparedVocabulary(seqio.Vocabulary):
    """The text tokenizer of the prepared folder as a seqio vocabulary."""

    def __init__(self) -> None:
        super().__init__(extra_ids=0)

    @functools.cached_property
    def _tokenizer(self) -> TextTokenizer:
        return TextTokenizer.load(_prepared().text_tokenizer_folder)

    @property
    def eos_id(self) -> int:
        """Id of ``<|endoftext|>``."""
        return self._tokenizer.special.end_of_text

    @property
    def bos_id(self) -> int | None:
        """There is none."""
        return None

    @property
    def unk_id(self) -> int | None:
        """Byte-level: nothing is unknown."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    def _encode(self, s: str) -> list[int]:
        return self._tokenizer.encode(s)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        def encode(text: bytes) -> np.ndarray:
            return np.asarray(self._encode(text.decode()), np.int32)

        ids = tf.numpy_function(encode, [s], tf.int32, stateful=False)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(lambda i: self._decode(i.tolist()).encode(), [ids], tf.string, stateful=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PreparedVocabulary)

    __hash__ = None  # type: ignore[assignment]


# What each feature holds, for people; `output_features` says the same to seqio.
FEATURES: Mapping[str, str] = {
    "text": "int32 [n], text ids; <|empty|> at audio positions",
    "audio": "int32 [n, G, C], codes of each position's patch; the codebooks' empty ids at text positions",
    "loss": "int32 [n], 1 where the position is a target",
}


def output_features() -> Mapping[str, seqio.Feature]:
    """Features of every task; see `FEATURES`."""
    codes = seqio.PassThroughVocabulary(size=1025)
    return {
        "text": seqio.Feature(PreparedVocabulary(), add_eos=False, dtype=tf.int32),
        "audio": seqio.Feature(codes, add_eos=False, dtype=tf.int32, rank=3),
        "loss": seqio.Feature(seqio.PassThroughVocabulary(size=2), add_eos=False, dtype=tf.int32),
    }


def _read(task: str, split: str, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    example = from_bytes(_reader(_folder, task, split).read([int(number)])[0])
    audio = expand_audio(example.text, example.codes, _prepared().layout)
    return example.text.astype(np.int32), audio, example.loss.astype(np.int32)


@functools.cache
def _reader(folder: str | None, task: str, split: str):  # noqa: ANN202
    return _prepared().reader(task, split)


def _dataset(task: str, split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Examples of a task in order; with ``shuffle_files`` in an order drawn from ``seed``."""
    count = _prepared().tasks(split).get(task, 0)
    order = np.arange(count, dtype=np.int64)
    if shuffle_files:
        order = np.random.Generator(np.random.Philox(seed or 0)).permutation(order)
    layout = _prepared().layout

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        read = functools.partial(_read, task, split)
        # Stateless, so that a tf.data iterator over it can be checkpointed.
        text, audio, loss = tf.numpy_function(read, [number], [tf.int32] * 3, stateful=False)
        text.set_shape([None])
        audio.set_shape([None, layout.group_size, layout.channels])
        loss.set_shape([None])
        return {"text": text, "audio": audio, "loss": loss}

    return tf.data.Dataset.from_tensor_slices(order).map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def register() -> None:
    """Register every task and mixture; done on import, once."""
    for name in formats():
        source = seqio.FunctionDataSource(dataset_fn=functools.partial(_dataset, name), splits=SPLITS)
        seqio.TaskRegistry.add(PREFIX + name, source=source, preprocessors=[], output_features=output_features())
    for name, mixture in MIXTURES.items():
        rates = [(PREFIX + task, rate) for task, rate in mixture.rates.items()]
        seqio.MixtureRegistry.add(PREFIX + name, rates)


def listing() -> str:
    """One line per feature, task and mixture, by seqio's own calls."""
    lines = [f"feature {name:40s} {meaning}" for name, meaning in FEATURES.items()]
    lines += [
        f"task    {name:40s} {formats()[name.removeprefix(PREFIX)].summary}" for name in _ours(seqio.TaskRegistry)
    ]
    for name in _ours(seqio.MixtureRegistry):
        mixture = seqio.get_mixture_or_task(name)
        shares = ", ".join(f"{t.name.removeprefix(PREFIX)} {mixture.get_rate(t):g}" for t in mixture.tasks)
        lines.append(f"mixture {name:40s} {shares}")
    return "\n".join(lines)


def _ours(registry: Any) -> list[str]:
    return [name for name in registry.names() if name.startswith(PREFIX)]


if __name__ == "__main__":
    from mimo_jax.data import tasks

    print(tasks.listing())
else:
    register()
