"""Generation against the reference's greedy generations (golden/lm_tiny) and against the engine's own promises."""

import json

import jax
import numpy as np
import pytest

from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Request
from mimo_jax.inference.sampling import Sampling
from mimo_jax.models.mimo_audio import MimoAudio
from mimo_jax.parallel.mesh import Hardware
from tests.models.released import grid_arrays, load

CASES = ("gen_text", "gen_audio", "gen_stop", "gen_minlen")
SAMPLED = Sampling(True, 0.9, None, 0.95)


class Fixture:
    def __init__(self, folder):
        self.config, self.params = load(folder)
        self.inputs, self.outputs = dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))
        self.run = json.loads((folder / "run.json").read_text())
        # One number of rows, one number of positions per dispatch: compiling is most of what these tests do.
        self.engine = Engine(self.config, self.params, max_batch=8, least_rows=8, positions=8)

    def request(self, case, **changes):
        text, audio = grid_arrays(self.inputs["prompt_audio" if case == "gen_audio" else "prompt_text"], 4)
        options = self.run.get(case, {})
        values = {
            "max_new": options.get("max_new", self.run["max_new"]),
            "min_new": options.get("min_new", 0),
            "stop_tokens": tuple(options.get("stop_tokens", ())),
        }
        return Request(text, audio, **{**values, **changes})

    def check(self, case, result):
        grid = self.outputs[f"{case}.new"]
        np.testing.assert_array_equal(result.text, grid[0, ::4])
        codes = grid[1:].reshape(8, -1, 4).transpose(1, 2, 0)[result.text == self.config.empty_token_id]
        np.testing.assert_array_equal(result.codes, codes)
        assert result.stop_reason == ("stop" if case == "gen_stop" else "length")

    def random_request(self, number, **options):
        rng = np.random.default_rng(number)
        length = int(rng.integers(1, 40))
        text = rng.integers(0, 280, length).astype(np.int32)
        text[rng.random(length) < 0.5] = self.config.empty_token_id
        audio = rng.integers(0, 8, (length, 4, 8)).astype(np.int32)
        values = {
            "text_sampling": SAMPLED,
            "audio_sampling": SAMPLED,
            "seed": number,
            "max_new": int(rng.integers(1, 24)),
        }
        return Request(text, audio, **{**values, **options})


@pytest.fixture(scope="module")
def tiny(lm_tiny):
    return Fixture(lm_tiny)


def same(a, b):
    np.testing.assert_array_equal(a.text, b.text)
    np.testing.assert_array_equal(a.codes, b.codes)
    assert a.stop_reason == b.stop_reason


@pytest.mark.parametrize("case", CASES)
def test_greedy_equals_the_reference_alone(tiny, case):
    tiny.check(case, Engine(tiny.config, tiny.params).generate([tiny.request(case)])[0])


def test_greedy_equals_the_reference_in_any_batch(tiny):
    neighbours = [tiny.random_request(seed) for seed in range(4)]
    requests = [neighbours[0], *map(tiny.request, CASES), *neighbours[1:]]
    results = tiny.engine.generate(requests)
    for case, result in zip(CASES, results[1:5], strict=True):
        tiny.check(case, result)
    for case, result in zip(CASES[::-1], tiny.engine.generate([*map(tiny.request, CASES[::-1])]), strict=True):
        tiny.check(case, result)


def test_generation_equals_the_whole_forward_pass(tiny):
    """Greedy ids must be the best of the logits that one uncached pass over prompt and answer gives."""
    requests = [tiny.random_request(s, text_sampling=Sampling(False), audio_sampling=Sampling(False)) for s in range(8)]
    module, variables = MimoAudio(tiny.config), {"params": tiny.params}
    forward = jax.jit(lambda v, t, a: module.apply(v, t, a))
    width = 64
    for request, result in zip(requests, tiny.engine.generate(requests), strict=True):
        start, length = len(request.text), len(request.text) + len(result.text)
        text, audio = np.zeros((1, width), np.int32), np.zeros((1, width, 4, 8), np.int32)
        text[0, :length] = np.concatenate([request.text, result.text])
        audio[0, :start] = request.audio
        answer = np.flatnonzero(result.text == tiny.config.empty_token_id)
        audio[0, start + answer] = result.codes
        logits, _ = forward(variables, text, audio)
        np.testing.assert_array_equal(np.asarray(logits)[0, start - 1 : length - 1].argmax(-1), result.text)


