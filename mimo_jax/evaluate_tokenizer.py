"""Measures audio tokenizers on held-out speech, at every number of codebooks, beside baselines and one another.

    python -m mimo_jax.evaluate_tokenizer --gin_file=gin/runs/evaluate_tokenizer.gin --gin.MANIFEST=prepared/curated \
        --gin.TOKENIZER=export/tokenizer --gin.OUT=measured
    ... --gin.TOKENIZERS="{'stage 1': 'export/stage1', 'stage 2': 'export/stage2'}" --gin.RECOGNISER=export/recogniser

Prints the tables and writes `metrics.json`, `report.html` (curves, audio players side by side), `samples/` and
`parts/`. Interrupted, it goes on with the first part that is not there yet.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_jax import cli

if TYPE_CHECKING:
    from mimo_jax.evaluation.codec_baselines import Baseline
    from mimo_jax.evaluation.judge import CtcJudge
    from mimo_jax.evaluation.measured_tokenizer import MeasuredTokenizer
    from mimo_jax.evaluation.speaker import SpeakerSimilarity
    from mimo_jax.evaluation.tokenizer_suite import TokenizerOptions


def evaluate_tokenizer(
    *,
    manifest: str,
    out_dir: str,
    tokenizer: str = "",
    tokenizers: Mapping[str, str] | None = None,
    recogniser_dir: str = "",
    speaker: SpeakerSimilarity | None = None,
    public_codecs: bool = True,
    griffin_lim_iterations: int = 32,
    batch_frames: int = 12288,
    options: TokenizerOptions | None = None,
    workers: int | None = None,
    title: str = "Audio tokenizers",
) -> dict[str, Any]:
    """Evaluates exported or imported tokenizers.

    Args:
      manifest: folder of a manifest with held-out splits.
      out_dir: results.
      tokenizer: folder of one tokenizer, or
      tokenizers: name -> folder of several.
      recogniser_dir: folder of an independent recogniser (`CtcJudge.save`); without it there are no error rates.
      speaker: speaker similarity of pairs of waves; without it there is no such column.
      public_codecs: measure the public codecs that can run here, too.
      griffin_lim_iterations: of the inversion of the first tokenizer's mel; 0 leaves it out.
      batch_frames: mel frames computed at a time; the bound of memory.
      options: how much is measured (default `TokenizerOptions()`).
      workers: processes for PESQ; None takes one per core.
      title: of the report.

    Returns:
      The content of `metrics.json`.

    Raises:
      UserError: a folder that is missing or no tokenizer, nothing held out, options that fit no tokenizer, a recogniser
        of another sample rate.
    """
    from mimo_jax.data.manifest_files import read_manifest
    from mimo_jax.data.stages import folder_hash
    from mimo_jax.evaluation import tokenizer_report
    from mimo_jax.evaluation.metrics import pesq_is_there
    from mimo_jax.evaluation.speaker import similarity_name
    from mimo_jax.evaluation.tokenizer_parts import Referees
    from mimo_jax.evaluation.tokenizer_suite import TokenizerOptions, common_rate, evaluate_tokenizers

    folders = named_folders(tokenizer, tokenizers)
    cli.require_folders(*filter(None, (manifest, recogniser_dir, *folders.values())))
    loaded = load_tokenizers(folders, batch_frames)
    baselines, notes = _baselines(next(iter(loaded.values())), public_codecs, griffin_lim_iterations)
    try:
        judge = _recogniser(recogniser_dir, common_rate(loaded)) if recogniser_dir else None
        result = evaluate_tokenizers(
            loaded,
            baselines,
            read_manifest(manifest),
            manifest,
            out_dir,
            options or TokenizerOptions(),
            Referees(judge, speaker, workers),
            identity={
                "tokenizers": {name: folder_hash(folder) for name, folder in folders.items()},
                "recogniser": folder_hash(recogniser_dir) if recogniser_dir else None,
                "speaker": similarity_name(speaker) if speaker is not None else None,
                "pesq": pesq_is_there(),
                "griffin_lim_iterations": griffin_lim_iterations,
                "manifest": str(manifest),
            },
            notes=[*notes, *_absent(judge is not None, speaker is not None)],
        )
    except (ValueError, FileNotFoundError) as error:
        raise cli.UserError(str(error)) from error
    _print_tables(result)
    command = shlex.join(["python", "-m", "mimo_jax.evaluate_tokenizer", *sys.argv[1:]])
    lead = f"{', '.join(folders)} on {manifest}"
    page = tokenizer_report.TokenizerReport(result, out_dir, title, lead, command)
    tokenizer_report.write_report(Path(out_dir) / "report.html", page)
    print(f"report: {Path(out_dir) / 'report.html'}")
    return result


def named_folders(tokenizer: str, tokenizers: Mapping[str, str] | None) -> dict[str, str]:
    """Name -> folder, whichever of the two ways was used.

    Raises:
      UserError: none or both, or a name that cannot be part of a file name.
    """
    if bool(tokenizer) == bool(tokenizers):
        raise cli.UserError("give one tokenizer (TOKENIZER=DIR) or several (TOKENIZERS=\"{'name': 'DIR', ...}\")")
    folders = dict(tokenizers or {"tokenizer": tokenizer})
    for name in folders:
        if not name or "/" in name or name.startswith("."):
            raise cli.UserError(f"tokenizer {name!r}: use another name; files are named after it")
    return folders


def load_tokenizers(folders: Mapping[str, str], batch_frames: int) -> dict[str, MeasuredTokenizer]:
    """The tokenizers of named folders."""
    from mimo_jax.evaluation.measured_tokenizer import MeasuredTokenizer

    return {name: MeasuredTokenizer.load(folder, batch_frames=batch_frames) for name, folder in folders.items()}


def _recogniser(folder: str, sample_rate: int) -> CtcJudge:
    from mimo_jax.evaluation.judge import CtcJudge

    judge = CtcJudge.load(folder)
    if judge.config.sample_rate != sample_rate:
        raise ValueError(
            f"{folder}: a recogniser of {judge.config.sample_rate} Hz cannot judge tokenizers of {sample_rate} Hz; "
            "train one at their rate, or leave it out"
        )
    return judge


def _baselines(
    tokenizer: MeasuredTokenizer, public_codecs: bool, griffin_lim_iterations: int
) -> tuple[list[Baseline], list[str]]:
    """(those to measure, what to say about the others)."""
    from mimo_jax.evaluation import codec_baselines

    found, notes = codec_baselines.public_codecs() if public_codecs else ([], ["Public codecs were left out."])
    if griffin_lim_iterations < 1:
        return found, [*notes, "Griffin-Lim was left out."]
    config = tokenizer.config
    inversion = codec_baselines.griffin_lim(
        sample_rate=config.sampling_rate,
        n_fft=config.nfft,
        hop_length=config.hop_length,
        window_length=config.window_size,
        n_mels=config.n_mels,
        fmin=config.fmin,
        fmax=config.fmax,
        iterations=griffin_lim_iterations,
    )
    return [inversion, *found], notes


def _print_tables(result: Mapping[str, Any]) -> None:
    from mimo_jax.evaluation import tokenizer_tables

    for section, rows in result["sections"].items():
        print(tokenizer_tables.section_text(section, rows, result["utterances"][section]), end="\n\n")
        if result["differences"][section]:
            print(tokenizer_tables.difference_text(section, result["differences"][section]), end="\n\n")
    print(tokenizer_tables.speed_text(result["tokenizers"]), *result["notes"], sep="\n")


def _absent(recogniser: bool, speaker: bool) -> Sequence[str]:
    """What the tables lack, and why."""
    from mimo_jax.evaluation.metrics import pesq_is_there

    notes = []
    if not pesq_is_there():
        notes.append("No PESQ: its package is not installed (it is built from source and needs a C compiler).")
    if not recogniser:
        notes.append("No error rates: no recogniser was given.")
    if not speaker:
        notes.append("No speaker similarity: no speaker embedding was given (evaluation.speaker says how to).")
    return notes


if __name__ == "__main__":
    # gin binds the module's function, not the copy that `python -m` runs as __main__.
    from mimo_jax.evaluate_tokenizer import evaluate_tokenizer as configured

    cli.run(configured)
