"""Speech generation: our engine against the same model in PyTorch eager, on the same device in one run.

    python benchmarks/generate.py [--size small|tiny|7b] [--rounds 5] [--positions 60] [--prompt 32]

A model of random weights answers with speech, `positions` patches of it (6.25 are one second), alone and in a batch of
eight: our engine (`mimo_jax.inference.engine`) and `eager_torch`, transformers' Qwen2 layers in a loop over positions
and the patch decoder's steps. PyTorch has the same weights, through a folder in the released layout. That an answer is
speech is a matter of weights (`speaking_models.speaking_params`); no work is spared by it.

Codes are chosen as released for speech (temperature 0.9, top-p 0.95) and greedily; the text token is greedy, as in
speech continuation. First of all the greedy answers are compared, which must be equal but for choices between two codes
that are closer than float32 resolves.

A time is that of a whole call, prompt included. The contenders are measured in turns (the machine may not be quiet),
figures are medians; `CPU s` is the time that the process's threads computed, which others on the machine change less.
What the first call takes beyond a later one, above all to compile, is in a column of its own and in no other (greedy
and sampled answers share what is compiled). On a CPU both may use `threads` cores. PyTorch takes one thread where a
trial finds that faster: its products are small, and on cores that others use too, waiting for a second thread costs
more than it computes.

Further: the time to the first patch, and ours to the first sound (the vocoder waits for 40 mel frames); the audio
tokenizer's encoding and decoding of 30 s; and how near a position comes to the time that reading the weights and the
cache from the device's memory takes at least.

`small` has 21 M parameters in float32, `tiny` the 4 M of `gin/models/mimo_audio_tiny.gin`; `7b` has the released shapes
in bfloat16, for an accelerator. Prints tables and, as the last line, one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from speaking_models import (  # beside this file
    SIZES,
    Size,
    bandwidth_of,
    bytes_of_position,
    prompts,
    random_codec,
    speaking_params,
)

from mimo_jax.inference.codec import AudioCodec
from mimo_jax.inference.decoding import TASKS
from mimo_jax.inference.engine import Engine
from mimo_jax.inference.requests import Request, Result
from mimo_jax.inference.sampling import GREEDY, Sampling
from mimo_jax.inference.speech import streaming_decoder
from mimo_jax.interop import hf
from mimo_jax.models import cost
from mimo_jax.models.mimo_audio import MimoAudio, MimoAudioConfig
from mimo_jax.models.transformer import Compute

try:
    import torch
    from eager_torch import EagerMimoAudio  # beside this file

    HAS_TORCH = True
except ImportError:
    HAS_TORCH = False

PATCHES_PER_SECOND = 6.25
BATCHES = (1, 8)
DECODINGS: dict[str, Sampling] = {"sampled": TASKS["speech_to_speech"].audio, "greedy": GREEDY}
# A choice between two codes whose logits (of standard deviation 1) differ by less may go either way in float32.
RESOLUTION = 1e-4
AUDIO_SECONDS = 30
# Mel frames that the vocoder waits for: what `MimoAudio.stream` has unless told otherwise.
LOOKAHEAD = 40


# ----- contenders -----------------------------------------------------------------------------------------------------


class Ours:
    """The engine."""

    name = "ours"

    def __init__(
        self,
        config: MimoAudioConfig,
        params: dict[str, Any],
        dtype: str,
        positions: int,
        codec: AudioCodec | None = None,
    ) -> None:
        self.config, self.positions, self.codec = config, positions, codec
        self.engine = Engine(config, params, Compute(dtype=dtype, param_dtype=dtype))

    def requests(self, text: np.ndarray, audio: np.ndarray, sampling: Sampling) -> list[Request]:
        return [
            Request(t, a, audio_sampling=sampling, max_new=self.positions, seed=row)
            for row, (t, a) in enumerate(zip(text, audio, strict=True))
        ]

    def generate(self, text: np.ndarray, audio: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """Text ids [B, positions] and codes [B, positions, G, C]."""
        results: list[Result] = self.engine.generate(self.requests(text, audio, sampling))
        check_speech(self.config, np.stack([result.text for result in results]))
        return np.stack([result.text for result in results]), np.stack([result.codes for result in results])

    def first(self, text: np.ndarray, audio: np.ndarray, sampling: Sampling) -> None:
        """Until the first patch of an answer is on the host."""
        for update in self.engine.stream(self.requests(text, audio, sampling)[0], positions=1, first_patches=0):
            if len(update.codes):
                return

    def first_sound(self, text: np.ndarray, audio: np.ndarray, sampling: Sampling) -> None:
        """Until the first samples of an answer are on the host, as `MimoAudio.stream` gives them."""
        assert self.codec is not None
        decoder = streaming_decoder(self.codec, self.config.group_size, LOOKAHEAD)
        for update in self.engine.stream(self.requests(text, audio, sampling)[0]):
            if len(decoder(update.codes.reshape(-1, self.config.audio_channels))):
                return


class Eager:
    """PyTorch; `threads`: those of a CPU that it may use."""

    name = "PyTorch eager"

    def __init__(self, model: EagerMimoAudio, positions: int, threads: int) -> None:
        self.model, self.positions = model, positions
        self.threads = dict.fromkeys(BATCHES, threads)
        if model.empty.device.type == "cpu":
            self.threads = {rows: self._fastest(rows, sorted({1, threads})) for rows in BATCHES}

    def _fastest(self, rows: int, counts: Sequence[int]) -> int:
        """Number of threads with which a few positions of a batch take least."""
        text, audio = prompts(self.model.config, rows, 8)

        def trial(count: int) -> None:
            torch.set_num_threads(count)
            self.model.generate(text, audio, 4)

        trial(counts[0])
        seconds = medians_of({count: partial(trial, count) for count in counts}, rounds=3)
        return min(counts, key=lambda count: seconds[count].wall)

    def generate(self, text: np.ndarray, audio: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        """As `Ours.generate`."""
        torch.set_num_threads(self.threads[len(text)])
        ids, codes = self.model.generate(text, audio, self.positions, audio_sampling=sampling)
        check_speech(self.model.config, ids)
        return ids, codes

    def first(self, text: np.ndarray, audio: np.ndarray, sampling: Sampling) -> None:
        """As `Ours.first`."""
        torch.set_num_threads(self.threads[len(text)])
        _, codes = next(self.model.stream(text, audio, self.positions, audio_sampling=sampling))
        codes.cpu()


def check_speech(config: MimoAudioConfig, text: np.ndarray) -> None:
    """Raises RuntimeError where an answer is not speech throughout: the contenders' work would not be the same."""
    if (text != config.empty_token_id).any():
        raise RuntimeError("an answer holds text: the weights do not force speech")


