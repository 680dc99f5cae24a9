"""What a save costs a run: how long training waits, how long the write takes, memory, and how long a restore takes.

    python benchmarks/checkpoint_saving.py [--gigabytes 1] [--saves 3] [--folder DIR]

Saves random float32 arrays of 64 MiB by `training.checkpoints`, one save after the other, and restores the last one.
Prints a line a save and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time

import jax

from mimo_jax.training.checkpoints import Checkpoints
from mimo_jax.training.meta import Meta

_SIDE = 4096


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the state")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", help="to write into; default: a temporary one")
    options = parser.parse_args()
    count = max(1, round(options.gigabytes * 1e9 / (4 * _SIDE**2)))
    key = jax.random.key(0)
    state = {f"w{i}": jax.random.normal(jax.random.fold_in(key, i), (_SIDE, _SIDE)) for i in range(count)}
    jax.block_until_ready(state)
    folder = tempfile.mkdtemp(dir=options.folder)
    try:
        checkpoints, saves = Checkpoints(folder), []
        for step in range(1, options.saves + 1):
            checkpoints.save({"params": state}, Meta(step=step))
            checkpoints.wait()
            saves.append(checkpoints.take_figures())
            print({name.removeprefix("checkpoint/"): round(value, 4) for name, value in saves[-1].items()})
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        start = time.monotonic()
        jax.block_until_ready(checkpoints.restore_latest({"params": target}))
        seconds = time.monotonic() - start
        checkpoints.close()
    finally:
        shutil.rmtree(folder)
    gigabytes = sum(array.nbytes for array in state.values()) / 1e9
    print(
        json.dumps(
            {"gigabytes": gigabytes, "device": jax.devices()[0].device_kind, "restore_s": seconds, "saves": saves}
        )
    )


if __name__ == "__main__":
    main()
