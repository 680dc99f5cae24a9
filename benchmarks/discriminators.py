"""STFT discriminators in blocks of frequencies against plain convolutions: seconds of what stage 2 asks of them.

    python benchmarks/discriminators.py [--sizes 1024 256] [--channels 4] [--blocks 4 8 16] [--crops 8] [--seconds 1]

Each row is one gradient of both sides' losses on the same crops, the blocks taking turns; the losses are compared with
those by plain convolutions. (Gradients are in tests/models/tokenizer/test_blocked_conv.py: here a leaky ReLU that falls
to its other side by rounding moves them by a hundredth.) Prints a table and, as the last line, one JSON object; `ratio`
is that of the best block.
"""

from __future__ import annotations

import argparse
import json
import time

import jax
import jax.numpy as jnp
import numpy as np

from mimo_jax.models import layers
from mimo_jax.models.tokenizer.discriminators import DiscriminatorConfig, Discriminators
from mimo_jax.objectives.tokenizer_gan import verdict

RATE = 24000
SCORED = ("loss/discriminator", "loss/adversarial", "loss/feature_matching")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 256], help="STFT windows")
    parser.add_argument("--channels", type=int, default=4)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a crop")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    shape = (2, options.crops, int(options.seconds * RATE))
    real, fake = jnp.asarray(0.05 * np.random.default_rng(0).standard_normal(shape), jnp.float32)
    blocks = (1, *options.blocks)
    sizes = {"periods": (), "stft_sizes": tuple(options.sizes), "stft_channels": options.channels, "input_gain": 20.0}
    judges = {block: Discriminators(DiscriminatorConfig(**sizes, stft_block=block)) for block in blocks}
    variables = layers.unbox(judges[1].init(jax.random.key(0), real))
    steps = {block: jax.jit(gradient(judge)) for block, judge in judges.items()}
    results = {block: jax.block_until_ready(step(variables, real, fake)) for block, step in steps.items()}
    times: dict[int, list[float]] = {block: [] for block in blocks}
    for _ in range(options.repeats):
        for block, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(variables, real, fake))
            times[block].append(time.perf_counter() - start)

    median = {block: float(np.median(spent)) for block, spent in times.items()}
    print(f"{'block':>5} {'seconds':>9} {'speed':>7} {'difference of losses':>24}")
    for block, seconds in median.items():
        apart = abs(float(results[block][0] / results[1][0]) - 1)
        print(f"{block:>5} {seconds:>9.3f} {median[1] / seconds:>7.2f} {apart:>24.1e}")
    best = min(median, key=median.__getitem__)
    rounded = {str(block): round(seconds, 4) for block, seconds in median.items()}
    print(json.dumps({"ratio": round(median[1] / median[best], 3), "block": best, "seconds": rounded}))


def gradient(judge: Discriminators):  # noqa: ANN201  (what jax.jit takes)
    """(variables, real, fake) -> (loss, gradients of the discriminators' parameters and of the fake wave)."""

    def loss(params, fake, spectral, real):  # noqa: ANN001, ANN202
        losses, _ = verdict(judge, params, spectral, real, fake)
        return sum(losses[name] for name in SCORED)

    return lambda variables, real, fake: jax.value_and_grad(loss, (0, 1))(
        variables["params"], fake, variables["spectral"], real
    )


if __name__ == "__main__":
    main()
