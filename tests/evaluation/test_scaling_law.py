"""Scaling laws: known laws are found again, intervals hold what they should, mistakes are named."""

import numpy as np
import pytest

from mimo_jax.evaluation import ladder_page
from mimo_jax.evaluation.ladder_page import Ladder, Rung
from mimo_jax.evaluation.scaling_law import Law, fit, fit_with_uncertainty

TRUE = Law(floor=1.7, a=40.0, alpha=0.3, b=200.0, beta=0.35)
SIZES, BUDGETS = np.repeat([1e5, 3e5, 1e6, 3e6], 3), np.tile([3e5, 1e6, 3e6], 4)


@pytest.mark.parametrize("law", [TRUE, Law(0.4, 12.0, 0.12, 3000.0, 0.6)], ids=["balanced", "steep"])
def test_a_law_without_noise_is_found(law):
    found = fit(SIZES[:-1], BUDGETS[:-1], law(SIZES, BUDGETS)[:-1])
    for name in ("floor", "a", "alpha", "b", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-3), name
    assert float(found(3e7, 3e7)) == pytest.approx(float(law(3e7, 3e7)), rel=1e-4)


def test_units_do_not_matter():
    losses = TRUE(SIZES, BUDGETS) * np.exp(0.01 * np.random.default_rng(1).standard_normal(12))
    here, there = fit(SIZES, BUDGETS, losses), fit(SIZES * 1e4, BUDGETS * 1e6, losses)
    np.testing.assert_allclose(here(2e6, 5e6), there(2e10, 5e12), rtol=1e-4)


def test_one_bad_run_moves_little():
    losses = TRUE(SIZES, BUDGETS)
    losses[4] *= 1.2
    assert float(fit(SIZES, BUDGETS, losses)(3e6, 1e7)) == pytest.approx(float(TRUE(3e6, 1e7)), rel=0.02)


def test_intervals_cover_the_held_back_run():
    """In about 95 of 100 ladders; of 10 at least 7."""
    inside = 0
    for seed in range(10):
        noise = np.exp(0.01 * np.random.default_rng(seed).standard_normal(12))
        losses = TRUE(SIZES, BUDGETS) * noise
        found = fit_with_uncertainty(SIZES[:-1], BUDGETS[:-1], losses[:-1], resamples=20, seed=seed)
        low, high = found.interval(SIZES[-1], BUDGETS[-1])
        assert low < float(found.law(SIZES[-1], BUDGETS[-1])) * 1.02 and high > low
        narrow = found.interval(SIZES[-1], BUDGETS[-1], noise=False)
        assert narrow[1] - narrow[0] < high - low
        inside += low <= losses[-1] <= high
    assert inside >= 7


def test_too_little_is_said():
    with pytest.raises(ValueError, match="4 runs of 2 sizes and 2 budgets"):
        fit(SIZES[[0, 1, 3, 4]], BUDGETS[[0, 1, 3, 4]], np.ones(4))
    with pytest.raises(ValueError, match="must be positive"):
        fit(SIZES, BUDGETS, np.r_[np.ones(11), np.nan])


def test_the_page_and_table_tell_the_held_back_run():
    losses = {"text": TRUE(SIZES, BUDGETS), "codebook_1": Law(2.0, 9.0, 0.2, 90.0, 0.3)(SIZES, BUDGETS)}
    rungs = [
        Rung(f"{n:.0e}", int(n), int(d), {name: float(x[i]) for name, x in losses.items()}, held_back=i == 11)
        for i, (n, d) in enumerate(zip(SIZES, BUDGETS, strict=True))
    ]
    ladder = Ladder.of(rungs, list(losses), resamples=5)
    for row in ladder.predictions():
        assert row["predicted"] == pytest.approx(row["measured"], rel=1e-3)
        assert row["last_best"] > row["measured"] and row["parameters"] == 3_000_000
    assert ladder.to_dict()["laws"]["text"]["alpha"] == pytest.approx(0.3, rel=0.01)
    page = ladder_page.render(ladder, {"a": 60.0, "b": 120.0})
    assert page.count("<svg") == 2 and "took 3 minutes" in page and "held back" in page
    assert ladder_page.table(ladder).count("\n") == 2
