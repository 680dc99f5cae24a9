"""Peak host memory of importing and exporting a large checkpoint, and whether its bytes come back unchanged.

    python benchmarks/checkpoint_memory.py [--billions 2] [--shard_gb 1] [--folder DIR]

Makes a random MiMo-Audio checkpoint in bfloat16 (the published shape with fewer LLM layers, written tensor by tensor),
runs `mimo_jax.convert import` and `export` on it as processes of their own, and samples their memory. Needs three times
the checkpoint on disk, and memory for it once. Prints a table and, as the last line, one JSON object.

`beyond target` is the peak of anonymous memory less that of the same command on a tiny model (the interpreter and its
libraries) and less the arrays that the command is to hold (all of them for import to one CPU device, none for export);
`ratio` is that over one shard file.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from flax import traverse_util

from mimo_jax.interop import configs, hf, names
from mimo_jax.interop.safetensors_files import WeightFolder, write_folder, write_json
from mimo_jax.models.mimo_audio import MimoAudioConfig

RUN_GIN = """
from __gin__ import dynamic_registration
from mimo_jax import train as train_script
from mimo_jax.models import mimo_audio
from mimo_jax.objectives import language_model
train_script.train.objective = @language_model.LanguageModelObjective()
language_model.LanguageModelObjective.model = @mimo_audio.MimoAudioConfig()
"""


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=2.0, help="parameters, about")
    parser.add_argument("--shard_gb", type=float, default=1.0, help="gigabytes (1e9 bytes) per file")
    parser.add_argument("--folder", help="where to work; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = measure(Path(folder), options.billions, int(options.shard_gb * 1e9))
    for row in result["rows"]:
        print("  ".join(f"{value:>14}" for value in row))
    del result["rows"]
    print(json.dumps(result))


def measure(folder: Path, billions: float, shard_bytes: int) -> dict:
    """Writes, imports, exports, compares."""
    tiny = MimoAudioConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, local_dim=64, input_local_dim=64, local_ffn_dim=64, local_layers=1,
        input_local_layers=1, local_attn_heads=2, empty_token_id=0,
    )  # fmt: skip
    base = travel(folder / "tiny", tiny, shard_bytes)
    config = shape(billions)
    found = travel(folder / "large", config, shard_bytes)
    size, shard = found.checkpoint_bytes, found.shard_bytes
    beyond_import = found.import_peak - base.import_peak - size
    beyond_export = found.export_peak - base.export_peak
    gb = lambda n: f"{n / 1e9:.2f} GB"  # noqa: E731
    return {
        "rows": [
            ("", "peak", "target arrays", "beyond target", "ratio", "seconds"),
            (
                "import",
                gb(found.import_peak),
                gb(size),
                gb(beyond_import),
                f"{beyond_import / shard:.2f}",
                f"{found.import_seconds:.0f}",
            ),
            (
                "export",
                gb(found.export_peak),
                gb(0),
                gb(beyond_export),
                f"{beyond_export / shard:.2f}",
                f"{found.export_seconds:.0f}",
            ),
        ],
        "parameters": size // 2,
        "checkpoint_bytes": size,
        "shard_bytes": shard,
        "tiny_import_peak_bytes": base.import_peak,
        "tiny_export_peak_bytes": base.export_peak,
        "largest_stacked_bytes": largest_stacked(config),
        "import_peak_bytes": found.import_peak,
        "export_peak_bytes": found.export_peak,
        "import_ratio": round(beyond_import / shard, 3),
        "export_ratio": round(beyond_export / shard, 3),
        "bytes_equal": found.equal and base.equal,
    }


@dataclasses.dataclass(frozen=True)
class Journey:
    """What it took to bring a checkpoint in and out."""

    checkpoint_bytes: int
    shard_bytes: int
    import_peak: int
    import_seconds: float
    export_peak: int
    export_seconds: float
    equal: bool


def travel(folder: Path, config: MimoAudioConfig, shard_bytes: int) -> Journey:
    """Random released folder -> training checkpoint -> released folder."""
    weights, run, again = folder / "released", folder / "run", folder / "again"
    write_random(weights, config, shard_bytes)
    sizes = [path.stat().st_size for path in weights.glob("*.safetensors")]
    convert = [sys.executable, "-m", "mimo_jax.convert"]
    # The id of <|empty|> stands in config.json.
    import_peak, import_seconds = peak([*convert, "import", f"--weights={weights}", f"--out={run}"])
    give_configuration(run, config)
    hashes = tensor_hashes(weights)
    shutil.rmtree(weights)
    command = [*convert, "export", f"--model_dir={run}", f"--out={again}", f"--max_shard_gb={shard_bytes / 1e9}"]
    export_peak, export_seconds = peak(command)
    equal = tensor_hashes(again) == hashes
    shutil.rmtree(folder)
    return Journey(sum(sizes), max(sizes), import_peak, import_seconds, export_peak, export_seconds, equal)


def shape(billions: float) -> MimoAudioConfig:
    """The published model with the number of LLM layers that comes nearest to the size wanted."""

    def count(layers: int) -> int:
        shapes = hf.lm_shapes(MimoAudioConfig(num_hidden_layers=layers))
        return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in traverse_util.flatten_dict(shapes).values())

    layers = round((billions * 1e9 - count(1)) / (count(2) - count(1))) + 1
    return MimoAudioConfig(num_hidden_layers=max(1, layers))


def largest_stacked(config: MimoAudioConfig) -> int:
    """Bytes of the largest array in bfloat16, layers stacked."""
    leaves = traverse_util.flatten_dict(hf.lm_shapes(config)).values()
    return max(2 * int(np.prod(leaf.shape, dtype=np.int64)) for leaf in leaves)


def write_random(folder: Path, config: MimoAudioConfig, shard_bytes: int) -> None:
    """A released-layout folder of random values between 2^-8 and 2^-6, of either sign."""
    folder.mkdir(parents=True)
    flat = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(hf.lm_shapes(config)).items()}
    dtype = np.dtype(ml_dtypes.bfloat16)
    tensors = {
        tensor: (row.official_shape(flat[row.path]), dtype) for row in names.lm_rows(config) for tensor in row.tensors
    }
    rng = np.random.default_rng(0)

    def fetch(name: str) -> np.ndarray:
        bits = rng.integers(0, 2**16, size=tensors[name][0], dtype=np.uint16)
        return ((bits & 0x80FF) | 0x3B00).view(dtype)

    write_folder(folder, tensors, fetch, shard_bytes)
    write_json(folder / "config.json", configs.lm_values(config, "bfloat16"))


def tensor_hashes(folder: Path) -> dict[str, str]:
    """Digest of every tensor."""
    weights = WeightFolder(folder)
    return {name: hashlib.blake2b(weights.read(name).tobytes()).hexdigest() for name in weights.shapes}


def give_configuration(run: Path, config: MimoAudioConfig) -> None:
    """Puts into an imported checkpoint the gin text that a training run would have left there."""
    path = run / "checkpoints" / "0" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    fields = "".join(f"mimo_audio.MimoAudioConfig.{name} = {value!r}\n" for name, value in vars(config).items())
    path.write_text(json.dumps(meta | {"config": RUN_GIN + fields}))


def peak(command: list[str]) -> tuple[int, float]:
    """(largest anonymous memory of a process in bytes, its seconds); file pages in the page cache do not count."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        if "RssAnon" in fields:
            most = max(most, sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem")))
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"failed with {process.returncode}: {' '.join(command)}")
    return most, time.perf_counter() - start


if __name__ == "__main__":
    main()