def load_eager(
    config: MimoAudioConfig, params: dict[str, Any], dtype: str, options: argparse.Namespace
) -> Eager | None:
    """PyTorch's contender on jax's device, its weights from an exported folder; None where it cannot run."""
    device = jax.devices()[0]
    if not HAS_TORCH or device.platform == "tpu" or (device.platform == "gpu" and not torch.cuda.is_available()):
        print(f"PyTorch with transformers is missing, or does not run on {device.device_kind}", file=sys.stderr)
        return None
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        hf.save_lm(Path(folder), config, params)
        place = "cuda" if device.platform == "gpu" else "cpu"
        model = EagerMimoAudio.load(folder, config, place, getattr(torch, dtype))
    return Eager(model, options.positions, options.threads)


# ----- measuring ------------------------------------------------------------------------------------------------------

# What is timed: rows of the batch, "sampled", "greedy", "first patch" or "first sound", the contender.
Key = tuple[int, str, str]


def calls_of(contenders: Sequence[Ours | Eager], config: MimoAudioConfig, prompt: int) -> dict[Key, Callable[[], Any]]:
    """Everything that is timed; contenders are next to each other, so that they take turns."""
    calls: dict[Key, Callable[[], Any]] = {}
    for rows in BATCHES:
        text, audio = prompts(config, rows, prompt)
        for decoding, sampling in DECODINGS.items():
            for contender in contenders:
                calls[rows, decoding, contender.name] = partial(contender.generate, text, audio, sampling)
    text, audio = prompts(config, 1, prompt)
    for contender in contenders:
        calls[1, "first patch", contender.name] = partial(contender.first, text, audio, DECODINGS["sampled"])
        if isinstance(contender, Ours):
            calls[1, "first sound", contender.name] = partial(contender.first_sound, text, audio, DECODINGS["sampled"])
    return calls


class Spent(NamedTuple):
    """Seconds by the clock, and of all threads of this process together."""

    wall: float
    cpu: float


