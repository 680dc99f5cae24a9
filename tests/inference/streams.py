"""What a stream gives piece by piece."""

import numpy as np


def streamed(process, whole, cuts=(), last_alone=False):
    """All that `process` gives for the parts of `whole` between cuts; the end comes with the last or by itself."""
    parts = np.split(whole, sorted(cuts))
    given = [process(part, last=not last_alone and i == len(parts) - 1) for i, part in enumerate(parts)]
    return np.concatenate([*given, process(last=True)]) if last_alone else np.concatenate(given)
