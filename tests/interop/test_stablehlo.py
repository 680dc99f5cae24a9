"""The models as StableHLO: written for three platforms, reloaded, run, equal to the engine and the codec."""

import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from jax import export

from mimo_jax import convert
from mimo_jax.cli import UserError
from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Request
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.interop import hf, stablehlo

EMPTY = 287
PROMPT, SLOTS = 16, 32


@pytest.fixture(scope="module")
def lm(lm_tiny):
    return hf.load_lm(lm_tiny, empty_token_id=EMPTY)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_tiny):
    return hf.load_tokenizer(tokenizer_tiny)


@pytest.fixture(scope="module")
def file(lm_tiny, tokenizer_tiny, lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stablehlo")
    (folder / "lm").mkdir()
    values = json.loads((lm_tiny / "config.json").read_text()) | {"empty_token_id": EMPTY}
    (folder / "lm" / "config.json").write_text(json.dumps(values))  # no weights: shapes are enough
    arguments = ["export", "--stablehlo", f"--weights={folder / 'lm'}", f"--audio_tokenizer={tokenizer_tiny}"]
    sizes = ["--batch=2", "--seconds=0.1", "--codebooks=4", f"--prompt={PROMPT}", f"--slots={SLOTS}"]
    assert convert.main([*arguments, *sizes, f"--out={folder / 'programs.zip'}"]) == 0
    return folder / "programs.zip"


@pytest.fixture(scope="module")
def programs(file):
    return stablehlo.load(file)


def test_manifest(file, programs):
    manifest = stablehlo.read_manifest(file)
    assert set(programs) == set(manifest["programs"]) == {"encode", "decode", "prefill", "decode_step"}
    for program in programs.values():
        assert program.platforms == ("cpu", "cuda", "tpu")
    assert manifest["programs"]["encode"]["arguments"] == ["float32[2, 2400]", "int32[2]"]
    assert manifest["programs"]["prefill"]["results"][2] == ["float32[2, 2, 32, 16]"] * 2
    assert manifest["models"]["lm"]["hidden_size"] == 64


def test_encode_and_decode(programs, tokenizer):
    config, variables = tokenizer
    rng = np.random.default_rng(0)
    waves = [rng.normal(size=size).astype(np.float32) * 0.3 for size in (2000, 1111)]
    padded = np.full((2, 2400), 9.0, np.float32)
    for row, wave in zip(padded, waves, strict=True):
        row[: len(wave)] = wave
    codes, frames = programs["encode"].call(variables, padded, np.array([2000, 1111], np.int32))
    codec = AudioCodec(config, variables)
    expected = codec.encode(waves, 4)
    for row, count, code in zip(np.asarray(codes), np.asarray(frames), expected, strict=True):
        np.testing.assert_array_equal(row[:count], code)
    made, samples = programs["decode"].call(variables, codes, frames)
    for row, count, wave in zip(np.asarray(made), np.asarray(samples), codec.decode(expected), strict=True):
        np.testing.assert_allclose(row[:count], wave, rtol=0, atol=7e-5)


SAMPLED = Sampling(temperature=0.8, top_k=20, top_p=0.9)


@pytest.mark.parametrize("chosen", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_generation_is_the_engine_s(programs, lm, lm_tiny, chosen):
    config, params = lm
    grids = np.load(lm_tiny / "inputs.npz")
    steps, requests, lengths = 8, [], []
    text = np.zeros((2, PROMPT), np.int32)
    audio = np.zeros((2, PROMPT, config.group_size, config.audio_channels), np.int32)
    for row, name in enumerate(("prompt_text", "prompt_audio")):
        grid = grids[name].astype(np.int32)
        ids = grid[0, :: config.group_size]
        codes = grid[1:].reshape(config.audio_channels, -1, config.group_size).transpose(1, 2, 0)
        codes = np.where((ids == EMPTY)[:, None, None], codes, 0)
        lengths.append(len(ids) - row)  # of different lengths
        text[row, : lengths[row]], audio[row, : lengths[row]] = ids[: lengths[row]], codes[: lengths[row]]
        options = {"text_sampling": chosen, "audio_sampling": chosen, "seed": 5 + row, "max_new": steps}
        requests.append(Request(ids[: lengths[row]], codes[: lengths[row]], **options))
    expected = Engine(config, params).generate(requests)

    weights = stablehlo.inference_params(params)
    caches = programs["prefill"].call(weights, text, audio)
    step = jax.jit(programs["decode_step"].call, donate_argnums=1)
    sampling = {
        "do_sample": np.array([chosen.do_sample] * 2),
        "temperature": np.full(2, chosen.temperature or 1, np.float32),
        "top_k": np.full(2, chosen.top_k or 0, np.int32),
        "top_p": np.full(2, chosen.top_p or 0, np.float32),
    }
    forbidden = np.zeros((2, config.vocab_size), bool)
    position = np.array(lengths, np.int32) - 1
    newest = text[np.arange(2), position], audio[np.arange(2), position]
    texts, patches = [], []
    for _ in range(steps):
        *newest, logits, caches = step(
            weights, caches, *newest, position, forbidden, np.array([5, 6], np.uint32), sampling, sampling
        )
        position = position + 1
        texts.append(np.asarray(newest[0]))
        patches.append(np.asarray(newest[1]))
    assert logits.shape == (2, config.vocab_size)
    for row, result in enumerate(expected):
        ids = np.stack(texts)[:, row]
        np.testing.assert_array_equal(ids, result.text)
        np.testing.assert_array_equal(np.stack(patches)[:, row][ids == EMPTY], result.codes)
    assert sum(len(result.codes) for result in expected) > 0


def test_a_reader_needs_only_jax(file):
    script = """
import sys, zipfile
import jax, numpy as np
from jax import export
program = export.deserialize(bytearray(zipfile.ZipFile(sys.argv[1]).read("decode.bin")))
arguments = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), program.in_avals)
(variables, codes, frames), _ = jax.tree.unflatten(program.in_tree, arguments)
wave, samples = program.call(variables, codes, frames + 3)
print(wave.shape[0], int(samples[1]), [name for name in sys.modules if name.startswith("mimo_jax")])
"""
    done = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", str(3 * 64), "[]"]


def test_bad_files_and_sizes_are_named(file, lm, tokenizer, tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(b"no archive")
    with pytest.raises(UserError, match="x.zip: not a file of exported programs"):
        stablehlo.load(tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("manifest.json", json.dumps({"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        stablehlo.load(tmp_path / "y.zip")
    with pytest.raises(UserError, match="do not fit into slots = 8"):
        stablehlo.Shapes(prompt=9, slots=8)
    with pytest.raises(UserError, match="no programs"):
        stablehlo.save(tmp_path / "z.zip")
    with pytest.raises(UserError, match="codebooks = 9: this tokenizer has 1..4"):
        stablehlo.save(tmp_path / "z.zip", tokenizer=tokenizer[0], shapes=stablehlo.Shapes(codebooks=9))
    assert convert.main(["export", "--stablehlo", "--model_dir=x", "--out=z.zip"]) == 2
    assert "goes with --weights" in capsys.readouterr().err
    with pytest.raises(UserError, match="codebooks = 8: this tokenizer has 1..4"):
        stablehlo.save(tmp_path / "z.zip", lm=lm[0], tokenizer=tokenizer[0])
    assert not list(tmp_path.glob("z*"))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_bfloat16_for_one_platform(lm, tmp_path, platform):
    compute = stablehlo.Compute("bfloat16", "bfloat16")
    shapes = stablehlo.Shapes(prompt=4, slots=8)
    path = tmp_path / "p.zip"
    assert stablehlo.save(path, lm=lm[0], shapes=shapes, compute=compute, platforms=[platform]) == [
        "prefill",
        "decode_step",
    ]
    program = stablehlo.load(path)["prefill"]
    assert isinstance(program, export.Exported) and program.platforms == (platform,)
    assert {str(aval.dtype) for aval in program.out_avals} == {"bfloat16"}