def test_seeded_answers_do_not_depend_on_the_batch(tiny):
    requests = [tiny.random_request(seed) for seed in range(8)]
    together = tiny.engine.generate(requests)
    assert any(len(r.codes) for r in together)
    backwards = tiny.engine.generate(requests[::-1])[::-1]
    for a, b in zip(together, backwards, strict=True):
        same(a, b)
    for i in (0, 5):
        same(tiny.engine.generate([requests[i]])[0], together[i])
    other = tiny.engine.generate([tiny.random_request(3, max_new=20, seed=77)])[0]
    again = tiny.engine.generate([tiny.random_request(3, max_new=20)])[0]
    assert not np.array_equal(other.text, again.text)


def test_growing_slots_and_pieces_change_nothing(tiny):
    requests = [tiny.random_request(seed, max_new=60) for seed in range(4)]
    small = Engine(tiny.config, tiny.params, room=1, chunk=8, max_batch=2)
    assert any(len(r.text) + 60 > 64 for r in requests)
    for a, b in zip(tiny.engine.generate(requests), small.generate(requests), strict=True):
        same(a, b)


def test_devices_share_the_work(tiny):
    """Rows over two copies, heads over two devices each: the answers of one device, and no device holds it all."""
    mesh = Hardware(data=2, tensor=2).make_mesh(jax.devices()[:4])
    engine = Engine(tiny.config, tiny.params, mesh=mesh, max_batch=4, room=1)
    for case, result in zip(CASES, engine.generate([*map(tiny.request, CASES)]), strict=True):
        tiny.check(case, result)
    tiny.check("gen_audio", engine.generate([tiny.request("gen_audio")])[0])
    requests = [tiny.random_request(seed, max_new=70) for seed in range(3)]  # more slots than at the start
    for a, b in zip(tiny.engine.generate(requests), engine.generate(requests), strict=True):
        same(a, b)
    batcher = engine.batcher()
    for request in requests:
        batcher.submit(request)
    batcher.turn()
    keys = batcher._state.caches[0][0]
    assert keys.sharding.shard_shape(keys.shape) == (keys.shape[0] // 2, keys.shape[1] // 2, *keys.shape[2:])
    weights = jax.tree.leaves(engine._params["llm"]["layers"][0])
    assert any(w.sharding.shard_shape(w.shape) != w.shape for w in weights)


def test_limits(tiny):
    plain = tiny.request("gen_text")
    full = tiny.engine.generate([plain])[0].text
    assert len(tiny.engine.generate([tiny.request("gen_text", max_new=3)])[0].text) == 3
    short = Engine(tiny.config, tiny.params, max_positions=len(plain.text) + 4)
    np.testing.assert_array_equal(short.generate([plain])[0].text, full[:4])
    # The stop token would be the fourth; it may come as the fourth when three must come before, not when four must.
    stop = (int(full[3]),)
    three, four = tiny.engine.generate(
        [tiny.request("gen_text", stop_tokens=stop, min_new=n, max_new=8) for n in (3, 4)]
    )
    assert three.stop_reason == "stop" and len(three.text) == 4
    assert len(four.text) > 4 and stop[0] not in four.text[:4]
    forced = tiny.engine.generate([tiny.request("gen_text", forced_end=291, max_new=5)])[0]
    np.testing.assert_array_equal(forced.text, [*full[:4], 291])
    assert forced.stop_reason == "length"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text": np.zeros(0, np.int32), "audio": np.zeros((0, 4, 8), np.int32)}, "empty prompt"),
        ({"text": np.full(3, 300), "audio": np.zeros((3, 4, 8), np.int32)}, "vocabulary is 0..299"),
        ({"text": np.zeros(3, np.int32), "audio": np.zeros((2, 4, 8), np.int32)}, "audio of the prompt has shape"),
        ({"text": np.zeros(9000, np.int32), "audio": np.zeros((9000, 4, 8), np.int32)}, "9000 positions"),
        ({"max_new": 0}, "max_new = 0"),
    ],
)
def test_bad_requests_are_named(tiny, changes, message):
    plain = tiny.request("gen_text")
    request = Request(**{"text": plain.text, "audio": plain.audio, **changes})
    with pytest.raises(ValueError, match=f"request 1: .*{message}"):
        tiny.engine.generate([plain, request])


def test_no_requests(tiny):
    assert tiny.engine.generate([]) == []
