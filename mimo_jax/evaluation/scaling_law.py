"""Loss as a function of parameters and tokens: the fit of a ladder of runs, and how sure its predictions are.

    L(N, D) = E + A / N^alpha + B / D^beta            (arXiv 2203.15556, equation 2)

fitted as there: Huber loss of the difference in log L, from many starting points.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

LEAST_RUNS = 6
_HUBER = 1e-3  # in log L, as in the paper


@dataclasses.dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
      floor: E, nats that neither parameters nor tokens take away.
      a, alpha: of the term of parameters.
      b, beta: of the term of tokens.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float

    def __call__(self, parameters: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Losses in nats."""
        n, d = np.asarray(parameters, float), np.asarray(tokens, float)
        return self.floor + self.a * n**-self.alpha + self.b * d**-self.beta


def fit(parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> Law:
    """The law of these runs: three arrays [runs].

    Raises:
      ValueError: fewer than `LEAST_RUNS` runs, or fewer than three different sizes or two budgets; losses that are not
        positive.
    """
    n, d, y = (np.asarray(x, float) for x in (parameters, tokens, losses))
    if len(y) < LEAST_RUNS or len(set(n)) < 3 or len(set(d)) < 2:
        raise ValueError(
            f"{len(y)} runs of {len(set(n))} sizes and {len(set(d))} budgets: five numbers are fitted, give at least "
            f"{LEAST_RUNS} runs, 3 sizes and 2 budgets"
        )
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise ValueError(f"losses {y.tolist()}: all must be positive numbers")
    return _fitted(n, d, y, None)


def _fitted(n: np.ndarray, d: np.ndarray, y: np.ndarray, start: np.ndarray | None) -> Law:
    """From one starting point, or the best of many."""
    from scipy.optimize import least_squares

    # Of order one at the middle of the ladder: starting points need not know how large the models are.
    middle = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())
    logs_n, logs_d, target = np.log(n / middle[0]), np.log(d / middle[1]), np.log(y)
    scale = target.min()

    def terms(x: np.ndarray) -> np.ndarray:
        e, a, b, alpha, beta = x
        return np.stack([np.full_like(target, e), a - alpha * logs_n, b - beta * logs_d])

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(terms(x)) + scale - target

    def jacobian(x: np.ndarray) -> np.ndarray:
        logs = terms(x)
        floor, of_n, of_d = np.exp(logs - np.logaddexp.reduce(logs))
        return np.stack([floor, of_n, of_d, -of_n * logs_n, -of_d * logs_d], axis=1)

    def solve(x0: np.ndarray):  # noqa: ANN202 - scipy's result
        # Exponents beyond 3 would be a cliff, not a law; terms below e^-30 are none.
        bounds = ([-30, -30, -30, 1e-3, 1e-3], [2, 4, 4, 3, 3])
        return least_squares(residuals, x0, jacobian, loss="huber", f_scale=_HUBER, bounds=bounds, max_nfev=200)

    starts = [start] if start is not None else _starting_points()
    best = min((solve(x0) for x0 in starts), key=lambda result: result.cost)
    e, a, b, alpha, beta = best.x
    return Law(
        floor=float(np.exp(e + scale)),
        a=float(np.exp(a + scale) * middle[0] ** alpha),
        alpha=float(alpha),
        b=float(np.exp(b + scale) * middle[1] ** beta),
        beta=float(beta),
    )


def _starting_points() -> list[np.ndarray]:
    """(log E, log A, log B, alpha, beta) with all of order one: a floor that is high or low, terms large or small."""
    grid = itertools.product((-0.2, -2.0), (-1.0, -3.0), (-1.0, -3.0), (0.15, 0.5))
    return [np.array([e, a, b, exponent, exponent]) for e, a, b, exponent in grid]


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law with laws of resampled ladders, which say how sure it is."""

    law: Law
    resampled: Sequence[Law]
    spread: float  # standard deviation of the residuals in log L

    def interval(
        self, parameters: float, tokens: float, level: float = 0.95, noise: bool = True
    ) -> tuple[float, float]:
        """Of the loss of one more run, in nats.

        `noise`: with what a run scatters round the law; without, the interval is that of the law alone.
        """
        values = np.array([float(law(parameters, tokens)) for law in self.resampled])
        if noise:
            # Quantiles of a normal distribution, evenly spread: no draw decides the interval.
            ranks = (np.arange(len(values)) + 0.5) / len(values)
            scatter = np.exp(self.spread * _normal_quantile(ranks))
            values = (values[:, None] * scatter[None, :]).ravel()
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def fit_with_uncertainty(
    parameters: np.ndarray, tokens: np.ndarray, losses: np.ndarray, resamples: int = 200, seed: int = 0
) -> Fit:
    """The law, and those of ladders whose residuals are drawn anew (a residual bootstrap: every run stays in it).

    Raises: as `fit`.
    """
    n, d, y = (np.asarray(x, float) for x in (parameters, tokens, losses))
    law = fit(n, d, y)
    predicted = law(n, d)
    residuals = np.log(y) - np.log(predicted)
    # Five numbers were fitted: what is left is smaller than the scatter by this.
    residuals = (residuals - residuals.mean()) * np.sqrt(len(y) / max(1, len(y) - 5))
    rng = np.random.default_rng(seed)
    start = _start_of(law, n, d, y)
    laws = [_fitted(n, d, np.exp(np.log(predicted) + rng.choice(residuals, len(y))), start) for _ in range(resamples)]
    return Fit(law, laws, float(residuals.std()))


def _start_of(law: Law, n: np.ndarray, d: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The starting point that is `law` itself."""
    scale, middle = np.log(y).min(), (np.exp(np.log(n).mean()), np.exp(np.log(d).mean()))
    tiny = 1e-12
    x = [
        np.log(max(law.floor, tiny)) - scale,
        np.log(max(law.a, tiny)) - law.alpha * np.log(middle[0]) - scale,
        np.log(max(law.b, tiny)) - law.beta * np.log(middle[1]) - scale,
        law.alpha,
        law.beta,
    ]
    return np.clip(x, [-29, -29, -29, 2e-3, 2e-3], [1.9, 3.9, 3.9, 2.9, 2.9])


def _normal_quantile(ranks: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    return np.asarray(ndtri(ranks))
