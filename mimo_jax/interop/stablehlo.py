"""The models as StableHLO: compiled functions in one file, for any runtime that reads it, without this package.

A file is a zip archive. `manifest.json` says what is in it; `<program>.bin` is a `jax.export` serialisation (StableHLO
with versioning, for all the platforms named) of a function whose first argument is the weights: they are not inside.

    encode       (variables, waveform f32 [B, S], samples i32 [B]) -> (codes i32 [B, T, n], frames i32 [B])
    decode       (variables, codes i32 [B, T, n], frames i32 [B]) -> (waveform f32 [B, T * samples per frame], samples)
    prefill      (params, text i32 [B, P], audio i32 [B, P, G, C]) -> caches
    decode_step  (params, caches, text i32 [B], audio i32 [B, G, C], position i32 [B], forbidden bool [B, V],
                  seed u32 [B], text_sampling, audio_sampling)
                 -> (text i32 [B], audio i32 [B, G, C], logits f32 [B, V], caches)

`caches` is a list with (keys, values) of every layer, `*_sampling` a dict {do_sample, temperature, top_k, top_p} of
arrays [B] (top_k 0 and top_p 0 = all tokens). Prompts are padded to P on the right with anything; what a padded
position leaves in the caches is overwritten before it is read. `decode_step` takes the newest element (at first the
prompt's last one, at its own position) and gives the next: a text id and, where that is `<|empty|>`, a patch.

    programs = stablehlo.load("programs.zip")
    codes, frames = programs["encode"].call(variables, waveform, samples)
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from mimo_jax.cli import UserError
from mimo_jax.files import replacing
from mimo_jax.inference import sampling
from mimo_jax.inference.programs import Programs
from mimo_jax.interop import hf
from mimo_jax.models import transformer
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.tokenizer import MimoAudioTokenizer, TokenizerConfig, frontend
from mimo_jax.models.transformer import Compute

Array = jax.Array
Tree = dict[str, Any]

FORMAT = 1
PLATFORMS = ("cpu", "cuda", "tpu")
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What is fixed when the programs are made.

    Attributes:
      batch: rows of every program.
      seconds: longest waveform of `encode`, and what `decode` makes.
      codebooks: that `encode` gives and `decode` takes; None = as many as the language model has, or all.
      prompt: positions of `prefill`.
      slots: positions of the caches, prompt and answer together.
    """

    batch: int = 1
    seconds: float = 30.0
    codebooks: int | None = None
    prompt: int = 512
    slots: int = 1024

    def __post_init__(self) -> None:
        if min(self.batch, self.prompt, self.slots) < 1 or not self.seconds > 0:
            raise UserError(f"{self}: every size must be positive")
        if self.prompt > self.slots:
            raise UserError(f"prompt = {self.prompt} positions do not fit into slots = {self.slots}")


def inference_params(params: Tree) -> Tree:
    """Parameters of the language model as the programs take them: layers one by one, not stacked."""
    stacked = ("llm", "patch_encoder", "patch_decoder")
    return {**params, **{name: transformer.unstack_layers(params[name]) for name in stacked}}


def save(
    path: str | os.PathLike[str],
    *,
    lm: MimoAudioConfig | None = None,
    tokenizer: TokenizerConfig | None = None,
    shapes: Shapes = Shapes(),
    compute: Compute = Compute(),
    platforms: Sequence[str] = PLATFORMS,
) -> list[str]:
    """Writes the programs of a language model, an audio tokenizer, or both; returns their names.

    Only shapes are traced: no weights are needed, and nothing of the models' size is allocated.

    Args:
      path: the file, replaced if it exists.
      lm, tokenizer: the models; at least one.
      shapes: sizes of arguments.
      compute: dtype of activations and caches (`dtype`), and of the weights that will be given (`param_dtype`).
      platforms: that the programs are lowered for, of "cpu", "cuda", "rocm", "tpu".

    Raises:
      UserError: no model, or sizes that do not fit each other.
    """
    functions: dict[str, tuple[Any, tuple[Any, ...]]] = {}
    models: dict[str, Any] = {}
    codebooks = shapes.codebooks
    if codebooks is None:
        codebooks = lm.audio_channels if lm else tokenizer.num_quantizers if tokenizer else 0
    if unknown := set(platforms) - {*PLATFORMS, "rocm"}:
        raise UserError(f"unknown platforms {', '.join(sorted(unknown))}: use {', '.join(PLATFORMS)} or rocm")
    if Path(path).is_dir():
        raise UserError(f"{path}: a folder; name a file to write")
    if tokenizer is not None:
        if not 1 <= codebooks <= tokenizer.num_quantizers:
            raise UserError(f"codebooks = {codebooks}: this tokenizer has 1..{tokenizer.num_quantizers}")
        functions |= _tokenizer_programs(tokenizer, compute, shapes, codebooks)
        models["tokenizer"] = tokenizer.to_dict() | {"codebooks": codebooks}
    if lm is not None:
        functions |= _lm_programs(lm, compute, shapes)
        models["lm"] = dataclasses.asdict(lm)
    if not functions:
        raise UserError("no programs to write: give a language model, an audio tokenizer, or both")

    manifest: dict[str, Any] = {
        "format": FORMAT,
        "jax": jax.__version__,
        "platforms": list(platforms),
        "compute": {"dtype": compute.dtype, "param_dtype": compute.param_dtype},
        "shapes": dataclasses.asdict(shapes),
        "models": models,
        "programs": {},
    }
    with replacing(Path(path)) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (function, arguments) in functions.items():
            exported = export.export(jax.jit(function), platforms=tuple(platforms))(*arguments)
            archive.writestr(f"{name}.bin", bytes(exported.serialize()))
            manifest["programs"][name] = {
                "file": f"{name}.bin",
                "arguments": [_signature(argument) for argument in arguments[1:]],
                "results": _signature(jax.eval_shape(function, *arguments)),
            }
        archive.writestr(MANIFEST, json.dumps(manifest, indent=2))
    return list(functions)