def spent_by(call: Callable[[], Any]) -> Spent:
    """What a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def medians_of(calls: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, Spent]:
    """Medians of what each call takes, all calls taking turns."""
    spent: dict[Any, list[Spent]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            spent[key].append(spent_by(call))
    return {key: Spent(*map(statistics.median, zip(*values, strict=True))) for key, values in spent.items()}


def compare_greedy(ours: Ours, eager: Eager, params: dict[str, Any], prompt: int) -> dict[str, Any]:
    """Whether greedy answers in float32 are equal, and how close the choice was where a row differs for the first time.

    Raises:
      RuntimeError: a difference that is none of rounding.
    """
    text, audio = prompts(ours.config, max(BATCHES), prompt)
    # Devices with matrix units may multiply float32 in fewer bits unless told otherwise (PyTorch does not).
    on_cpu = jax.default_backend() == "cpu"
    with contextlib.nullcontext() if on_cpu else jax.default_matmul_precision("highest"):
        mine, theirs = (contender.generate(text, audio, GREEDY)[1] for contender in (ours, eager))
    gaps = []
    for row in np.flatnonzero((mine != theirs).any((1, 2, 3))):
        position = int((mine[row] != theirs[row]).any((1, 2)).argmax())
        before = np.concatenate([audio[row], mine[row, :position]])
        ids = np.concatenate([text[row], np.full(position, ours.config.empty_token_id)])
        gaps.append(gap(ours.config, params, ids, before, mine[row, position], theirs[row, position]))
    if max(gaps, default=0.0) > RESOLUTION:
        raise RuntimeError(f"greedy answers differ where logits are {max(gaps):.2g} apart: the models are not the same")
    distinct = np.unique(mine.reshape(-1, *mine.shape[2:]), axis=0)
    return {"greedy_equal": not gaps, "greedy_gaps": gaps, "greedy_codes": mine.size, "greedy_patches": len(distinct)}


def gap(
    config: MimoAudioConfig, params: dict[str, Any], text: np.ndarray, audio: np.ndarray, a: np.ndarray, b: np.ndarray
) -> float:
    """Difference of the two logits where patches a and b [G, C] part, behind text [T] and audio [T, G, C]."""

    def logits(model: MimoAudio, text: jax.Array, audio: jax.Array, codes: jax.Array) -> list[jax.Array]:
        hidden, _ = model.backbone(model.embed(text, audio), jnp.arange(text.shape[1])[None])
        return model.patch_logits(model.local_hidden(hidden[:, -1]), codes)

    with jax.default_matmul_precision("highest"):
        scores = MimoAudio(config).apply({"params": params}, text[None], audio[None], a[None], method=logits)
    frame, book = min(np.argwhere(a != b), key=lambda at: at[0] + config.delay_pattern[at[1]])
    values = np.asarray(scores[book])[0, frame]
    return float(abs(values[a[frame, book]] - values[b[frame, book]]))


def tokenizer_speed(codec: AudioCodec, rounds: int) -> dict[str, float]:
    """Real-time factors of the audio tokenizer on one recording."""
    samples = AUDIO_SECONDS * codec.config.sampling_rate
    wave = 0.1 * np.random.default_rng(0).standard_normal(samples, np.float32)
    codes = codec.encode([wave], 8)
    calls = {"encode": lambda: codec.encode([wave], 8), "decode": lambda: codec.decode(codes)}
    calls["decode"]()
    return {f"{name}_x_real_time": AUDIO_SECONDS / spent.wall for name, spent in medians_of(calls, rounds).items()}


# ----- command line ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--positions", type=int, default=60, help="patches of an answer")
    parser.add_argument("--prompt", type=int, default=32, help="positions of a prompt, three quarters of them speech")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU, for each contender")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # both share a GPU's memory
    jax.config.update("jax_enable_compilation_cache", False)  # or the first calls would not show compilation
    device, asked = first_device(options.threads), options.size
    if options.size == "7b" and device.platform == "cpu":
        print("7b is too large for a CPU: shapes of `tiny` are measured, bytes of the 7b printed")
        options.size = "tiny"
    size = SIZES[options.size]
    config = size.model
    params = speaking_params(config, size.dtype)
    codec = random_codec(size.tokenizer)
    ours = Ours(config, params, size.dtype, options.positions, codec)
    eager = load_eager(config, params, size.dtype, options)
    contenders: list[Ours | Eager] = [ours] if eager is None else [ours, eager]
    calls = calls_of(contenders, config, options.prompt)
    first = {key: spent_by(call).wall for key, call in calls.items()}
    result: dict[str, Any] = {"size": options.size, "device": device.device_kind}
    if eager is not None:
        result |= verify(options, ours, eager, params)
    medians = medians_of(calls, options.rounds)
    count = sum(cost.parameters(config).values())
    print(
        f"{options.size}: {count / 1e6:.1f} M parameters, {size.dtype}, {device.device_kind}; answers of "
        f"{options.positions} patches to prompts of {options.prompt} positions"
    )
    if eager is not None:
        result |= {f"torch_threads_batch{rows}": count for rows, count in eager.threads.items()}
        print("threads of PyTorch: " + ", ".join(f"{n} at batch {rows}" for rows, n in eager.threads.items()))
    print_speed(medians, first, options.positions, result)

    result |= tokenizer_speed(codec, options.rounds)
    print(f"\naudio tokenizer, {AUDIO_SECONDS} s alone: ", end="")
    print(f"encode {result['encode_x_real_time']:.0f}, decode {result['decode_x_real_time']:.0f} x real time")
    print_bound(SIZES[asked], options, medians if asked == options.size else {}, result)
    print(json.dumps({name: rounded(value) for name, value in result.items()}))


def first_device(threads: int) -> jax.Device:
    """The device that jax prefers; a CPU with so many threads (jax has one for each core that the process may use)."""
    if not hasattr(os, "sched_setaffinity"):
        return jax.devices()[0]
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:threads])
    device = jax.devices()[0]
    if device.platform != "cpu":
        os.sched_setaffinity(0, cores)
    return device


def verify(options: argparse.Namespace, ours: Ours, eager: Eager, params: dict[str, Any]) -> dict[str, Any]:
    """`compare_greedy` of the measured model, or of `small` where that is not float32."""
    if SIZES[options.size].dtype != "float32":
        config = SIZES["small"].model
        params = speaking_params(config, "float32")
        ours = Ours(config, params, "float32", options.positions)
        other = load_eager(config, params, "float32", options)
        assert other is not None
        eager = other
    found = compare_greedy(ours, eager, params, options.prompt)
    if found["greedy_equal"]:
        outcome = "equal"
    else:
        gaps = ", ".join(f"{value:.1e}" for value in found["greedy_gaps"])
        outcome = f"{len(found['greedy_gaps'])} rows part at a tie (logits {gaps} apart), the others are equal"
    print(f"greedy answers, {found['greedy_codes']} codes in {found['greedy_patches']} different patches: {outcome}")
    return found


def print_speed(
    medians: Mapping[Key, Spent], first: Mapping[Key, float], positions: int, result: dict[str, Any]
) -> None:
    """The table of both contenders; its figures go into `result` too."""
    print(f"{'batch':>5} {'codes':<12} {'contender':<14} {'s':>7} {'CPU s':>7}", end="")
    print(f"{'positions/s':>13} {'x real time':>12} {'warm-up s':>11}")
    for (rows, what, name), spent in medians.items():
        ident = f"{'ours' if name == Ours.name else 'torch'}_batch{rows}_{what.replace(' ', '_')}"
        warm_up = max(0.0, first[rows, what, name] - spent.wall)
        figures = {"seconds": spent.wall, "cpu_seconds": spent.cpu, "warm_up_seconds": warm_up}
        rates = f"{'-':>13} {'-':>12}"
        if what in DECODINGS:
            rate = rows * positions / spent.wall
            figures |= {"positions_per_second": rate, "x_real_time": rate / PATCHES_PER_SECOND}
            rates = f"{rate:13.1f} {rate / PATCHES_PER_SECOND:12.2f}"
        result |= {f"{ident}_{figure}": value for figure, value in figures.items()}
        print(f"{rows:>5} {what:<12} {name:<14} {spent.wall:7.3f} {spent.cpu:7.3f}{rates} {warm_up:11.2f}")
    print()
    for (rows, what, name), mine in medians.items():
        theirs = medians.get((rows, what, Eager.name))
        if name == Eager.name or what == "first sound":  # eager has no streaming decoder
            continue
        ident = f"ratio_batch{rows}" + ("" if what == "sampled" else f"_{what.replace(' ', '_')}")
        result[ident] = theirs.wall / mine.wall if theirs else None
        result[f"{ident}_cpu"] = theirs.cpu / mine.cpu if theirs else None
        if theirs:
            print(f"PyTorch / ours, batch {rows}, {what}: {result[ident]:.2f}, CPU time {result[f'{ident}_cpu']:.2f}")


def print_bound(size: Size, options: argparse.Namespace, medians: Mapping[Key, Spent], result: dict[str, Any]) -> None:
    """How near a position comes to the time that reading its bytes takes."""
    bandwidth = bandwidth_of(jax.devices()[0])
    context = options.prompt + options.positions / 2
    for rows in BATCHES:
        size_bytes = bytes_of_position(size.model, size.dtype, rows, context)
        result[f"bytes_per_position_batch{rows}"] = size_bytes
        line = f"batch {rows}: a position reads at least {size_bytes / 1e6:.0f} MB"
        bound = share = None
        if bandwidth is None:
            line += f"; no memory bandwidth is known for {jax.devices()[0].device_kind}"
        else:
            bound = size_bytes / bandwidth
            line += f", {bound * 1e3:.2f} ms"
            if (rows, "sampled", Ours.name) in medians:
                share = bound / (medians[rows, "sampled", Ours.name].wall / options.positions)
                line += f", {share:.0%} of what it takes"
        print(line)
        result[f"bandwidth_bound_seconds_batch{rows}"] = bound
        result[f"bandwidth_share_batch{rows}"] = share


def rounded(value: Any) -> Any:
    """Floats with four digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
