"""Models that evaluation asks from outside, each named by a kind and a spec: `load`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from mimo_jax.cli import UserError
from mimo_jax.evaluation.plugins.base import (
    Judge,
    PluginError,
    SpeakerEmbedder,
    TextEmbedder,
    Transcriber,
    TranslationScorer,
)

__all__ = [
    "KINDS",
    "Judge",
    "PluginError",
    "SpeakerEmbedder",
    "TextEmbedder",
    "Transcriber",
    "TranslationScorer",
    "check",
    "load",
]

KINDS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "transcriber": {
            "fake:PATH.json": "fake.FakeTranscriber",
            "transformers:MODEL": "hub.HubTranscriber",
            "openai:BASE_URL#MODEL": "endpoint.EndpointTranscriber",
            "ctc:FOLDER": "local.CtcTranscriber",
        },
        "judge": {
            "fake:PATH.json": "fake.FakeJudge",
            "openai:BASE_URL#MODEL": "endpoint.EndpointJudge",
        },
        "text_embedder": {
            "fake:PATH.json": "fake.FakeTextEmbedder",
            "transformers:MODEL": "hub.HubTextEmbedder",
            "openai:BASE_URL#MODEL": "endpoint.EndpointTextEmbedder",
            "hashing": "local.HashingTextEmbedder",
        },
        "speaker_embedder": {
            "fake:PATH.json": "fake.FakeSpeakerEmbedder",
            "transformers:MODEL": "hub.HubSpeakerEmbedder",
            "builtin": "local.TimbreSpeakerEmbedder",
        },
        "translation_scorer": {
            "fake:PATH.json": "fake.FakeTranslationScorer",
            "comet:MODEL": "comet.CometScorer",
        },
    }
)
"""Kinds, the specs of each, and the classes behind them. The modules say what a spec's parts and options are."""


def load(kind: str, spec: str) -> Any:
    """A plug-in.

    Args:
      kind: "transcriber", "judge", "text_embedder", "speaker_embedder" or "translation_scorer"; the result has the
        interface `base` gives that kind.
      spec: one of those in `KINDS`, the parts in capitals filled in; ``?option=value&...`` may follow.

    Raises:
      UserError: no such kind or spec, or the spec names what does not exist or lacks its packages.
    """
    module, _, cls = _place(kind, spec).partition(".")
    plugin = getattr(importlib.import_module(f"{__name__}.{module}"), cls)
    _, colon, rest = spec.partition(":")
    return plugin(rest) if colon else plugin()


def check(kind: str, spec: str) -> None:
    """Raises what `load` does, as far as that is known before a model is loaded."""
    if _place(kind, spec).startswith(("fake.", "endpoint.")):
        load(kind, spec)


def _place(kind: str, spec: str) -> str:
    """Where a plug-in's class is."""
    if kind not in KINDS:
        raise UserError(f"no kind of plug-in {kind!r}; there are: {', '.join(KINDS)}")
    name, colon, rest = spec.partition(":")
    for form, place in KINDS[kind].items():
        form_name, form_colon, _ = form.partition(":")
        if name == form_name and bool(colon) == bool(form_colon) and bool(rest) == bool(form_colon):
            return place
    raise UserError(f"{kind}: no plug-in {spec!r}; there are: {', '.join(KINDS[kind])}")
