"""PEFT and this package compute the same from each other's adapters; the conversion command's ways with them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from mimo_jax import convert
from mimo_jax.cli import UserError
from mimo_jax.inference.loading import language_model
from mimo_jax.interop import configs, hf, peft, trained
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.training import lora as runs
from mimo_jax.training.checkpoints import stored_params

EMPTY = 287  # <|empty|> of the tiny language model; text ids are below it
CLOSE = {"rtol": 0.0, "atol": 1e-4}  # as between transformers and this package without adapters
LLM = ("embed_tokens", "llm", "lm_head")


@pytest.fixture(scope="module")
def tiny(lm_tiny: Path) -> tuple[MimoAudioConfig, dict]:
    return hf.load_lm(lm_tiny, empty_token_id=EMPTY)


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(0).integers(0, EMPTY, (3, 40)).astype(np.int32)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """The tiny model with an id of <|empty|> in its configuration."""
    folder = tmp_path_factory.mktemp("whole")
    hf.save_lm(folder, *tiny, base_config={"own_field": 3})
    return folder


def random_factors(config: MimoAudioConfig, targets: str, rank: int = 4) -> dict:
    rng, flat = np.random.default_rng(1), {}
    for path, leaf in traverse_util.flatten_dict(hf.lm_shapes(config)).items():
        name = "/".join(path)
        if name.endswith("kernel") and any(name.startswith(part) for part in targets.split()):
            *stack, fan_in, fan_out = leaf.shape
            flat[(*path, "lora_a")] = rng.normal(size=(*stack, fan_in, rank)).astype(np.float32) * 0.2
            flat[(*path, "lora_b")] = rng.normal(size=(*stack, rank, fan_out)).astype(np.float32) * 0.2
    return traverse_util.unflatten_dict(flat)


def flat(tree) -> dict:
    return traverse_util.flatten_dict(tree, sep="/")


def same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def our_logits(config: MimoAudioConfig, params: dict, text: np.ndarray) -> np.ndarray:
    def logits(model: MimoAudio, text: jax.Array) -> jax.Array:
        hidden, _ = model.backbone(model.embed_text(text), jnp.arange(text.shape[1])[None, :])
        return model.text_logits(hidden)

    llm = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), {part: params[part] for part in LLM})
    return np.asarray(jax.jit(lambda p, t: MimoAudio(config).apply({"params": p}, t, method=logits))(llm, text))


def their_logits(model, text: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model.eval()(torch.from_numpy(text.astype(np.int64))).logits.float().numpy()


@pytest.fixture(scope="module")
def in_torch(tiny, tmp_path_factory):
    """(peft, a function that loads the tiny LLM in transformers)."""
    pytest.importorskip("torch", reason="torch is not installed (MIMO_JAX_TORCH=none was set, or no extra 'dev')")
    transformers, library = pytest.importorskip("transformers"), pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("llm")
    hf.save_llm(folder, *tiny)
    return library, lambda: transformers.AutoModelForCausalLM.from_pretrained(folder)


def test_peft_computes_the_same_from_our_adapter(tiny, whole, text, in_torch, tmp_path):
    library, llm = in_torch
    config, params = tiny
    factors = random_factors(config, "llm/ lm_head")
    peft.save(tmp_path, config, factors, rank=4, alpha=6.0, base=str(whole))
    model = library.PeftModel.from_pretrained(llm(), tmp_path)
    loaded = {name: x.numpy() for name, x in model.state_dict().items() if "lora_" in name}
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {name.replace(".default", "") for name in loaded} == set(stored) and len(stored) == 2 * (
        7 * config.num_hidden_layers + 1
    )
    for name, x in loaded.items():
        np.testing.assert_array_equal(x, stored[name.replace(".default", "")])
    assert stored["base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"].shape == (32, 4)
    ours = our_logits(config, runs.merged(params, factors, 1.5), text)
    assert np.abs(ours - our_logits(config, params, text)).max() > 1
    np.testing.assert_allclose(their_logits(model, text), ours, **CLOSE)


@pytest.mark.parametrize("rslora", [False, True])
def test_we_compute_the_same_from_their_adapter(tiny, text, in_torch, tmp_path, rslora):
    import torch

    library, llm = in_torch
    config, params = tiny
    modules = ["q_proj", "v_proj", "down_proj"]
    torch.manual_seed(0)
    model = library.get_peft_model(
        llm(), library.LoraConfig(r=4, lora_alpha=8, target_modules=modules, use_rslora=rslora, task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    factors, rank, alpha = peft.load(tmp_path, config)
    assert (rank, alpha) == (4, 16.0 if rslora else 8.0)
    assert len(flat(factors)) == 2 * 3
    theirs = their_logits(model, text)
    assert np.abs(theirs - our_logits(config, params, text)).max() > 0.5
    np.testing.assert_allclose(our_logits(config, runs.merged(params, factors, alpha / rank), text), theirs, **CLOSE)


def test_the_whole_model_there_and_back(tiny, tmp_path):
    config, _ = tiny
    parts = "llm/layers patch_encoder/ patch_decoder/ speech_group_downcast/ local_heads_5/ hidden_states_downcast/"
    factors = random_factors(config, parts)
    peft.save(tmp_path, config, factors, rank=4, alpha=8.5, base="owner/name")
    back, rank, alpha = peft.load(tmp_path, config)
    same(back, factors)
    assert (rank, alpha) == (4, 8.5)
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert "base_model.model.local_transformer.layers.0.self_attn.o_proj.lora_A.weight" in names
    assert "base_model.model.local_transformer_lm_heads.5.lora_B.weight" in names
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "owner/name"
    peft.save(tmp_path, config, factors, rank=4, alpha=8.5, base="x", dtype="bfloat16")
    rounded = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32), factors)
    same(peft.load(tmp_path, config)[0], rounded)


def test_the_command(tiny, whole, tmp_path, capsys):
    """An adapter becomes a run, the run an adapter and a merged model, all with the same numbers."""
    config, params = tiny
    factors = random_factors(config, "llm/layers patch_decoder/")
    peft.save(tmp_path / "a", config, factors, rank=4, alpha=6.0, base="x")
    run = tmp_path / "run"
    command = ["import", f"--peft={tmp_path / 'a'}", f"--base={whole}", f"--out={run}"]
    assert convert.main(command) == 0
    assert convert.main(command) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err
    same(stored_params(run)[0], factors)
    assert convert.main(["export", f"--model_dir={run}", f"--out={tmp_path / 'b'}", "--peft", "--base_name=x"]) == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    out = tmp_path / "merged"
    assert convert.main(["export", f"--model_dir={run}", f"--out={out}"]) == 0
    merged = runs.merged(params, factors, 1.5)
    again, tree = hf.load_lm(out)
    assert again == config and configs.read_config(out)["own_field"] == 3
    same(tree, merged)
    for name, x in flat(tree).items():
        kernel = f"{name}/lora_a" in flat(factors)
        assert np.array_equal(x, flat(params)[name]) != kernel, name
    # What generates and serves opens the run itself, and an imported base is a base as well.
    assert convert.main(["import", f"--weights={whole}", f"--out={tmp_path / 'base'}"]) == 0
    assert convert.main(["import", f"--peft={tmp_path / 'a'}", f"--base={tmp_path / 'base'}", f"--out={run}2"]) == 0
    same(trained.load_run(f"{run}2")[2], merged)
    with pytest.raises(UserError, match="has no text tokenizer"):
        language_model(run)
    llm = tmp_path / "llm"
    assert convert.main(["export", f"--model_dir={run}", f"--out={llm}", "--llm_only", "--dtype=bfloat16"]) == 0
    assert configs.kind_of(configs.read_config(llm)) == "llm"


def test_mistakes_are_named(tiny, tmp_path):
    config, _ = tiny
    good = tmp_path / "good"
    factors = random_factors(config, "llm/layers/attention")
    peft.save(good, config, factors, rank=4, alpha=8.0, base="x")
    values = json.loads((good / "adapter_config.json").read_text())
    tensors = load_file(good / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def broken(settings=None, **changed):
        folder = tmp_path / f"broken {len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps(values | (settings or {})))
        renamed = {name: x for name, x in (tensors | changed).items() if x is not None}
        save_file(renamed, folder / "adapter_model.safetensors")
        return folder

    for folder, message in (
        (broken(**{first: None}), rf"missing: {first} \[4, 64\]"),
        (broken(**{first: np.zeros((4, 9), np.float32)}), rf"wrong shape: {first} is \[4, 9\], .* \[4, 64\]"),
        (broken(**{"base_model.model.x.lora_A.weight": tensors[first]}), r"unknown: base_model.model.x.lora_A.weight"),
        (broken({"use_dora": True}), "use_dora = True cannot be read; merge the adapter"),
        (broken({"rank_pattern": {"q_proj": 8}}), "rank_pattern"),
        (broken({"peft_type": "IA3"}), "peft_type = IA3"),
        (tmp_path, "adapter_config.json: missing"),
    ):
        with pytest.raises(UserError, match=message):
            peft.load(folder, config)


def test_mistakes_of_the_command(tiny, whole, tmp_path, capsys, tokenizer_tiny):
    config, _ = tiny
    peft.save(tmp_path / "a", config, random_factors(config, "llm/layers"), rank=4, alpha=8.0, base="x")
    assert convert.main(["import", f"--weights={whole}", f"--out={tmp_path / 'plain'}"]) == 0
    other = tmp_path / "other"
    narrow = dataclasses.replace(config, intermediate_size=32)
    hf.save_lm(other, narrow, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), hf.lm_shapes(narrow)))
    adapter, out = f"--peft={tmp_path / 'a'}", f"--out={tmp_path / 'x'}"
    capsys.readouterr()
    for arguments, message in (
        (["import", adapter, out], "name the model it belongs to with --base"),
        (["import", adapter, f"--base={tokenizer_tiny}", out], "no whole MiMo-Audio language model"),
        (["import", adapter, f"--base={other}", out], "wrong shape: base_model.model.model.layers.0.mlp"),
        (["import", f"--weights={whole}", f"--base={whole}", out], "--base: goes with --peft"),
        (["export", f"--model_dir={tmp_path / 'plain'}", "--peft", out], "hold a whole model, no adapter"),
        (["export", f"--weights={whole}", "--peft", out], "--peft goes with --model_dir"),
        (["export", f"--weights={whole}", f"--base={whole}", out], "--base with --model_dir"),
    ):
        assert convert.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
