"""The engine's greedy answers are those of the same weights in PyTorch eager (`benchmarks/eager_torch.py`)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Request
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.interop import hf
from tests.models.released import grid_arrays, load

torch = pytest.importorskip("torch", reason="torch is not installed (MIMO_JAX_TORCH=none was set, or no extra 'dev')")
pytest.importorskip("transformers")
from benchmarks.eager_torch import EagerMimoAudio  # noqa: E402

NEW = 24


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products this small only wait for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def golden_model(lm_tiny):
    config, params = load(lm_tiny)
    return config, params, EagerMimoAudio.load(lm_tiny, config)


def random_prompts(config, rows, length):
    """Text ids [rows, length], half of them `<|empty|>`, and codes."""
    rng = np.random.default_rng(5)
    text = rng.integers(0, config.empty_token_id, (rows, length)).astype(np.int32)
    text[rng.random(text.shape) < 0.5] = config.empty_token_id
    shape = (rows, length, config.group_size)
    return text, np.stack([rng.integers(0, size - 1, shape) for size in config.speech_vocab_size], -1).astype(np.int32)


def assert_same_answers(config, params, eager, rows, length):
    text, audio = random_prompts(config, rows, length)
    ids, codes = eager.generate(text, audio, NEW)
    requests = [Request(t, a, max_new=NEW) for t, a in zip(text, audio, strict=True)]
    for row, result in enumerate(Engine(config, params).generate(requests)):
        np.testing.assert_array_equal(ids[row], result.text)
        np.testing.assert_array_equal(codes[row][ids[row] == config.empty_token_id], result.codes)
    spoken = ids == config.empty_token_id
    np.testing.assert_array_equal(codes[~spoken], np.broadcast_to(config.speech_zeroemb_idx, codes[~spoken].shape))
    assert 0.1 < spoken.mean() < 0.9 and len(np.unique(codes[spoken], axis=0)) > rows  # both kinds, and not one patch


@pytest.mark.parametrize("case, prompt", [("gen_text", "prompt_text"), ("gen_audio", "prompt_audio")])
def test_eager_gives_the_reference_numbers(golden_model, lm_tiny, case, prompt):
    config, _, eager = golden_model
    text, audio = grid_arrays(np.load(lm_tiny / "inputs.npz")[prompt], 4)
    grid = np.load(lm_tiny / "outputs.npz")[f"{case}.new"]
    ids, codes = eager.generate(text[None], audio[None], 10)
    np.testing.assert_array_equal(ids[0], grid[0, ::4])
    np.testing.assert_array_equal(codes[0], grid[1:].reshape(8, -1, 4).transpose(1, 2, 0))


def test_same_greedy_answers(golden_model):
    assert_same_answers(*golden_model, rows=4, length=9)


@pytest.mark.slow
def test_same_greedy_answers_of_another_shape(golden_model, tmp_path):
    """Widths of the patch models that differ, frames that see only earlier ones, codebooks in another order."""
    config = dataclasses.replace(
        golden_model[0],
        input_local_dim=48,
        input_full_attention=False,
        delay_pattern=(0, 0, 1, 1, 3, 2, 2, 3),
        num_hidden_layers=1,
        num_key_value_heads=1,
        local_layers=1,
    )
    rng = np.random.default_rng(1)

    def values(path, shape):
        return jnp.asarray((path[-1].key == "scale") + 0.3 * rng.normal(size=shape.shape), shape.dtype)

    params = jax.tree_util.tree_map_with_path(values, hf.lm_shapes(config))
    # Half of the answers' positions are to be speech.
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, config.empty_token_id].multiply(3.0)
    hf.save_lm(tmp_path, config, params)
    assert_same_answers(config, params, EagerMimoAudio.load(tmp_path, config), rows=3, length=5)


def test_the_stream_is_the_answer(golden_model):
    config, _, eager = golden_model
    text, audio = random_prompts(config, 2, 6)
    ids, codes = eager.generate(text, audio, 5)
    for position, (token, patch) in enumerate(eager.stream(text, audio, 5)):
        np.testing.assert_array_equal(token, ids[:, position])
        np.testing.assert_array_equal(patch, codes[:, position])


def test_eager_draws_from_what_the_filters_leave(golden_model):
    _, _, eager = golden_model
    probabilities = torch.tensor([0.4, 0.05, 0.3, 0.05, 0.2])
    logits = probabilities.log().repeat(20_000, 1)
    torch.manual_seed(0)

    def shares(forbidden=None, **sampling):
        token = eager.choose(logits, None if forbidden is None else torch.tensor([forbidden]), Sampling(**sampling))
        return np.bincount(token, minlength=5) / len(logits)

    near = {"atol": 0.015}
    np.testing.assert_allclose(shares(), probabilities, **near)
    hot = probabilities.numpy() ** 0.5
    np.testing.assert_allclose(shares(temperature=2.0), hot / hot.sum(), **near)
    np.testing.assert_allclose(shares(top_p=0.6), [4 / 7, 0, 3 / 7, 0, 0], **near)
    np.testing.assert_allclose(shares(top_k=3), [4 / 9, 0, 3 / 9, 0, 2 / 9], **near)
    np.testing.assert_allclose(shares(top_p=0.6, forbidden=0), [0, 0, 1, 0, 0], **near)
    np.testing.assert_allclose(shares(forbidden=2), [4 / 7, 0.05 / 0.7, 0, 0.05 / 0.7, 2 / 7], **near)
    assert (eager.choose(logits, torch.tensor([0]), GREEDY) == 2).all()
