"""The conversion command: import, export, inspect (verify: tests/interop/test_verify.py)."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mimo_jax import convert
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.interop import configs, hf
from mimo_jax.training.checkpoints import Checkpoints, load_params
from mimo_jax.training.meta import Meta

EMPTY = "287"

GIN = """
from __gin__ import dynamic_registration
from mimo_jax import train as train_script
from mimo_jax.models import mimo_audio
from mimo_jax.objectives import language_model
train_script.train.objective = @language_model.LanguageModelObjective()
language_model.LanguageModelObjective.model = @mimo_audio.MimoAudioConfig()
"""


def same_tensors(a: Path, b: Path) -> None:
    ours, theirs = ({n: t for p in sorted(f.glob("*.safetensors")) for n, t in load_file(p).items()} for f in (a, b))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].tobytes() == tensor.tobytes() and ours[name].dtype == tensor.dtype, name


@pytest.fixture(autouse=True)
def no_gin():
    import gin

    gin.clear_config()
    yield
    gin.clear_config()


def test_through_a_checkpoint_and_back(lm_tiny: Path, tmp_path: Path):
    assert (
        convert.main(["import", f"--weights={lm_tiny}", f"--empty_token_id={EMPTY}", f"--out={tmp_path / 'run'}"]) == 0
    )
    params, mutable, meta = load_params(tmp_path / "run")
    for size in ("5", "0.0001"):  # the imported checkpoint knows what it is
        command = ["export", f"--model_dir={tmp_path / 'run'}", f"--out={tmp_path / size}", f"--max_shard_gb={size}"]
        assert convert.main(command) == 0
        same_tensors(tmp_path / size, lm_tiny)
    config, expected = hf.load_lm(lm_tiny, empty_token_id=int(EMPTY))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert not mutable and not meta.config

    # As a training run leaves it: the configuration is in the checkpoint's gin text.
    fields = "".join(f"mimo_audio.MimoAudioConfig.{name} = {value!r}\n" for name, value in vars(config).items())
    checkpoints = Checkpoints(tmp_path / "trained", asynchronous=False)
    checkpoints.save({"params": params}, Meta(step=7, config=GIN + fields))
    checkpoints.close()
    assert convert.main(["export", f"--model_dir={tmp_path / 'trained'}", f"--out={tmp_path / 'out'}"]) == 0
    same_tensors(tmp_path / "out", lm_tiny)
    assert hf.load_lm(tmp_path / "out")[0] == config


def test_tokenizer_through_a_checkpoint(tokenizer_tiny: Path, tmp_path: Path):
    assert convert.main(["import", f"--weights={tokenizer_tiny}", f"--out={tmp_path / 'run'}"]) == 0
    params, mutable, _ = load_params(tmp_path / "run")
    config, _ = hf.load_tokenizer(tokenizer_tiny)
    hf.save_tokenizer(tmp_path / "out", config, {"params": params["tokenizer"], **mutable})
    same_tensors(tmp_path / "out", tokenizer_tiny)
    for size in ("5", "0.00005"):
        command = ["export", f"--model_dir={tmp_path / 'run'}", f"--out={tmp_path / size}", f"--max_shard_gb={size}"]
        assert convert.main(command) == 0
        same_tensors(tmp_path / size, tokenizer_tiny)
        assert configs.read_config(tmp_path / size) == configs.read_config(tmp_path / "out")


def test_import_never_hides_behind_an_older_one(lm_tiny: Path, tokenizer_tiny: Path, tmp_path: Path, capsys):
    command = ["import", f"--weights={lm_tiny}", f"--empty_token_id={EMPTY}", f"--out={tmp_path}"]
    assert convert.main(command) == 0
    assert convert.main([*command, "--dtype=bfloat16"]) == 2
    assert convert.main(["import", f"--weights={tokenizer_tiny}", f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("holds a checkpoint already") == 2
    assert load_params(tmp_path)[0]["embed_tokens"].dtype == np.float32


def test_initialisation_from_a_plain_llm(lm_tiny: Path, tmp_path: Path):
    config, params = hf.load_lm(lm_tiny, empty_token_id=int(EMPTY))
    hf.save_lm(tmp_path / "lm", config, params)
    llm = tmp_path / "llm"
    assert convert.main(["export", f"--weights={tmp_path / 'lm'}", "--llm_only", f"--out={llm}"]) == 0
    arguments = ["import", f"--weights={llm}", f"--audio_config={tmp_path / 'lm'}"]
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert convert.main([*arguments, f"--seed={seed}", f"--out={tmp_path / name}"]) == 0
        runs.append(load_params(tmp_path / name)[0])
    assert jax.tree.map(np.shape, runs[0]) == jax.tree.map(np.shape, params)
    for part in ("llm", "embed_tokens", "lm_head"):
        jax.tree.map(np.testing.assert_array_equal, runs[2][part], params[part])
    jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
    rest = [run["patch_decoder"]["layers"]["up_proj"]["kernel"] for run in runs]
    assert not np.array_equal(rest[0], rest[2])
    assert not np.array_equal(rest[0], params["patch_decoder"]["layers"]["up_proj"]["kernel"])

    # As released: bfloat16, and the id of <|empty|> known to the text tokenizer only. It can be exported, too.
    small = tmp_path / "small"
    assert convert.main(["export", f"--weights={llm}", "--dtype=bfloat16", f"--out={small}"]) == 0
    (tmp_path / "shape").mkdir()
    shutil.copy(lm_tiny / "config.json", tmp_path / "shape")
    tokenizer = train_text_tokenizer([f"word {i} of many" for i in range(300)], vocab_size=290)
    tokenizer.save(tmp_path / "shape")
    out = tmp_path / "mixed"
    assert convert.main(["import", f"--weights={small}", f"--audio_config={tmp_path / 'shape'}", f"--out={out}"]) == 0
    assert {leaf.dtype for leaf in jax.tree.leaves(load_params(out)[0])} == {jnp.dtype("bfloat16")}
    assert convert.main(["export", f"--model_dir={out}", f"--out={tmp_path / 'again'}"]) == 0
    config, again = hf.load_lm(tmp_path / "again")
    assert config.empty_token_id == tokenizer.special.empty
    rounded = params["llm"]["final_norm"]["scale"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(again["llm"]["final_norm"]["scale"], rounded)


def test_export_of_a_folder(lm_tiny: Path, tokenizer_tiny: Path, tmp_path: Path, capsys):
    shutil.copytree(lm_tiny, tmp_path / "lm")
    values = configs.read_config(lm_tiny) | {"empty_token_id": int(EMPTY), "own_field": 3}
    (tmp_path / "lm" / "config.json").write_text(json.dumps(values))
    (tmp_path / "lm" / "merges.txt").write_text("x")
    out = tmp_path / "out"
    # Half a text tokenizer: named by the caller it is a mistake, lying there it is none.
    arguments = ["export", f"--weights={tmp_path / 'lm'}", f"--text_tokenizer={tmp_path / 'lm'}", f"--out={out}"]
    assert convert.main(arguments) == 2
    assert "no usable text tokenizer" in capsys.readouterr().err
    arguments = ["export", f"--weights={tmp_path / 'lm'}", "--max_shard_gb=0.0001", "--dtype=bfloat16", f"--out={out}"]
    assert convert.main(arguments) == 0
    assert len(list(out.glob("*.safetensors"))) > 1
    written = configs.read_config(out)
    assert written["own_field"] == 3 and written["torch_dtype"] == "bfloat16"
    assert convert.main(["export", f"--weights={tokenizer_tiny}", f"--out={tmp_path / 'codec'}"]) == 0
    same_tensors(tmp_path / "codec", tokenizer_tiny)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["import", "--weights=nowhere", "--out=x"], "nowhere/config.json: missing"),
        (["export", "--weights={tokenizer}", "--out=x", "--llm_only"], "this is an audio tokenizer"),
        (["export", "--model_dir=nowhere", "--out=x"], "nowhere: no checkpoint"),
        (["export", "--weights={tokenizer}", "--out={tokenizer}"], "is the folder that is read"),
        (["export", "--weights={tokenizer}", "--out=x", "--max_shard_gb=inf"], "--max_shard_gb=inf: give a positive"),
        (["export", "--weights={tokenizer}", "--out={tokenizer}/config.json"], "a file of that name exists"),
        (["export", "--weights={tokenizer}", "--out=x", "--stablehlo", "--platforms=gpu"], "unknown platforms gpu"),
        (
            ["export", "--weights={tokenizer}", "--audio_tokenizer={tokenizer}", "--out=x", "--stablehlo"],
            "not two of a kind",
        ),
        (["verify", "--weights={tokenizer}", "--golden=nowhere"], "inputs.npz: missing"),
    ],
)
def test_mistakes_give_one_message(tokenizer_tiny: Path, tmp_path: Path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert convert.main([argument.format(tokenizer=tokenizer_tiny) for argument in arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("model", "low", "high"), [("mimo_audio_7b", 7.0, 8.1), ("tokenizer_1b", 1.2, 1.3)])
def test_inspect_published_models(capsys, model: str, low: float, high: float):
    assert convert.main(["inspect", f"--model={model}", "--tensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert low <= float(lines[0].split()[1]) <= high
    if model == "mimo_audio_7b":
        assert any("llm/layers/attention/k_proj/kernel" in line and "[36, 4096, 1024]" in line for line in lines)
