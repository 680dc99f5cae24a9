"""The training loss against the reference's numbers (golden/loss_tiny), losses and gradients."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mimo_jax.models.patches import gather_local
from mimo_jax.objectives.language_model import LanguageModelObjective
from tests.models.released import by_official_name, grid_arrays, load

BATCHES = ("full", "padded", "empty_codes")
VARIANTS = ("released", "zeroed")
# Every batch is padded to one shape: one compilation per variant, and the padding must not matter.
ROWS, LENGTH = 3, 72


# Without the backend's optimisations it compiles in half the time.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 0})
def evaluate(objective, params, batch):
    """Loss, metrics, gradients, and the losses of the single targets."""

    def loss(params):
        return objective.loss(params, {}, batch, jax.random.key(0), jnp.float32(0))

    (value, (_, metrics)), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, metrics, gradients, vars(objective.losses(params, batch, True))


def pad(batch):
    return {
        key: np.pad(x, [(0, n - m) for n, m in zip((ROWS, LENGTH), x.shape, strict=False)] + [(0, 0)] * (x.ndim - 2))
        for key, x in batch.items()
    }


class Fixture:
    def __init__(self, golden):
        self.lm, folder = golden / "lm_tiny", golden / "loss_tiny"
        self.config, self.params = load(self.lm)
        self.inputs, self.outputs = dict(np.load(folder / "inputs.npz")), dict(np.load(folder / "outputs.npz"))
        self.run = json.loads((folder / "run.json").read_text())
        self.tolerances = json.loads((folder / "tolerances.json").read_text())

    def batch(self, name):
        config = self.config
        text, audio = grid_arrays(self.inputs[f"{name}.input_ids"], config.group_size)
        labels, label_codes = grid_arrays(self.inputs[f"{name}.labels"], config.group_size)
        mask = self.inputs[f"{name}.attention_mask"]
        is_target = labels != -100
        assert not np.any(is_target & (mask == 0))
        # What is a target is the input itself: this is what allows a mask to stand for the labels.
        np.testing.assert_array_equal(text[is_target], labels[is_target])
        is_patch = labels == config.empty_token_id
        np.testing.assert_array_equal(audio[is_patch], label_codes[is_patch])
        positions = np.broadcast_to(np.arange(text.shape[1], dtype=np.int32), text.shape)
        return {"text": text, "audio": audio, "segment_ids": mask, "positions": positions, "loss_mask": is_target}

    def objective(self, variant):
        return LanguageModelObjective(dataclasses.replace(self.config, released_text_embedding=variant == "released"))

    def evaluate(self, variant, batch):
        loss, metrics, gradients, losses = evaluate(self.objective(variant), self.params, pad(batch))
        return loss, metrics, by_official_name(self.config, gradients), losses


@pytest.fixture(scope="module")
def tiny(golden):
    return Fixture(golden)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BATCHES)
def test_losses(tiny, name, variant):
    loss, metrics, _, losses = tiny.evaluate(variant, tiny.batch(name))
    prefix, atol = f"{name}.{variant}", tiny.tolerances["atol"]

    def check(array, actual):
        expected = tiny.outputs[f"{prefix}.{array}"]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=atol[f"{prefix}.{array}"], err_msg=array)

    check("loss", loss)
    check("text_loss", metrics["text_loss"])
    check("channel_losses", [metrics[f"codebook_loss_{c + 1}"] for c in range(8)])
    rows, length = tiny.outputs[f"{prefix}.text_nll"].shape
    check("text_nll", losses["text_nll"][:rows, 1 : length + 1])
    assert not np.any(losses["text_nll"][:, length + 1 :]) and not np.any(losses["text_nll"][rows:])
    check("text_weight_sum", losses["text_weight"].sum())
    check("audio_nll", losses["audio_nll"][np.asarray(losses["patch_mask"])])
    assert losses["patch_mask"].sum() == tiny.outputs[f"{prefix}.n_patches"]
    assert metrics["patch_overflow"] == 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", BATCHES)
def test_gradients(tiny, name, variant):
    gradients = tiny.evaluate(variant, tiny.batch(name))[2]
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
    assert len(norms) == len(gradients)
    np.testing.assert_allclose(
        norms, tiny.outputs[f"{prefix}.grad_norms"], rtol=tolerances["rtol"][f"{prefix}.grad_norms"], atol=1e-9
    )


def test_without_labelled_audio_the_text_loss_stands_alone(tiny):
    batch = tiny.batch("padded")
    batch["loss_mask"] = batch["loss_mask"] & (batch["text"] != tiny.config.empty_token_id)
    loss, metrics, gradients, _ = tiny.evaluate("zeroed", batch)
    assert loss == metrics["text_loss"] > 0
    assert not np.any(gradients["hidden_states_downcast.weight"])
    assert not np.any(gradients["local_transformer_lm_heads.0.weight"])
    assert np.any(gradients["lm_head.weight"])


def test_without_any_target_the_loss_is_zero(tiny):
    batch = tiny.batch("full")
    batch["loss_mask"] = np.zeros_like(batch["loss_mask"])
    loss, _, gradients, _ = tiny.evaluate("zeroed", batch)
    assert loss == 0 and not any(np.any(g) for g in gradients.values())


def test_rows_packed_together_lose_what_they_lose_apart(tiny):
    """Segments of a packed row must not see one another: same sums as in rows of their own."""
    batch = tiny.batch("padded")
    lengths = batch["segment_ids"].sum(1)
    starts = np.cumsum(lengths) - lengths
    packed = {key: np.concatenate([x[i, :n] for i, n in enumerate(lengths)])[None] for key, x in batch.items()}
    packed["segment_ids"] = np.repeat(np.arange(1, len(lengths) + 1), lengths)[None]
    packed["loss_mask"][0, starts] = False
    apart, together = tiny.evaluate("zeroed", batch), tiny.evaluate("zeroed", packed)
    for name, value in apart[1].items():
        np.testing.assert_allclose(together[1][name], value, rtol=2e-5, err_msg=name)
    for name, value in apart[2].items():
        np.testing.assert_allclose(together[2][name], value, rtol=1e-3, atol=1e-5, err_msg=name)


def test_patches_beyond_the_capacity_are_counted():
    is_patch = jnp.array([[1, 0, 1, 1], [0, 1, 0, 1]], bool)
    flat, slot, overflow = gather_local(is_patch, 3)
    np.testing.assert_array_equal(flat, [0, 2, 3])
    np.testing.assert_array_equal(slot, [[0, 3, 1, 2], [3, 3, 3, 3]])
    assert overflow == 2
    flat, slot, overflow = gather_local(is_patch, 6)
    np.testing.assert_array_equal(flat, [0, 2, 3, 5, 7, 8])
    assert overflow == 0


def test_objectives_of_different_shape_are_different(tiny):
    """They are static arguments of compiled functions."""
    objective = tiny.objective("zeroed")
    assert objective == tiny.objective("zeroed") and objective != tiny.objective("released")
    assert objective != dataclasses.replace(objective, empty_weight=0.5)
