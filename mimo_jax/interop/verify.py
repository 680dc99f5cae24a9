"""Reference numbers against weights: runs a golden folder and prints, per array, error and tolerance.

The names of its output arrays alone decide what is run: an audio tokenizer, a language model, or its training loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mimo_jax.interop.configs import Folder
from mimo_jax.interop.golden import Computed, Golden, kind_of, read_golden

LEAKS = "padding of longer neighbours leaks into it in the reference"


def verify(weights: Folder, folder: Folder, write: Callable[[str], Any] = print) -> bool:
    """Runs a golden folder through weights.

    Args:
      weights: folder in the released layout.
      folder: the golden folder.
      write: takes the lines of the report.

    Returns:
      Whether every array is there and within its tolerance.

    Raises:
      UserError: unusable weights or an unusable golden folder.
    """
    golden = read_golden(folder)
    kind = kind_of(golden)
    compute: Callable[[Folder, Golden], Computed]
    if kind == "tokenizer":
        from mimo_jax.interop.verify_tokenizer import compute
    elif kind == "lm":
        from mimo_jax.interop.verify_lm import compute
    else:
        from mimo_jax.interop.verify_loss import compute
    write(f"{golden.folder}: {kind}, {len(golden.outputs)} arrays, weights {weights}")
    computed = compute(weights, golden)

    counts, in_part = {"ok": 0, "OFF": 0, "MISSING": 0, "not compared": 0}, 0
    for name in golden.outputs:
        verdict, detail = compare(name, computed, golden)
        counts[verdict] += 1
        in_part += verdict == "ok" and LEAKS in detail
        write(f"  {verdict:<12} {name:<64} {detail}")
    passed = not (counts["OFF"] or counts["MISSING"]) and counts["ok"] > 0
    parts = {"ok": f" ({in_part} of them in part)" if in_part else ""}
    summary = ", ".join(f"{count} {verdict}{parts.get(verdict, '')}" for verdict, count in counts.items())
    write(f"{'PASSED' if passed else 'FAILED'}: {summary}")
    return passed


def compare(name: str, computed: Computed, golden: Golden) -> tuple[str, str]:
    """(verdict, detail) of one array; the detail is `error / tolerance = share`.

    Masked entries (numpy.ma) are not compared: there, neighbours leak into each other in the reference.
    """
    if name not in computed.arrays:
        return "MISSING", computed.reason(name)
    expected, found = golden.outputs[name], np.ma.asarray(computed.arrays[name])
    if found.shape != expected.shape:
        return "OFF", f"shape {list(found.shape)}, expected {list(expected.shape)}"
    known = ~np.ma.getmaskarray(found)
    if known.size and not known.any():
        return "not compared", LEAKS
    if name not in golden.atol and name not in golden.rtol:
        return "MISSING", "tolerances.json has no number for it"
    relative = name in golden.rtol
    tolerance = golden.rtol[name] if relative else golden.atol[name]
    error = difference(found.data[known], expected[known], relative)
    part = "" if known.all() else f" ({known.mean():.0%} of it: {LEAKS})"
    share = f" = {error / tolerance:.3f}" if tolerance else ""
    return "ok" if error <= tolerance else "OFF", f"{error:.2e} / {tolerance:.2e}{share}{' relative' * relative}{part}"


def difference(found: np.ndarray, expected: np.ndarray, relative: bool) -> float:
    """Largest difference; equal elements (infinities too) count 0, NaN on one side counts infinite."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    same = (found == expected) | (np.isnan(found) & np.isnan(expected))
    with np.errstate(all="ignore"):
        error = np.abs(found - expected)
        error = error / np.abs(expected) if relative else error
    error = np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))
    return float(error.max(initial=0.0))
