"""How much of the words an audio tokenizer keeps: a probe reads its frozen, quantised features.

    python -m mimo_jax.probe_tokenizer --gin_file=gin/runs/probe_tokenizer.gin --gin.MANIFEST=prepared/curated \
        --gin.TOKENIZERS="{'with text loss': 'export/a', 'without': 'export/b'}" --gin.OUT=probed

Every tokenizer gets the same probe, utterances, steps and seed. Prints a table and writes `probe.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mimo_jax import cli
from mimo_jax.evaluate_tokenizer import load_tokenizers, named_folders

if TYPE_CHECKING:
    from mimo_jax.evaluation.probe import ProbeTraining
    from mimo_jax.evaluation.probe_suite import ProbeOptions


def probe_tokenizer(
    *,
    manifest: str,
    out_dir: str,
    tokenizer: str = "",
    tokenizers: Mapping[str, str] | None = None,
    probes: Mapping[str, ProbeTraining] | None = None,
    options: ProbeOptions | None = None,
    mel: bool = True,
    batch_frames: int = 12288,
) -> dict[str, Any]:
    """Probes exported or imported tokenizers.

    Args:
      manifest: folder of a manifest with training and held-out splits.
      out_dir: results.
      tokenizer: folder of one tokenizer, or
      tokenizers: name -> folder of several.
      probes: name -> how it learns (default: a linear one, `ProbeTraining()`).
      options: how much (default `ProbeOptions()`).
      mel: probe the mel spectrogram, too, at the frame rate of the first tokenizer.
      batch_frames: mel frames that a tokenizer computes at a time; the bound of memory.

    Returns:
      The content of `probe.json`.

    Raises:
      UserError: a folder that is missing or no tokenizer, nothing to train on, nothing held out.
    """
    from mimo_jax.data.manifest_files import read_manifest
    from mimo_jax.data.stages import folder_hash
    from mimo_jax.evaluation import probe_suite
    from mimo_jax.evaluation.probe import ProbeTraining
    from mimo_jax.evaluation.tokenizer_suite import common_rate

    options = options or probe_suite.ProbeOptions()
    folders = named_folders(tokenizer, tokenizers)
    cli.require_folders(manifest, *folders.values())
    if mel and probe_suite.MEL in folders:
        raise cli.UserError(f"tokenizer {probe_suite.MEL!r}: use another name; this row is that of the spectrogram")
    loaded = load_tokenizers(folders, batch_frames)
    frame_rate = next(iter(loaded.values())).frame_rate
    try:
        rate = common_rate(loaded)
        sources = {name: probe_suite.quantized_features(name, t, options.codebooks) for name, t in loaded.items()}
        if mel:
            sources[probe_suite.MEL] = probe_suite.mel_features(rate, frame_rate)
        result = probe_suite.probe_all(
            sources,
            probes or {"linear": ProbeTraining()},
            read_manifest(manifest),
            manifest,
            rate,
            out_dir,
            options,
            {"tokenizers": {name: folder_hash(folder) for name, folder in folders.items()}, "manifest": str(manifest)},
        )
    except (ValueError, FileNotFoundError) as error:
        raise cli.UserError(str(error)) from error
    print(probe_suite.table(result))
    return result


if __name__ == "__main__":
    # gin binds the module's function, not the copy that `python -m` runs as __main__.
    from mimo_jax.probe_tokenizer import probe_tokenizer as configured

    cli.run(configured)
