"""Differences between tokenizers over the same utterances: far surer than two means with intervals of their own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mimo_jax.evaluation import metrics

# Figures of which every utterance has a value, unless a measure is undefined for it.
PER_UTTERANCE = (*(field.name for field in dataclasses.fields(metrics.SpeechQuality)), "speaker_similarity")
Row = Mapping[str, Any]


def differences(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each tokenizer has more than the first, and random codebooks more than the tokenizer's own.

    Args:
        rows: of a section, as `tokenizer_suite` makes them, with their ``items``: the same utterances in each.

    Returns:
        Rows like those given, one per pair and number of codebooks that both have: each figure is the mean difference
        with its interval over utterances (paired bootstrap).
    """
    found = {(row["system"], row["codebooks"]): row for row in rows if "tokenizer" in row}
    own = list(dict.fromkeys(row["system"] for row in rows if row["kind"] == "tokenizer"))
    random = {row["system"]: row["tokenizer"] for row in rows if row["kind"] == "random"}
    pairs = [(name, own[0]) for name in own[1:]] + list(random.items())
    result = []
    for name, base in pairs:
        for n in (n for system, n in found if system == name and (base, n) in found):
            figures = _difference(found[name, n]["items"], found[base, n]["items"])
            result.append({"system": f"{name} - {base}", "codebooks": n, "figures": figures})
    return result


def _difference(items: Sequence[Row], base: Sequence[Row]) -> dict[str, Any]:
    """Estimates by figure, over the utterances for which both have a value."""
    pairs, estimates = list(zip(items, base, strict=True)), {}
    for name in PER_UTTERANCE:
        values = [(a.get(name), b.get(name)) for a, b in pairs]
        both = [a - b for a, b in values if a is not None and b is not None and np.isfinite(a - b)]
        if both:
            estimates[name] = metrics.mean_estimate(both)
    heard = [(a, b) for a, b in pairs if a["heard"] is not None and b["heard"] is not None]
    for name, errors in (("recogniser_wer", metrics.word_errors), ("recogniser_cer", metrics.character_errors)):
        counted = [(errors(a["reference"], a["heard"]), errors(b["reference"], b["heard"])) for a, b in heard]
        counted = [pair for pair in counted if pair[1][1]]
        if counted:
            mine, theirs = zip(*counted, strict=True)
            estimates[f"{name}_reconstruction"] = metrics.paired_difference(mine, theirs)
    return {name: estimate.as_dict() for name, estimate in estimates.items()}
