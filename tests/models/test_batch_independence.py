"""A sequence gives the same alone and in any company: any batch, padding, packing or buffer of patches.

Codes are equal. Floats agree to TOLERANCE of the array's maximum: a matrix product of another shape adds up its terms
in another order, and so do attention in blocks and softmax over more (invisible) keys. Measured: up to 2.1e-6
(code logits; hidden and waves 1e-6, features 5e-7).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_jax.models.mimo_audio import MimoAudio
from mimo_jax.models.tokenizer import MimoAudioTokenizer
from tests.models.test_lm_variants import lm_inputs, random_lm
from tests.models.tokenizer.test_variants import TOKENIZER_VARIANTS, random_tokenizer

TOLERANCE = 5e-6
EXAMPLES = settings(max_examples=20)


def assert_same(found, alone):
    assert found.shape == alone.shape
    assert np.abs(found - alone).max() <= TOLERANCE * np.abs(alone).max()


# --- audio tokenizer ------------------------------------------------------------------------------------------------

MEL_SIZES, CODE_SIZES = (1, 2, 17, 48), (1, 7, 12)
MEL_PADDED, CODE_PADDED = (48, 64), (12, 17)  # with these windows: below and above the change to blocks


def encode(module, mel, lengths):
    features, frames = module.encode_features(mel, lengths)
    return features, module.quantizer.encode(features, frames), frames


def decode(module, codes, lengths):
    hidden = module.quantizer.decode(codes, lengths)
    coarse, frames = module.decode_features(hidden, lengths)
    return coarse, frames, *module.decode(codes, lengths)


class Codec:
    """A tokenizer with windows everywhere, some sequences, and what each gives alone (of its own length, unpadded)."""

    def __init__(self, folder):
        (config, variables), reference = random_tokenizer(folder, TOKENIZER_VARIANTS["windows"])
        model, rng = MimoAudioTokenizer(config), np.random.default_rng(5)
        for name, method in (("encode", encode), ("decode", decode)):
            run = jax.jit(functools.partial(model.apply, method=method))
            setattr(self, name, lambda *inputs, run=run: jax.device_get(run(variables, *inputs)))
        self.mels = [rng.normal(size=(n, config.n_mels)).astype(np.float32) for n in MEL_SIZES]
        self.codes = [rng.integers(0, min(config.codebook_sizes), (n, config.num_quantizers)) for n in CODE_SIZES]
        self.codes = [codes.astype(np.int32) for codes in self.codes]
        self.encoded = [self.encode(mel[None], np.array([len(mel)])) for mel in self.mels]
        assert all(reference.codes(features[0])[1].min() > 1e-4 for features, _, _ in self.encoded)  # no near ties
        self.decoded = [self.decode(codes[None], np.array([len(codes)])) for codes in self.codes]


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return Codec(tmp_path_factory.mktemp("codec"))


def batch_of(arrays, size, garbage):
    batch = np.full((len(arrays), size, *arrays[0].shape[1:]), garbage, arrays[0].dtype)
    for row, array in zip(batch, arrays, strict=True):
        row[: len(array)] = array
    return batch, np.array([len(array) for array in arrays])


def three_of(sizes):
    return st.lists(st.sampled_from(range(len(sizes))), min_size=3, max_size=3)


@EXAMPLES
@given(three_of(MEL_SIZES), st.sampled_from(MEL_PADDED), st.sampled_from([0.0, -1e4, np.inf, np.nan]))
def test_encode(codec, chosen, size, garbage):
    features, codes, frames = codec.encode(*batch_of([codec.mels[i] for i in chosen], size, garbage))
    for b, i in enumerate(chosen):
        alone, alone_codes, count = (x[0] for x in codec.encoded[i])
        assert frames[b] == count
        assert_same(features[b, :count], alone)
        np.testing.assert_array_equal(codes[b, :count], alone_codes)
        assert not np.any(features[b, count:]) and not np.any(codes[b, count:])


@EXAMPLES
@given(three_of(CODE_SIZES), st.sampled_from(CODE_PADDED), st.sampled_from([0, 3, -1, 10**6]))
def test_decode(codec, chosen, size, garbage):
    coarse, frames, waves, samples = codec.decode(*batch_of([codec.codes[i] for i in chosen], size, garbage))
    for b, i in enumerate(chosen):
        alone, count, wave, length = (x[0] for x in codec.decoded[i])
        assert frames[b] == count and samples[b] == length
        assert_same(coarse[b, :count], alone)
        assert_same(waves[b, :length], wave)
        assert not np.any(coarse[b, count:]) and not np.any(waves[b, length:])


# --- language model ---------------------------------------------------------------------------------------------------

SIZES, ROWS, LENGTH, SLOTS = (1, 4, 7, 12), 2, 18, 24


def run_packed(module, text, audio, positions, segments, codes, patch_index, drivers):
    """Dense and gathered embedding, hidden, text logits, local hidden, code logits of the gathered patches.

    audio [B, T, G, C], codes [N, G, C], patch_index [B, T] into them; drivers [N]: position (of B * T) before each.
    """
    embedded = module.embed(text, audio)
    gathered = module.embed_gathered(text, codes, patch_index)
    hidden, _ = module.backbone(embedded, positions, segments)
    local = module.local_hidden(hidden)
    driving = local.reshape(-1, local.shape[-1])[drivers]
    return (embedded, gathered, hidden, module.text_logits(hidden), local), module.patch_logits(driving, codes)


class Lm:
    """A language model, some sequences, and what each gives alone: no padding, every patch in the buffer once."""

    def __init__(self, folder):
        (self.config, params), _ = random_lm(folder, {"delay_pattern": "0-2-1", "input_local_dim": 8})
        run = jax.jit(functools.partial(MimoAudio(self.config).apply, method=run_packed))
        self.run = lambda *inputs: jax.device_get(run({"params": params}, *inputs))
        rng = np.random.default_rng(6)
        self.sequences = [tuple(x[0, :n] for x in lm_inputs(self.config, rng, (2, max(n, 2)))) for n in SIZES]
        self.alone = []
        for text, audio in self.sequences:
            time = np.arange(len(text))
            patch_index = np.where(text == self.config.empty_token_id, time, len(text))
            drivers = np.maximum(time - 1, 0)  # the patch at 0 has no driving position
            segments = np.ones((1, len(text)), int)
            self.alone.append(
                self.run(text[None], audio[None], time[None], segments, audio, patch_index[None], drivers)
            )


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return Lm(tmp_path_factory.mktemp("lm"))


def placed(order, gaps):
    """(sequence, row, start) of the sequences that find room in the rows, with gaps before them."""
    row, end = 0, 0
    for i, gap in zip(order, gaps, strict=True):
        if end + gap + SIZES[i] > LENGTH and row + 1 < ROWS:
            row, end = row + 1, 0
        if end + gap + SIZES[i] <= LENGTH:
            yield i, row, end + gap
            end += gap + SIZES[i]


@EXAMPLES
@given(
    st.permutations(range(len(SIZES))),
    st.lists(st.integers(0, 4), min_size=len(SIZES), max_size=len(SIZES)),
    st.integers(0, 2**31),
)
def test_packing(lm, order, gaps, seed):
    rng = np.random.default_rng(seed)
    text, audio = lm_inputs(lm.config, rng, (ROWS, LENGTH))  # garbage where no sequence comes to lie
    positions, segments = rng.integers(0, 99, text.shape), np.zeros(text.shape, int)
    codes = rng.integers(0, 5, (SLOTS, *audio.shape[2:])).astype(np.int32)
    patch_index, drivers = np.full(text.shape, SLOTS), rng.integers(0, text.size, SLOTS)
    places, free = list(placed(order, gaps)), iter(rng.permutation(SLOTS))
    names, patches = rng.permutation(np.arange(1, 9)), []
    for i, row, start in places:
        where, n = slice(start, start + SIZES[i]), SIZES[i]
        text[row, where], audio[row, where] = lm.sequences[i]
        positions[row, where], segments[row, where] = np.arange(n), names[i]
        for t in np.flatnonzero(text[row, where] == lm.config.empty_token_id):
            slot = next(free)
            codes[slot], patch_index[row, start + t] = audio[row, start + t], slot
            if t:
                drivers[slot] = row * LENGTH + start + t - 1
                patches.append((i, t, slot))
    found, logits = lm.run(text, audio, positions, segments, codes, patch_index, drivers)
    assert len(places) > 1
    for i, row, start in places:
        where = slice(start, start + SIZES[i])
        for array, alone in zip(found, lm.alone[i][0], strict=True):
            assert_same(array[row, where], alone[0])
        assert_same(found[1][row, where], lm.alone[i][0][0][0])  # gathered as dense
    for i, t, slot in patches:
        for array, alone in zip(logits, lm.alone[i][1], strict=True):
            assert_same(array[slot], alone[t])


def test_rows_of_a_batch(lm):
    """Without segments: right padding is invisible to a causal model, whatever lies in it."""
    rng = np.random.default_rng(7)
    text, audio = lm_inputs(lm.config, rng, (ROWS, LENGTH))
    text[0, : SIZES[-1]], audio[0, : SIZES[-1]] = lm.sequences[-1]
    text[1, : SIZES[2]], audio[1, : SIZES[2]] = lm.sequences[2]
    rest = audio.reshape(-1, *audio.shape[2:])[:SLOTS], np.full(text.shape, SLOTS), np.zeros(SLOTS, int)
    found, _ = lm.run(text, audio, jnp.arange(LENGTH)[None], None, *rest)
    for row, i in enumerate((-1, 2)):
        for k in (0, 2, 3, 4):
            assert_same(found[k][row, : SIZES[i]], lm.alone[i][0][k][0])
