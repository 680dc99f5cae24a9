"""Weights in the released layout: round trips, shards, every kind of wrong folder."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file

from mimo_jax.cli import UserError
from mimo_jax.interop import configs, hf, names
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.tokenizer import MimoAudioTokenizer

EMPTY = 287  # of the tiny language model


def tensors_of(folder: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def assert_same_tensors(folder: Path, original: Path) -> None:
    ours, theirs = tensors_of(folder), tensors_of(original)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].shape == tensor.shape, name
        assert ours[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000, 20_000, 1])
def test_round_trip_of_the_language_model(lm_tiny: Path, tmp_path: Path, max_shard_bytes: int):
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    hf.save_lm(tmp_path, config, params, max_shard_bytes=max_shard_bytes)
    assert_same_tensors(tmp_path, lm_tiny)
    shards = sorted(tmp_path.glob("*.safetensors"))
    if max_shard_bytes == 10**9:
        assert [path.name for path in shards] == ["model.safetensors"]
        assert shards[0].read_bytes() == (lm_tiny / "model.safetensors").read_bytes()
    else:
        total = sum(t.nbytes for t in tensors_of(lm_tiny).values())
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == total
        assert set(index["weight_map"]) == set(tensors_of(lm_tiny))
        assert len(shards) >= total / max(max_shard_bytes, 80_000)
        for path in shards:
            tensors = load_file(path)
            assert sum(t.nbytes for t in tensors.values()) <= max_shard_bytes or len(tensors) == 1
    again, read = hf.load_lm(tmp_path)  # the id of <|empty|> now stands in config.json
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, read, params)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 50_000])
def test_round_trip_of_the_tokenizer(tokenizer_tiny: Path, tmp_path: Path, max_shard_bytes: int):
    config, variables = hf.load_tokenizer(tokenizer_tiny)
    hf.save_tokenizer(tmp_path, config, variables, max_shard_bytes=max_shard_bytes)
    assert_same_tensors(tmp_path, tokenizer_tiny)
    if max_shard_bytes == 10**9:
        assert (tmp_path / "model.safetensors").read_bytes() == (tokenizer_tiny / "model.safetensors").read_bytes()
    assert hf.load_tokenizer(tmp_path)[0] == config


def test_configs_keep_what_the_released_files_say(lm_tiny: Path, tokenizer_tiny: Path, tmp_path: Path):
    original = configs.read_config(lm_tiny)
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    hf.save_lm(tmp_path, config, params, base_config=original)
    assert configs.read_config(tmp_path) == original | {"empty_token_id": EMPTY}
    config, variables = hf.load_tokenizer(tokenizer_tiny)
    hf.save_tokenizer(tmp_path, config, variables)
    written, original = configs.read_config(tmp_path), configs.read_config(tokenizer_tiny)
    assert {k: written[k] for k in original if k != "transformers_version"} == {
        k: v for k, v in original.items() if k != "transformers_version"
    }


VARIANTS = {
    "projected input": {"input_local_dim": 16},
    "three channels": {
        "audio_channels": 3,
        "delay_pattern": (0, 1, 2),
        "speech_vocab_size": (17, 9, 9),
        "speech_zeroemb_idx": (16, 8, 8),
    },
    "wide heads": {"head_dim": 8, "num_key_value_heads": 1},
}


def random_tree(shapes: dict, dtype: str | None = None) -> dict:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), dtype or s.dtype), shapes)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_variant_travels(lm_tiny: Path, tmp_path: Path, variant: str, dtype: str):
    base = configs.lm_config(configs.read_config(lm_tiny), lm_tiny, EMPTY)
    config = MimoAudioConfig(**{**vars(base), **VARIANTS[variant]})
    params = random_tree(hf.lm_shapes(config), dtype)
    hf.save_lm(tmp_path, config, params, max_shard_bytes=30_000)
    again, read = hf.load_lm(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert configs.read_config(tmp_path)["torch_dtype"] == dtype


@pytest.mark.parametrize("change", [{"ln_type": "RMSNorm"}, {"avg_pooler": 1}, {"codebook_size": 8}])
def test_every_tokenizer_variant_travels(tokenizer_tiny: Path, tmp_path: Path, change: dict):
    config = configs.tokenizer_config(configs.read_config(tokenizer_tiny) | change, tokenizer_tiny)
    variables = random_tree(hf.tokenizer_shapes(config))
    hf.save_tokenizer(tmp_path, config, variables)
    again, read = hf.load_tokenizer(tmp_path)
    assert again == config
    jax.tree.map(np.testing.assert_array_equal, read, variables)


def test_reading_into_shards_gives_the_same_arrays(lm_tiny: Path):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)

    def sharding(leaf: jax.Array) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size % 4 == 0]
        spec = [None] * leaf.ndim
        if axes:
            spec[axes[-1]] = "x"
        return NamedSharding(mesh, PartitionSpec(*spec))

    wanted = jax.tree.map(sharding, params)
    _, sharded = hf.load_lm(lm_tiny, empty_token_id=EMPTY, shardings=wanted)
    jax.tree.map(np.testing.assert_array_equal, sharded, params)
    assert sharded["llm"]["layers"]["up_proj"]["kernel"].addressable_shards[0].data.shape == (3, 64, 32)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, sharded, wanted)))


def test_loaded_trees_run(lm_tiny: Path, tokenizer_tiny: Path):
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    text, audio = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2, 4, 8), jnp.int32)
    logits, _ = jax.jit(MimoAudio(config).apply)({"params": params}, text, audio)
    assert logits.shape == (1, 2, config.vocab_size)
    tokenizer, variables = hf.load_tokenizer(tokenizer_tiny)
    wave, samples = jax.jit(MimoAudioTokenizer(tokenizer).apply)(variables, jnp.zeros((1, 16, 16)), jnp.array([16]))
    assert wave.shape == (1, int(samples[0]))


# --- the LLM alone ----------------------------------------------------------------------------------------------------


def test_llm_alone(lm_tiny: Path, tmp_path: Path):
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    hf.save_llm(tmp_path, config, params)
    theirs = tensors_of(lm_tiny)
    kept = {k for k in theirs if k.startswith("model.") or k == "lm_head.weight"}
    assert tensors_of(tmp_path).keys() == kept
    assert configs.kind_of(configs.read_config(tmp_path)) == "llm"
    read = hf.load_llm(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, read, {k: params[k] for k in ("embed_tokens", "llm", "lm_head")})


def test_llm_with_foreign_and_tied_tensors(lm_tiny: Path, tmp_path: Path):
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    hf.save_llm(tmp_path, config, params)
    tensors = tensors_of(tmp_path)
    del tensors["lm_head.weight"]
    tensors["model.mtp_layers.0.input_proj.weight"] = np.zeros((4, 4), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    values = configs.read_config(tmp_path)
    with pytest.raises(UserError, match=r"missing: lm_head.weight \[300, 64\]"):
        hf.load_llm(tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(values | {"tie_word_embeddings": True}))
    read = hf.load_llm(tmp_path, config)
    np.testing.assert_array_equal(read["lm_head"]["kernel"], params["embed_tokens"].T)
    (tmp_path / "config.json").write_text(json.dumps(values | {"hidden_size": 32}))
    with pytest.raises(UserError, match=r"hidden_size = 32 \(wanted 64\)"):
        hf.load_llm(tmp_path, config)


def test_llm_fields_from_transformers_5(lm_tiny: Path):
    values = configs.read_config(lm_tiny)
    del values["rope_theta"], values["head_dim"]
    values["rope_parameters"] = {"rope_type": "default", "rope_theta": 640000.0}
    shape = configs.llm_shape(values, lm_tiny)
    assert shape["rope_theta"] == 640000.0 and shape["head_dim"] == 16
    with pytest.raises(UserError, match="scaled rotary"):
        configs.llm_shape(values | {"rope_scaling": {"type": "yarn", "factor": 4}}, lm_tiny)


# --- wrong folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(lm_tiny: Path, tmp_path: Path):
    """A copy of the tiny language model whose tensors a test may change."""

    def make(change) -> Path:
        shutil.copy(lm_tiny / "config.json", tmp_path)
        tensors = tensors_of(lm_tiny)
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return make


def rename(tensors: dict, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            r"missing: model.layers.1.mlp.up_proj.weight \[128, 64\]",
        ),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), r"unknown: extra \[3\]"),
        (lambda t: rename(t, "lm_head.weight", "head.weight"), r"missing: lm_head.weight(.|\n)*unknown: head.weight"),
        (
            lambda t: t.update({"speech_group_downcast.weight": np.zeros((64, 64), np.float32)}),
            r"wrong shape: speech_group_downcast.weight is \[64, 64\], the configuration asks for \[64, 128\]",
        ),
        (
            lambda t: t.update({"model.layers.3.input_layernorm.weight": np.zeros(64, np.float32)}),
            r"unknown: model.layers.3.input_layernorm.weight",
        ),
    ],
)
def test_wrong_tensors_are_named(broken, change, message: str):
    with pytest.raises(UserError, match=message):
        hf.load_lm(broken(change), empty_token_id=EMPTY)


def test_folders_that_hold_no_model(lm_tiny: Path, tokenizer_tiny: Path, tmp_path: Path):
    with pytest.raises(UserError, match="config.json: missing"):
        hf.load_lm(tmp_path)
    shutil.copy(lm_tiny / "config.json", tmp_path)
    with pytest.raises(UserError, match="no usable text tokenizer"):
        hf.load_lm(tmp_path)
    with pytest.raises(UserError, match="no .safetensors file"):
        hf.load_lm(tmp_path, empty_token_id=EMPTY)
    (tmp_path / "model.safetensors").write_bytes((lm_tiny / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="model.safetensors: not a readable safetensors file"):
        hf.load_lm(tmp_path, empty_token_id=EMPTY)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="weights_only=True"):
        hf.load_lm(tmp_path, empty_token_id=EMPTY)
    with pytest.raises(UserError, match="no audio tokenizer"):
        hf.load_tokenizer(lm_tiny)
    with pytest.raises(UserError, match="config.json lacks vocab_size"):
        hf.load_lm(tokenizer_tiny, empty_token_id=0)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a JSON object"):
        hf.load_lm(tmp_path)


def test_incomplete_shards(lm_tiny: Path, tmp_path: Path):
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    hf.save_lm(tmp_path, config, params, max_shard_bytes=100_000)
    first, shard = sorted(tmp_path.glob("*.safetensors"))[:2]
    content = shard.read_bytes()
    shard.unlink()
    with pytest.raises(UserError, match=f"{shard.name}: missing"):
        hf.load_lm(tmp_path)
    shutil.copy(first, shard)
    with pytest.raises(UserError, match="is in another file"):
        hf.load_lm(tmp_path)
    shard.write_bytes(content)
    index = tmp_path / "model.safetensors.index.json"
    entries = json.loads(index.read_text())
    entries["weight_map"]["nowhere"] = shard.name
    index.write_text(json.dumps(entries))
    with pytest.raises(UserError, match="lists nowhere"):
        hf.load_lm(tmp_path)


def test_interrupted_export_is_not_taken_for_a_model(lm_tiny: Path, tmp_path: Path, monkeypatch):
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    hf.save_lm(tmp_path, config, params, max_shard_bytes=10**9)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace, calls = os.replace, []

    def die(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return replace(*args)

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        hf.save_lm(tmp_path, config, params, max_shard_bytes=100_000)
    with pytest.raises(UserError, match="config.json: missing"):
        hf.load_lm(tmp_path)
    monkeypatch.undo()
    hf.save_lm(tmp_path, config, params, max_shard_bytes=10**9)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert after == before


def test_parameters_must_belong_to_the_configuration(lm_tiny: Path, tmp_path: Path):
    config, params = hf.load_lm(lm_tiny, empty_token_id=EMPTY)
    less = {k: v for k, v in params.items() if k != "lm_head"}
    with pytest.raises(ValueError, match="lm_head/kernel is not in the parameters"):
        hf.save_lm(tmp_path, config, less)
    with pytest.raises(ValueError, match="no official name for more"):
        hf.save_lm(tmp_path, config, {**params, "more": jnp.zeros(3)})
    with pytest.raises(ValueError, match="embed_tokens"):
        hf.save_lm(tmp_path, config, {**params, "embed_tokens": jnp.zeros((3, 64))})
    assert not list(tmp_path.iterdir())


def test_the_table_is_one_to_one_at_full_size():
    for rows, shapes in (
        (names.lm_rows(MimoAudioConfig()), hf.lm_shapes(MimoAudioConfig())),
        (names.tokenizer_rows(hf.TokenizerConfig()), hf.tokenizer_shapes(hf.TokenizerConfig())),
    ):
        flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(shapes).items()}
        names.check_table(rows, flat)
        official = [tensor for row in rows for tensor in row.tensors]
        assert len(official) == len(set(official))
