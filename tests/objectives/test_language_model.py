"""The training loss against the reference's numbers (golden/loss_tiny), losses and gradients."""

import dataclasses
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mimo_jax.objectives.language_model import LanguageModelObjective, chunked_cross_entropy, gather_patches
from tests.models.released import grid_arrays, load, parameters

BATCHES = ("full", "padded", "empty_codes")
VARIANTS = ("released", "zeroed")


class Fixture:
    def __init__(self, golden):
        self.lm, folder = golden / "lm_tiny", golden / "loss_tiny"
        self.tensors = load_file(self.lm / "model.safetensors")
        self.inputs, self.outputs = dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))
        self.run = json.loads((folder / "run.json").read_text())
        self.tolerances = json.loads((folder / "tolerances.json").read_text())
        self.evaluated = cache(self._evaluated)

    def batch(self, name):
        config, _ = load(self.lm)
        text, audio = grid_arrays(self.inputs[f"{name}.input_ids"], config.group_size)
        labels, label_codes = grid_arrays(self.inputs[f"{name}.labels"], config.group_size)
        loss_mask = labels != -100
        # What is a target is the input itself: this is what allows the mask to stand for the labels.
        np.testing.assert_array_equal(text[loss_mask], labels[loss_mask])
        is_patch = labels == config.empty_token_id
        np.testing.assert_array_equal(audio[is_patch], label_codes[is_patch])
        mask = self.inputs[f"{name}.attention_mask"]
        return {
            "text": text,
            "audio": audio,
            "segment_ids": mask,
            "positions": np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape),
            "loss_mask": loss_mask & (mask > 0),
        }

    def objective(self, variant, **fields):
        config, _ = load(self.lm, released_text_embedding=variant == "released")
        return LanguageModelObjective(config, **fields)

    def loss(self, objective, batch):
        def function(tensors):
            params = parameters(tensors, objective.model)
            return objective.loss(params, {}, jax.tree.map(jnp.asarray, batch), jax.random.key(0), jnp.float32(0))

        return function

    def _evaluated(self, name, variant):
        objective, batch = self.objective(variant), jax.tree.map(jnp.asarray, self.batch(name))

        def everything(tensors):
            losses = objective.losses(parameters(tensors, objective.model), batch, True)
            return jax.value_and_grad(self.loss(objective, batch), has_aux=True)(tensors), vars(losses)

        ((loss, (_, metrics)), gradients), losses = jax.jit(everything)(self.tensors)
        return loss, metrics, gradients, losses


@pytest.fixture(scope="module")
def tiny(golden):
    return Fixture(golden)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BATCHES)
def test_losses(tiny, name, variant):
    loss, metrics, _, losses = tiny.evaluated(name, variant)
    prefix, atol = f"{name}.{variant}", tiny.tolerances["atol"]

    def check(array, actual):
        expected = tiny.outputs[f"{prefix}.{array}"]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol[f"{prefix}.{array}"], err_msg=array)

    check("loss", loss)
    check("text_loss", metrics["text_loss"])
    check("channel_losses", [metrics[f"codebook_loss_{c + 1}"] for c in range(8)])
    check("text_nll", losses["text_nll"][:, 1:])
    check("text_weight_sum", losses["text_weight"].sum())
    check("audio_nll", losses["audio_nll"][np.asarray(losses["patch_mask"])])
    assert losses["patch_mask"].sum() == tiny.outputs[f"{prefix}.n_patches"]
    assert metrics["patch_overflow"] == 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BATCHES)
def test_gradients(tiny, name, variant):
    gradients = tiny.evaluated(name, variant)[2]
    prefix, tolerances = f"{name}.{variant}", tiny.tolerances
    rows = tiny.run["gradient_rows_kept"]
    compared = [key for key in tiny.outputs if key.startswith(f"{prefix}.grad.")]
    assert len(compared) >= 7
    for key in compared:
        parameter = key.removeprefix(f"{prefix}.grad.")
        actual = np.asarray(gradients[parameter])
        if parameter in rows:
            actual = actual[rows[parameter]]
        np.testing.assert_allclose(actual, tiny.outputs[key], rtol=0, atol=tolerances["atol"][key], err_msg=parameter)
    norms = [np.linalg.norm(gradients[parameter]) for parameter in tiny.run["grad_norms_parameters"]]
    assert len(norms) == len(tiny.tensors)
    np.testing.assert_allclose(
        norms, tiny.outputs[f"{prefix}.grad_norms"], rtol=tolerances["rtol"][f"{prefix}.grad_norms"], atol=1e-9
    )


