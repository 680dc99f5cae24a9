"""Measures a trained chain on held-out speech and writes metrics.json, parts/ and samples/.

    python -m mimo_jax.evaluate_chain --gin_file=RUN_FILE.gin

The run file binds the arguments of `evaluate` below (`evaluate.lm_dir = "..."` and so on).

Interrupted, it goes on with the first part that is not there yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimo_jax import cli
from mimo_jax.evaluation.suite import HeldOutLosses, SuiteOptions, evaluate_chain
from mimo_jax.inference.sampling import Sampling


def evaluate(
    *,
    recogniser_dir: str,
    tokenizer_dir: str,
    corpus_dir: str,
    out_dir: str,
    lm_dir: str | None = None,
    prepared_dir: str | None = None,
    options: SuiteOptions | None = None,
    loss_mixtures: Mapping[str, Any] | None = None,
    loss_split: str = "validation",
    loss_batch_size: int = 8,
    loss_context: int = 256,
    audio_sampling: Sampling | None = None,
    identity: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Evaluates exported folders on a corpus.

    Args:
      recogniser_dir: folder of the independent recogniser (`CtcJudge.save`).
      tokenizer_dir: exported audio tokenizer.
      corpus_dir: folder of a manifest with held-out splits.
      out_dir: results.
      lm_dir: exported language model; without it only the tokenizer is measured.
      prepared_dir: prepared folder for the held-out losses; without it they are left out.
      options: how much is measured (default `SuiteOptions()`).
      loss_mixtures: name -> mixture (name or `Mixture`) of the held-out losses; the first gives the top-level figures.
      loss_split: held-out rows of the losses; "validation_core" are those of one subset.
      loss_batch_size, loss_context: shape of the rows for the losses.
      audio_sampling: how the model draws codes when it speaks; None = as the released inference code does.
      identity: what else decides the figures, for instance the hash of the checkpoints.

    Returns:
      The content of `metrics.json`.
    """
    from mimo_jax.data.manifest_files import read_manifest
    from mimo_jax.evaluation.adapters import load_systems

    cli.require_folders(*filter(None, (recogniser_dir, tokenizer_dir, corpus_dir, lm_dir, prepared_dir)))
    systems = load_systems(recogniser_dir, tokenizer_dir, lm_dir, audio_sampling)
    losses = None
    if lm_dir and prepared_dir:
        mixtures = loss_mixtures or {"joint": "joint"}
        losses = load_losses(lm_dir, prepared_dir, mixtures, loss_split, loss_batch_size, loss_context)
    decisive = {**(identity or {}), "audio_sampling": str(audio_sampling or "released defaults")}
    return evaluate_chain(
        systems, read_manifest(corpus_dir), Path(corpus_dir), out_dir, options or SuiteOptions(), losses, decisive
    )


def load_losses(
    lm_dir: str, prepared_dir: str, mixtures: Mapping[str, Any], split: str, batch_size: int, context: int
) -> HeldOutLosses:
    """One pass over the held-out rows of each mixture, with the exported language model's losses."""
    import jax

    from mimo_jax.data.loader import held_out_sources
    from mimo_jax.interop import hf
    from mimo_jax.objectives.language_model import LanguageModelObjective

    config, params = hf.load_lm(lm_dir)
    objective = LanguageModelObjective(config)
    compiled = jax.jit(lambda p, batch: objective.evaluate(p, {}, batch))
    sources = held_out_sources(prepared_dir, mixtures, batch_size, context, split, repeat=False)
    return HeldOutLosses(lambda batch: compiled(params, dict(batch)), sources, config.empty_token_id)


if __name__ == "__main__":
    # gin binds the module's function, not the copy that `python -m` runs as __main__.
    from mimo_jax.evaluate_chain import evaluate as configured_evaluate

    cli.run(configured_evaluate)
