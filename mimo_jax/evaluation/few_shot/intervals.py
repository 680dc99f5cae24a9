"""How sure a share is."""

from __future__ import annotations

import math


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of `count` trials (95 % with z = 1.96); (0, 1) without trials."""
    if count == 0:
        return 0.0, 1.0
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
