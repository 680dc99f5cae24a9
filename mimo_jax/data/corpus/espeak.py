"""The espeak-ng synthesiser as a pure function of its arguments (ctypes over the ``espeakng-loader`` package).

espeak-ng keeps state from one utterance to the next (the phase of its pitch flutter, two random generators behind
breath noise), so the same call gives other samples depending on what was spoken before, and ``espeak_Terminate`` does
not reset it. A corpus that must come out the same for any number of worker processes cannot live with that: the library
is unloaded and loaded afresh for every utterance, which costs under a millisecond.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from pathlib import Path

import numpy as np

SAMPLE_RATE = 22_050
"""Hz of everything that espeak-ng produces."""

LIMITS = {"rate": (80, 450), "pitch": (0, 99), "pitch_range": (0, 99), "volume": (0, 200)}
"""What each parameter may be; ``rate`` is in words per minute, the others on espeak-ng's own scales."""

_AUDIO_OUTPUT_SYNCHRONOUS = 2
_CHARS_UTF8 = 1
_POSITION_CHARACTER = 1
_PARAMETER_NUMBERS = {"rate": 1, "volume": 2, "pitch": 3, "pitch_range": 4}
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
_LOCK = threading.Lock()


class EspeakError(RuntimeError):
    """The synthesiser cannot be loaded or refuses a voice, a parameter or a text."""


def synthesize(
    text: str, voice: str = "en-us", rate: int = 175, pitch: int = 50, pitch_range: int = 50, volume: int = 100
) -> np.ndarray:
    """Speaks ``text``: float32 ``[samples]`` in [-1, 1] at 22,050 Hz.

    The samples depend on nothing but the arguments (and the version of the package). Calls from several threads take
    turns; use processes for speed. libc's ``rand`` is seeded by each call.

    Args:
      text: what to say.
      voice: an espeak-ng voice with an optional variant: ``en-us+f3``, ``en`` (British), ``en-gb-scotland+m2`` ...
      rate: words per minute.
      pitch: 0 to 99, 50 is the voice's own.
      pitch_range: 0 (monotone) to 99, 50 is natural.
      volume: 100 is natural; above, peaks may clip.

    Raises:
      EspeakError: unknown voice, parameter out of :data:`LIMITS`, empty text, or the package is not installed.
    """
    parameters = {"rate": rate, "volume": volume, "pitch": pitch, "pitch_range": pitch_range}
    for name, value in parameters.items():
        low, high = LIMITS[name]
        if not low <= value <= high:
            raise EspeakError(f"{name}={value} is outside espeak-ng's range of {low} to {high}")
    if not text.strip() or "\0" in text:
        raise EspeakError(f"cannot speak the text {text!r}")
    with _LOCK:
        library = _load()
        try:
            pcm = _speak(library, text, voice, parameters)
        finally:
            _unload(library)
    if not pcm:
        raise EspeakError(f"espeak-ng said nothing for the text {text!r} in the voice {voice!r}")
    return np.frombuffer(pcm, np.int16).astype(np.float32) / 32768.0


def _load() -> ctypes.CDLL:
    """A fresh copy of the library with every source of randomness at its start."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise EspeakError("the speech corpus needs the package espeakng-loader: pip install espeakng-loader") from error
    try:
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except OSError as error:
        raise EspeakError(f"cannot load the espeak-ng library: {error}") from error
    data = os.fsencode(espeakng_loader.get_data_path())
    if library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0) != SAMPLE_RATE:
        _unload(library)
        raise EspeakError(f"espeak-ng does not start with the data in {os.fsdecode(data)}")
    library.espeak_ng_SetRandSeed(ctypes.c_long(1))
    ctypes.CDLL(None).srand(ctypes.c_uint(1))
    return library


def _unload(library: ctypes.CDLL) -> None:
    import _ctypes

    library.espeak_Terminate()
    _ctypes.dlclose(library._handle)


@functools.cache
def _quick_name(voice: str) -> bytes | None:
    """The name under which espeak-ng finds a voice soonest ("gmw/en+f3"), or None if there is no such voice.

    A plain name makes it read some 300 voice files into an index, afresh each time; a path is opened directly, but is
    turned to lower case first, so that it only serves voices whose file name is lower case. Variants are checked here
    because espeak-ng itself ignores one that it does not know.
    """
    import espeakng_loader

    data = Path(espeakng_loader.get_data_path())
    language, plus, variant = voice.partition("+")
    if plus and not (data / "voices" / "!v" / variant).is_file():
        return None
    paths = [f"{file.parent.name}/{language}" for file in sorted((data / "lang").glob("*/*")) if file.name == language]
    return f"{paths[0] if paths and language.islower() else language}{plus}{variant}".encode()


def _speak(library: ctypes.CDLL, text: str, voice: str, parameters: dict[str, int]) -> bytes:
    chunks: list[bytes] = []

    @_CALLBACK
    def collect(samples, count: int, _events) -> int:  # noqa: ANN001 - ctypes pointers
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    library.espeak_SetSynthCallback(collect)
    name = _quick_name(voice)
    if name is None or library.espeak_SetVoiceByName(name) != 0:
        raise EspeakError(f"espeak-ng has no voice {voice!r}")
    for parameter, value in parameters.items():
        if library.espeak_SetParameter(_PARAMETER_NUMBERS[parameter], value, 0) != 0:
            raise EspeakError(f"espeak-ng refuses {parameter}={value}")
    encoded = text.encode() + b"\0"
    size = ctypes.c_size_t(len(encoded))
    if library.espeak_Synth(encoded, size, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None) != 0:
        raise EspeakError(f"espeak-ng refuses the text {text!r}")
    library.espeak_Synchronize()
    return b"".join(chunks)
