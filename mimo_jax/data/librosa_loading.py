"""librosa, loaded by one process of the machine at a time.

numba compiles many of librosa's functions when they are imported and keeps them in files beside the package. Processes
that fill these files at the same time, as workers of a preparation in a fresh environment would, leave a mixture of two
compilations: later processes then end with a segmentation fault in a function as plain as a local minimum.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import operator
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def compiling_alone() -> Iterator[None]:
    """While no other process of this user compiles with numba (in this context); not to be nested.

    Around the first call of whatever numba compiles only then.
    """
    path = Path(tempfile.gettempdir()) / f"mimo_jax-numba-{os.getuid()}.lock"
    with path.open("a") as file:  # not "w": nothing that lies there is to be emptied
        fcntl.flock(file, fcntl.LOCK_EX)  # goes with the file, however the process ends
        yield


@functools.cache
def load_librosa() -> Any:
    """The package, with everything that is compiled at import in place: take librosa from here."""
    with compiling_alone():
        import librosa

        package: Any = librosa  # whose parts mypy does not see: they are imported when they are first asked for
        for function in ("yin", "griffinlim", "filters.mel", "feature.mfcc", "feature.inverse.mel_to_stft"):
            operator.attrgetter(function)(package)
    return package
