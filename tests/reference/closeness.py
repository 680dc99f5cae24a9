"""How near results in float32 must come to those in float64, and results in bfloat16 to those in float32."""

import numpy as np

# Share of the array's maximum, as the golden folders grant. Float32 against float64, measured: up to 3.0e-6 (waves).
TOLERANCE = 1e-5


def assert_close(name, found, expected, tolerance=TOLERANCE):
    found = np.asarray(found, np.float64)
    assert found.shape == np.shape(expected), name
    if found.size:
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error <= tolerance, f"{name}: error {error:.2e} of the maximum"


def assert_rounded(found, exact):
    """Measured 0.6 to 2.5 % of the norm, in layers of 8 bits of mantissa one after the other."""
    found, exact = np.asarray(found, np.float64), np.asarray(exact, np.float64)
    share = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert 1e-3 < share < 0.06, f"error {share:.2e} of the norm"