def read_manifest(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The contents of `manifest.json`.

    Raises:
      UserError: no such file, or not one that `save` wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = json.loads(archive.read(MANIFEST))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a file of exported programs ({error})") from error
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format {manifest.get('format')}; this version reads {FORMAT}: export it again")
    return manifest


def load(path: str | os.PathLike[str]) -> dict[str, export.Exported]:
    """The programs of a file by name; `.call(*arguments)` runs one on the default device, also inside `jax.jit`.

    Raises:
      UserError: no such file, or not one that `save` wrote.
    """
    manifest = read_manifest(path)
    with zipfile.ZipFile(path) as archive:
        return {
            name: export.deserialize(bytearray(archive.read(program["file"])))
            for name, program in manifest["programs"].items()
        }


def _signature(tree: Any) -> Any:
    """Shapes and dtypes of a tree, as JSON."""
    if isinstance(tree, Mapping):
        return {name: _signature(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_signature(value) for value in tree]
    return f"{tree.dtype}{list(tree.shape)}"


def _array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _tokenizer_programs(
    config: TokenizerConfig, compute: Compute, shapes: Shapes, codebooks: int
) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    model = MimoAudioTokenizer(config, compute)

    def encode(variables: Tree, waveform: Array, samples: Array) -> tuple[Array, Array]:
        mel, lengths = frontend.log_mel(waveform, samples, config)
        return model.apply(variables, mel, lengths, codebooks, method="encode")

    def decode(variables: Tree, codes: Array, frames: Array) -> tuple[Array, Array]:
        return model.apply(variables, codes, frames, method="decode")

    variables = hf.tokenizer_shapes(config)
    variables["params"] = _stored(variables["params"], compute)
    samples = round(shapes.seconds * config.sampling_rate)
    lengths = _array("int32", shapes.batch)
    given = (_array("float32", shapes.batch, samples), lengths)
    codes, _ = jax.eval_shape(encode, variables, *given)
    return {"encode": (encode, (variables, *given)), "decode": (decode, (variables, codes, lengths))}


def _lm_programs(config: MimoAudioConfig, compute: Compute, shapes: Shapes) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    programs, llm = Programs(config, compute, shapes.prompt), config.llm
    batch, group, channels = shapes.batch, config.group_size, config.audio_channels
    cache_shape = (batch, llm.num_kv_heads, shapes.slots, llm.head_dim)

    def prefill(params: Tree, text: Array, audio: Array) -> transformer.LayerCaches:
        empty = [(jnp.zeros(cache_shape, compute.dtype),) * 2 for _ in range(llm.num_layers)]
        positions = jnp.broadcast_to(jnp.arange(shapes.prompt), text.shape)
        return programs.backbone(params, text, audio, positions, empty)[1]

    def decode_step(
        params: Tree,
        caches: transformer.LayerCaches,
        text: Array,
        audio: Array,
        position: Array,
        forbidden: Array,
        seed: Array,
        text_sampling: dict[str, Array],
        audio_sampling: dict[str, Array],
    ) -> tuple[Array, Array, Array, transformer.LayerCaches]:
        hidden, caches = programs.backbone(params, text[:, None], audio[:, None], position[:, None], caches)
        logits = programs.apply(params, hidden[:, 0], method="text_logits")
        # The engine's bits: the same request gives the same answer in both.
        bits = sampling.choice_bits(seed, position + 1, 1 + group * channels)
        token = sampling.choose(logits, forbidden, sampling.Settings(**text_sampling), bits[:, 0])
        speaks = token == config.empty_token_id
        codes = programs.speak(params, hidden[:, 0], speaks, sampling.Settings(**audio_sampling), bits[:, 1:])
        return token, codes, logits.astype(jnp.float32), caches

    params = jax.eval_shape(inference_params, _stored(hf.lm_shapes(config), compute))
    caches = [(_array(compute.dtype, *cache_shape),) * 2 for _ in range(llm.num_layers)]
    row = _array("int32", batch)
    chosen = {
        "do_sample": _array("bool", batch),
        "temperature": _array("float32", batch),
        "top_k": row,
        "top_p": _array("float32", batch),
    }
    prompt = (_array("int32", batch, shapes.prompt), _array("int32", batch, shapes.prompt, group, channels))
    newest = (row, _array("int32", batch, group, channels), row)
    options = (_array("bool", batch, config.vocab_size), _array("uint32", batch), chosen, chosen)
    return {
        "prefill": (prefill, (params, *prompt)),
        "decode_step": (decode_step, (params, caches, *newest, *options)),
    }


def _stored(shapes: Tree, compute: Compute) -> Tree:
    return jax.tree.map(lambda leaf: _array(compute.param_dtype, *leaf.shape), shapes)
