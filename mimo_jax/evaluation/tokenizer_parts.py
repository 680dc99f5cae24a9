"""The measured parts of a tokenizer: reconstructions by number of codebooks, use of the codebooks, speed."""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from mimo_jax.evaluation import speech_parts
from mimo_jax.evaluation.code_statistics import codebook_use, nominal_kbps
from mimo_jax.evaluation.codec_baselines import Baseline
from mimo_jax.evaluation.judge import Judge
from mimo_jax.evaluation.measured_tokenizer import TokenizerSystem
from mimo_jax.evaluation.parts import Part
from mimo_jax.evaluation.selection import Item
from mimo_jax.evaluation.speaker import SpeakerSimilarity
from mimo_jax.evaluation.systems import Wave


@dataclasses.dataclass(frozen=True)
class Referees:
    """What judges reconstructions.

    Attributes:
        recogniser: None leaves word and character error rates out.
        speaker: None leaves the similarity of voices out.
        workers: processes for PESQ; None takes one per core.
    """

    recogniser: Judge | None = None
    speaker: SpeakerSimilarity | None = None
    workers: int | None = None

    def judge(self, items: Sequence[Item], waves: Sequence[Wave], samples: speech_parts.Samples, task: str) -> Part:
        """Figures and items of reconstructions, see `speech_parts.judged`."""
        return speech_parts.judged(self.recogniser, items, waves, samples, task, self.workers, self.speaker)


def reconstructions(
    name: str,
    tokenizer: TokenizerSystem,
    counts: Sequence[int],
    items: Sequence[Item],
    samples: speech_parts.Samples,
    referees: Referees,
) -> Part:
    """``rows``: one per number of codebooks, decoded from the first columns of the same codes."""
    codes = tokenizer.encode([item.wave for item in items])
    rows = []
    for n in counts:
        decoded = tokenizer.decode([c[:, :n] for c in codes])
        part = referees.judge(items, decoded, samples, f"{name}-{n}")
        rows.append({"codebooks": n, "kbps": nominal_kbps(tokenizer.codebook_sizes[:n], tokenizer.frame_rate)} | part)
    return {"rows": rows}


def baseline_row(
    baseline: Baseline, rate: int, items: Sequence[Item], samples: speech_parts.Samples, referees: Referees
) -> Part:
    """``rows``: the one of a baseline, with the bits that it really made."""
    coded = baseline.run([item.wave for item in items], rate)
    part = referees.judge(items, coded.waves, samples, baseline.name)
    return {"rows": [{"kbps": baseline.kbps, "kbps_measured": coded.bits_per_second / 1000} | part]}


def code_use(tokenizer: TokenizerSystem, waves: Sequence[Wave]) -> Part:
    """How the codebooks are used over these waves."""
    codes = tokenizer.encode(waves)
    use = codebook_use(codes, tokenizer.codebook_sizes)
    return {
        "utterances": len(codes),
        "frames": sum(map(len, codes)),
        "codebooks": [dataclasses.asdict(u) for u in use],
    }


def speed(tokenizer: TokenizerSystem, waves: Sequence[Wave], repeats: int) -> Part:
    """Real-time factors (seconds of computing per second of audio) of all codebooks, warm: a batch, and one wave.

    On one device, however many there are; what the host does and the way to and from the device are in it.
    """
    result: dict[str, Any] = {"device": _device()}
    for name, chosen in (("batch", list(waves)), ("single", list(waves[:1]))):
        codes = tokenizer.encode(chosen)
        seconds = sum(map(len, chosen)) / tokenizer.sample_rate
        result[name] = {
            "waves": len(chosen),
            "seconds": seconds,
            "encode_rtf": _median_seconds(functools.partial(tokenizer.encode, chosen), repeats) / seconds,
            "decode_rtf": _median_seconds(functools.partial(tokenizer.decode, codes), repeats) / seconds,
        }
    return result


def _device() -> str:
    import jax

    device = jax.devices()[0]
    return f"cpu, {os.cpu_count()} cores" if device.platform == "cpu" else f"{device.platform} {device.device_kind}"


def _median_seconds(run: Callable[[], Any], repeats: int) -> float:
    """Of `repeats` runs after one that compiles."""
    run()
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)
