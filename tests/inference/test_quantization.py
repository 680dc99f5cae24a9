"""Weights of 8 bits: small errors, and the kernels never lie whole in memory."""

import dataclasses

import jax
import numpy as np
import pytest

from mimo_jax.cli import UserError
from mimo_jax.inference import programs, quantization
from mimo_jax.inference.engine import Engine
from mimo_jax.interop import hf
from mimo_jax.models.mimo_audio import MimoAudio
from tests.inference.test_engine import Fixture

qwix = pytest.importorskip("qwix", reason="weights of 8 bits need the extra int8")


@pytest.fixture(scope="module")
def tiny(lm_tiny):
    return Fixture(lm_tiny)


def is_quantized(x):
    return isinstance(x, qwix.QArray)


def test_kernels_are_kept_in_8_bits(tiny):
    engine = Engine(tiny.config, tiny.params, weights="int8")
    flat = jax.tree_util.tree_flatten_with_path(engine._params, is_leaf=is_quantized)[0]
    kept = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in flat}
    kernels = {name for name in kept if name.startswith(("llm/layers", "lm_head")) and name.endswith("/kernel")}
    assert {name for name, x in kept.items() if is_quantized(x)} == kernels and len(kernels) == 7 * 3 + 1
    whole = tiny.params["lm_head"]["kernel"]
    error = np.abs(np.asarray(qwix.dequantize(kept["lm_head/kernel"])) - whole)
    assert (error <= np.abs(whole).max(0) / 127 * 0.5001).all() and error.max() > 0


def test_answers_are_nearly_those_of_full_weights(tiny):
    """Greedy answers of both agree as far as the logits' errors of a percent or two let them."""
    engine = Engine(tiny.config, tiny.params, weights="int8")
    request = tiny.request("gen_audio")
    result = engine.generate([request])[0]
    assert len(result.text) == len(tiny.engine.generate([request])[0].text)
    text, audio = request.text[None], request.audio[None]
    module = MimoAudio(tiny.config)
    logits = jax.jit(lambda p: module.apply({"params": p}, text, audio)[0])
    full = np.asarray(logits(tiny.params))
    rounded = jax.tree.map(lambda x: qwix.dequantize(x) if is_quantized(x) else x, engine._params, is_leaf=is_quantized)
    for name in ("llm", "patch_encoder", "patch_decoder"):
        rounded[name]["layers"] = jax.tree.map(lambda *xs: np.stack(xs), *rounded[name]["layers"])
    near = np.asarray(logits(rounded))
    assert 0 < np.abs(near - full).max() < 0.05 * np.abs(full).max()
    assert result.text[0] == near[0, -1].argmax()


def test_no_kernel_is_kept_whole(tiny):
    """The loop over positions carries the 8 bits: XLA would like to compute whole kernels once, before it."""
    config = dataclasses.replace(tiny.config, intermediate_size=320, num_hidden_layers=1)
    params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), hf.lm_shapes(config))
    engine = Engine(config, params, weights="int8")
    state = engine._programs.empty_state(1, 64)
    compiled = programs.decode.lower(
        engine._programs, engine._params, state, 4, np.int32(4), np.bool_(False), np.zeros(len(state.done), np.int32)
    ).compile()
    carried = [line.split(" while(")[0] for line in compiled.as_text().splitlines() if " while(" in line]
    assert any("s8[64,320]" in shapes for shapes in carried)
    assert not any("f32[64,320]" in shapes for shapes in carried)


def test_names_are_checked(tiny):
    with pytest.raises(UserError, match="weights = 'int4'"):
        Engine(tiny.config, tiny.params, weights="int4")
    quantization.check("int8")
