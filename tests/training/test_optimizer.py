"""Options of the optimiser: algorithms, dtypes, global clipping, averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mimo_jax.cli import UserError
from mimo_jax.parallel.mesh import Hardware
from mimo_jax.training.optimizer import Group, Optimizer, averaged_params, global_norm
from tests.parallel.runs import ONE, run

PARAMS = {"a": {"kernel": jnp.ones((4, 3))}, "b": {"kernel": jnp.full((2, 2), 2.0)}, "c": {"kernel": jnp.ones(5)}}
GRADIENTS = jax.tree.map(lambda p: jnp.full(p.shape, 3.0), PARAMS)


def apply(optimizer, gradients=GRADIENTS, updates=1):
    transformation, params = optimizer.build(PARAMS), PARAMS
    state, history = transformation.init(params), []
    for _ in range(updates):
        change, state = transformation.update(gradients, state, params, progress=jnp.float32(0.5))
        params = optax.apply_updates(params, change)
        history.append(params)
    return history, state


def groups(**changes):
    return tuple(Group(name, rate, **changes) for name, rate in (("a", 1.0), ("b", 0.1), ("c", 0)))


def test_the_global_norm_is_clipped_before_the_groups():
    seen = {}

    class Spy(Optimizer):
        def _scale(self):
            def update(updates, state, params=None):
                leaves = [x for x in jax.tree.leaves(updates) if hasattr(x, "shape")]
                seen[leaves[0].shape] = leaves
                return updates, state

            return optax.GradientTransformation(lambda params: optax.EmptyState(), update)

    apply(Spy(groups=groups(clip=None), clip=1.0))
    assert set(seen) == {(4, 3), (2, 2)}
    np.testing.assert_allclose(global_norm(list(seen.values())), 1.0, rtol=1e-6)


def test_norms_of_groups_that_learn():
    norms = Optimizer(groups=groups()).group_norms(GRADIENTS)
    assert norms == {"grad_norm/a": pytest.approx(3 * 12**0.5), "grad_norm/b": pytest.approx(3 * 4**0.5)}
    assert not Optimizer().group_norms(GRADIENTS)  # the norm of all is in the log anyway


def test_the_first_moment_in_bfloat16():
    _, state = apply(Optimizer(groups=groups(), first_moment_dtype="bfloat16"))
    assert jnp.dtype(jnp.bfloat16) in {x.dtype for x in jax.tree.leaves(state)}


@pytest.mark.parametrize("hardware", [ONE, Hardware(data=1, fsdp=2, tensor=2)])
def test_adafactor_learns_and_keeps_little(hardware):
    small = Optimizer((Group(".*", 3e-3),), algorithm="adafactor")
    losses = run(hardware, optimizer=small, steps=6)
    assert np.isfinite(losses).all() and losses[-1] != losses[0]
    wide = {"kernel": jax.ShapeDtypeStruct((256, 512), jnp.float32)}
    state = jax.eval_shape(small.build(wide).init, wide)
    assert sum(x.size for x in jax.tree.leaves(state)) < 256 + 512 + 10


def test_the_average_is_that_of_all_updates():
    decay = 0.9
    history, state = apply(Optimizer(groups=groups(), average=decay), updates=3)
    weights = np.array([decay**2, decay, 1.0]) * (1 - decay) / (1 - decay**3)
    expected = jax.tree.map(lambda *p: sum(w * x for w, x in zip(weights, p, strict=True)), *history)
    averaged = averaged_params(history[-1], state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), averaged, expected)
    begin = Optimizer(groups=groups(), average=decay).build(PARAMS).init(PARAMS)
    assert averaged_params(PARAMS, begin)["a"]["kernel"][0, 0] == 1
    assert averaged_params(PARAMS, None) is PARAMS


@pytest.mark.parametrize("wrong", [{"algorithm": "sgd"}, {"average": 1.0}])
def test_wrong_values(wrong):
    with pytest.raises(UserError, match=str(next(iter(wrong.values())))):
        Optimizer(**wrong)
