"""`transformers` and this package compute the same from each other's folders of a Qwen2-layout LLM."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax import convert
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Request
from mimo_jax.interop import configs, hf
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch", reason="torch is not installed (MIMO_JAX_TORCH=none was set, or no extra 'dev')")

EMPTY = 287  # <|empty|> of the tiny language model; text ids are below it
CLOSE = {"rtol": 0.0, "atol": 1e-4}  # logits reach 6 to 16; float32 leaves 4e-5 between the two
LLM = ("embed_tokens", "llm", "lm_head")


@pytest.fixture(scope="module")
def tiny(lm_tiny: Path) -> tuple[MimoAudioConfig, dict]:
    return hf.load_lm(lm_tiny, empty_token_id=EMPTY)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, EMPTY, (3, 80)).astype(np.int32)


def in_transformers(folder: Path):
    """Qwen2ForCausalLM of a folder, every tensor of which has found its place."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model) is transformers.Qwen2ForCausalLM
    assert not any(info.values()), info
    return model.eval()


def their_logits(model, text: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.from_numpy(text.astype(np.int64))).logits.float().numpy()


def our_logits(config: MimoAudioConfig, params: dict, text: np.ndarray) -> np.ndarray:
    """Logits of the LLM alone; nothing else of the model needs to be in `params`."""

    def logits(model: MimoAudio, text: jax.Array) -> jax.Array:
        hidden, _ = model.backbone(model.embed_text(text), jnp.arange(text.shape[1])[None, :])
        return model.text_logits(hidden)

    llm = {part: params[part] for part in LLM}
    return np.asarray(jax.jit(lambda p, t: MimoAudio(config).apply({"params": p}, t, method=logits))(llm, text))


def random_params(config: MimoAudioConfig) -> dict:
    """Random arrays for every parameter, biases and norms too, which gives logits of some size."""
    rng = np.random.default_rng(1)

    def values(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
        is_norm = path[-1].key == "scale"
        return jnp.asarray(is_norm + 0.2 * rng.normal(size=shape.shape), shape.dtype)

    return jax.tree_util.tree_map_with_path(values, hf.lm_shapes(config))


# --- from here to transformers ----------------------------------------------------------------------------------------


def test_same_logits_of_the_whole_model(tiny, text: np.ndarray, tmp_path: Path):
    """Also where our model has its audio half: at text positions it adds nothing."""
    config, params = tiny
    hf.save_llm(tmp_path, config, params)
    theirs = their_logits(in_transformers(tmp_path), text)
    audio = jnp.zeros((*text.shape, config.group_size, config.audio_channels), jnp.int32)
    whole, _ = jax.jit(MimoAudio(config).apply)({"params": params}, text, audio)
    assert np.abs(theirs).max() > 9
    np.testing.assert_allclose(theirs, whole, **CLOSE)
    np.testing.assert_allclose(theirs, our_logits(config, params, text), **CLOSE)


@pytest.mark.parametrize("wrong", [{"rope_theta": 600000}, {"rms_norm_eps": 1e-3}, {"hidden_act": "gelu"}])
def test_the_comparison_sees_a_wrong_configuration(tiny, text: np.ndarray, tmp_path: Path, wrong: dict):
    config, params = tiny
    hf.save_llm(tmp_path, config, params)
    (tmp_path / "config.json").write_text(json.dumps(configs.read_config(tmp_path) | wrong))
    difference = np.abs(their_logits(in_transformers(tmp_path), text) - our_logits(config, params, text)).max()
    assert difference > 10 * CLOSE["atol"]


VARIANTS: dict[str, dict] = {
    "a key head per query head": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "narrow heads": {"head_dim": 8},
    "wide heads": {"head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 3},
    "other constants": {"rope_theta": 10000.0, "rms_norm_eps": 1e-2, "num_hidden_layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_logits_of_every_shape(tiny, text: np.ndarray, tmp_path: Path, variant: str):
    config = dataclasses.replace(tiny[0], **VARIANTS[variant])
    params = random_params(config)
    hf.save_llm(tmp_path, config, params)
    model = in_transformers(tmp_path)
    for name, value in VARIANTS[variant].items():
        found = model.config.rope_parameters["rope_theta"] if name == "rope_theta" else getattr(model.config, name)
        assert found == value, name
    np.testing.assert_allclose(their_logits(model, text), our_logits(config, params, text), **CLOSE)


def test_shards_of_the_command(tiny, text: np.ndarray, tmp_path: Path):
    config, params = tiny
    hf.save_lm(tmp_path / "lm", config, params)
    arguments = ["export", f"--weights={tmp_path / 'lm'}", f"--out={tmp_path / 'llm'}", "--llm_only"]
    assert convert.main([*arguments, "--max_shard_gb=0.0001"]) == 0
    assert len(list((tmp_path / "llm").glob("model-*.safetensors"))) > 3
    np.testing.assert_allclose(
        their_logits(in_transformers(tmp_path / "llm"), text), our_logits(config, params, text), **CLOSE
    )


def test_bfloat16_stays_bfloat16(tiny, text: np.ndarray, tmp_path: Path):
    config, params = tiny
    hf.save_llm(tmp_path, config, params, dtype="bfloat16")
    model = in_transformers(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), {part: params[part] for part in LLM})
    np.testing.assert_allclose(their_logits(model.float(), text), our_logits(config, rounded, text), **CLOSE)


def test_same_greedy_tokens(tiny, tmp_path: Path):
    config, params = tiny
    # Weights of nothing learnt choose <|empty|> now and then, which only our model can continue: its logit becomes 0.
    params = params | {"lm_head": {"kernel": params["lm_head"]["kernel"].at[:, EMPTY].set(0.0)}}
    hf.save_llm(tmp_path, config, params)
    model = in_transformers(tmp_path)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, EMPTY, length).astype(np.int32) for length in (1, 3, 8, 21, 40, 64)]
    no_audio = (config.group_size, config.audio_channels)
    requests = [Request(p, np.zeros((len(p), *no_audio), np.int32), max_new=40) for p in prompts]
    different = set()
    for prompt, answer in zip(prompts, Engine(config, params).generate(requests), strict=True):
        ids = torch.from_numpy(prompt[None].astype(np.int64))
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40, pad_token_id=0
        )[0, len(prompt) :].numpy()
        assert EMPTY not in answer.text
        np.testing.assert_array_equal(theirs, answer.text)
        assert len(answer.text) == 40
        different |= set(answer.text.tolist())
    assert len(different) > 20  # not one token over and over