def test_without_labelled_audio_the_text_loss_stands_alone(tiny):
    objective, batch = tiny.objective("zeroed"), tiny.batch("padded")
    batch["loss_mask"] = batch["loss_mask"] & (batch["text"] != objective.model.empty_token_id)
    (loss, (_, metrics)), gradients = jax.jit(jax.value_and_grad(tiny.loss(objective, batch), has_aux=True))(
        tiny.tensors
    )
    assert loss == metrics["text_loss"]
    assert not np.any(gradients["hidden_states_downcast.weight"])
    assert not np.any(gradients["local_transformer_lm_heads.0.weight"])
    assert np.any(gradients["lm_head.weight"])


def test_without_any_target_the_loss_is_zero(tiny):
    objective, batch = tiny.objective("zeroed"), tiny.batch("full")
    batch["loss_mask"] = np.zeros_like(batch["loss_mask"])
    loss, gradients = jax.jit(jax.value_and_grad(lambda t: tiny.loss(objective, batch)(t)[0]))(tiny.tensors)
    assert loss == 0 and not any(np.any(g) for g in gradients.values())


def test_rows_packed_together_lose_what_they_lose_apart(tiny):
    """Segments of a packed row must not see one another: same sums as in rows of their own."""
    objective, batch = tiny.objective("zeroed"), tiny.batch("padded")
    lengths = batch["segment_ids"].sum(1)
    packed = {
        key: np.concatenate([batch[key][i, :n] for i, n in enumerate(lengths)])[None]
        for key in ("text", "audio", "positions", "loss_mask")
    }
    packed["segment_ids"] = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None]
    starts = np.cumsum(lengths) - lengths
    packed["loss_mask"][0, starts] = False
    apart = jax.jit(lambda t: tiny.loss(objective, batch)(t)[1][1])(tiny.tensors)
    together = jax.jit(lambda t: tiny.loss(objective, packed)(t)[1][1])(tiny.tensors)
    for name, value in apart.items():
        np.testing.assert_allclose(together[name], value, rtol=2e-5, err_msg=name)


def test_patches_beyond_the_capacity_are_counted():
    is_patch = np.array([[1, 0, 1, 1], [0, 1, 0, 1]], bool)
    flat, slot, overflow = gather_patches(is_patch, 3)
    np.testing.assert_array_equal(flat, [0, 2, 3])
    np.testing.assert_array_equal(slot, [[0, 3, 1, 2], [3, 3, 3, 3]])
    assert overflow == 2
    flat, slot, overflow = gather_patches(is_patch, 6)
    np.testing.assert_array_equal(flat, [0, 2, 3, 5, 7, 8])
    assert overflow == 0


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_cross_entropy(chunk):
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(5, 11)).astype(np.float32)
    targets = rng.integers(0, 11, 7)
    gradient = jax.grad(lambda h, c: chunked_cross_entropy(h, kernel, targets, c).sum(), argnums=0)
    np.testing.assert_allclose(
        chunked_cross_entropy(hidden, kernel, targets, chunk), chunked_cross_entropy(hidden, kernel, targets, 0), 1e-6
    )
    np.testing.assert_allclose(gradient(hidden, chunk), gradient(hidden, 0), rtol=1e-5, atol=1e-6)


def test_frozen_dataclass_equality_tells_models_apart(tiny):
    """Configurations are static arguments of compiled functions: different shapes must not compare equal."""
    objective = tiny.objective("zeroed")
    assert objective == tiny.objective("zeroed")
    assert objective != dataclasses.replace(objective, empty_weight=0.5)