def test_generation_ends_where_the_text_tokenizer_says(tiny, tmp_path: Path):
    config, params = tiny
    tokenizer = train_text_tokenizer(["open the door"], vocab_size=config.vocab_size)
    tokenizer.save(tmp_path / "text")
    hf.save_llm(tmp_path / "llm", config, params, text_tokenizer_dir=tmp_path / "text")
    model = in_transformers(tmp_path / "llm")
    ends = [tokenizer.token_id("<|endoftext|>"), tokenizer.token_id("<|im_end|>")]
    assert model.generation_config.eos_token_id == ends
    assert model.generation_config.pad_token_id == ends[0]
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path / "llm")("open the door", return_tensors="pt")[
        "input_ids"
    ]
    assert ids[0].tolist() == tokenizer.encode("open the door")
    with torch.no_grad():  # a head that chooses one of the ends, whatever it is given
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
        model.lm_head.bias = torch.nn.Parameter(torch.eye(config.vocab_size)[ends[1]])
    assert model.generate(ids, do_sample=False, max_new_tokens=9)[0, ids.shape[1] :].tolist() == [ends[1]]


# --- from transformers to here ----------------------------------------------------------------------------------------

QWEN2 = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize(
    ("changes", "max_shard_size"),
    [
        ({}, "5GB"),
        ({"tie_word_embeddings": True}, "5GB"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rms_norm_eps": 1e-3, "head_dim": 16},
            "40KB",
        ),
        ({"tie_word_embeddings": True, "num_key_value_heads": 6}, "40KB"),
    ],
    ids=["plain", "tied", "other constants, shards", "tied, shards"],
)
def test_what_transformers_saves_loads_here(tiny, text, tmp_path: Path, changes: dict, max_shard_size: str):
    torch.manual_seed(3)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**QWEN2 | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases and norms too; logits of some size
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 3) == (max_shard_size == "40KB")
    shape = configs.llm_shape(configs.read_config(tmp_path), tmp_path)
    config = dataclasses.replace(tiny[0], **shape)
    params = hf.load_llm(tmp_path, config)
    theirs = their_logits(model, text)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(our_logits(config, params, text), theirs, **CLOSE)
