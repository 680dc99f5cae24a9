"""Weights in and out: the released MiMo-Audio layout, plain Qwen2 language models, our training checkpoints.

    python -m mimo_jax.convert import --weights MiMo-Audio-7B-Base --out runs/base
    python -m mimo_jax.convert import --weights MiMo-7B-Base --audio_config MiMo-Audio-7B-Base --out runs/init
    python -m mimo_jax.convert export --model_dir runs/joint --text_tokenizer prepared/text_tokenizer --out exported
    python -m mimo_jax.convert export --weights exported --out exported_llm --llm_only --max_shard_gb 2
    python -m mimo_jax.convert export --weights exported --audio_tokenizer codec --stablehlo --out programs.zip
    python -m mimo_jax.convert export --model_dir runs/lora --out adapter --peft
    python -m mimo_jax.convert import --peft adapter --base exported --out runs/adapter
    python -m mimo_jax.convert t5x-import --checkpoint runs/t5x --out runs/base
    python -m mimo_jax.convert t5x-export --model_dir runs/joint --out for_t5x
    python -m mimo_jax.convert verify --weights exported --golden tests/golden/lm_tiny
    python -m mimo_jax.convert inspect --model mimo_audio_7b

`import` makes a checkpoint that a training run starts from (`--gin.INIT_FROM=...`); `export` makes a folder that this
package, the released code and (`--llm_only`) `transformers` load; both name every tensor that does not fit. A LoRA run
is exported merged into its base, or (`--peft`) as an adapter that PEFT loads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_jax.cli import UserError
from mimo_jax.interop.t5x import commands as t5x_commands

if TYPE_CHECKING:
    from mimo_jax.models.mimo_audio import MimoAudioConfig

PUBLISHED = ("mimo_audio_7b", "tokenizer_1b")
DTYPES = ("float32", "bfloat16", "float16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one subcommand; returns the exit code (2 = a mistake in the input, named in one message)."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mimo_jax.convert", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(
        required=True, metavar="import | export | t5x-import | t5x-export | verify | inspect"
    )

    command = commands.add_parser("import", help="released weights -> a checkpoint to start training from")
    command.set_defaults(run=_import)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", help="folder with safetensors files and config.json")
    source.add_argument("--peft", help="folder with a LoRA adapter as PEFT saves it (adapter_config.json)")
    command.add_argument("--base", help="with --peft: run or folder of the whole model that the adapter belongs to")
    command.add_argument("--out", required=True, help="MODEL_DIR to make; give it to a run as INIT_FROM")
    command.add_argument("--dtype", choices=DTYPES, help="of the parameters; default: as stored")
    command.add_argument("--empty_token_id", type=int, help="id of <|empty|>, where the folder has no text tokenizer")
    command.add_argument(
        "--audio_config",
        help="for a plain Qwen2-layout LLM: folder of a MiMo-Audio model whose config.json sizes the rest, "
        "which is initialised at random",
    )
    command.add_argument("--seed", type=int, default=0, help="of what is initialised at random")

    command = commands.add_parser("export", help="a checkpoint or a folder -> a folder in the released layout")
    command.set_defaults(run=_export)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--model_dir", help="MODEL_DIR of a training run")
    source.add_argument("--weights", help="folder in the released layout (to cut into other shards, or for --llm_only)")
    command.add_argument("--out", required=True, help="folder to write")
    command.add_argument("--text_tokenizer", help="folder whose text tokenizer files are added")
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of a language model's tensors (with --stablehlo: of the computation); default: as they are (float32)",
    )
    command.add_argument("--max_shard_gb", type=float, default=5.0, help="most gigabytes (1e9 bytes) per file")
    command.add_argument("--peft", action="store_true", help="of a LoRA run: the adapter alone, in the layout of PEFT")
    command.add_argument("--base", help="of a LoRA run: where its base is now; default: where it was")
    command.add_argument("--base_name", help="with --peft: what the adapter names as its base; default: its path")
    command.add_argument("--llm_only", action="store_true", help="only the LLM, in the layout of Qwen2")
    command.add_argument(
        "--stablehlo",
        action="store_true",
        help="one file with the programs encode, decode, prefill and decode_step as StableHLO (mimo_jax.interop."
        "stablehlo says how to call them) instead of weights; of --weights only config.json is read",
    )
    command.add_argument("--audio_tokenizer", help="with --stablehlo: folder of the audio tokenizer, for its programs")
    command.add_argument("--platforms", default="cpu,cuda,tpu", help="with --stablehlo: what the programs run on")
    for name, kind, what in (
        ("batch", int, "rows of every program"),
        ("seconds", float, "longest waveform"),
        ("codebooks", int, "that are encoded and decoded; default: those of the language model"),
        ("prompt", int, "positions of a prompt"),
        ("slots", int, "positions of prompt and answer together"),
    ):
        command.add_argument(f"--{name}", type=kind, help=f"with --stablehlo: {what}")

    t5x_commands.add(commands)

    command = commands.add_parser("verify", help="run reference numbers through weights; exit code 1 if any is off")
    command.set_defaults(run=_verify)
    command.add_argument("--weights", required=True, help="folder in the released layout")
    command.add_argument("--golden", required=True, help="folder with inputs.npz, outputs.npz and tolerances.json")

    command = commands.add_parser("inspect", help="parameter table of a model; nothing is loaded or allocated")
    command.set_defaults(run=_inspect)
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", help="folder with config.json")
    source.add_argument("--model", choices=PUBLISHED, help="a published model")
    command.add_argument("--tensors", action="store_true", help="every array with its shape, too")
    return parser


def _import(options: argparse.Namespace) -> None:
    from mimo_jax.interop import configs, hf, trained

    if options.peft:
        _import_adapter(options)
        return
    if options.base:
        raise UserError("--base: goes with --peft")
    trained.must_be_free(options.out)
    state: dict[str, Any]
    kind = configs.kind_of(configs.read_config(options.weights))
    if kind == "tokenizer":
        tokenizer, variables = hf.load_tokenizer(options.weights)
        state = {"params": {"tokenizer": variables.pop("params")}, "mutable": variables}
        values = tokenizer.to_dict()
    elif kind == "lm" or options.audio_config is not None:
        if kind == "lm":
            config, params = hf.load_lm(options.weights, dtype=options.dtype, empty_token_id=options.empty_token_id)
        else:
            config, params = _around_llm(options)
        state, values = {"params": params}, configs.lm_values(config, str(params["embed_tokens"].dtype))
    else:
        raise UserError(f"{options.weights}: a plain language model; name the rest of the model with --audio_config")
    trained.save_imported(options.out, state, values)
    print(f"{options.out}: {kind} of {options.weights}; start a run from it with --gin.INIT_FROM={options.out}")


def _import_adapter(options: argparse.Namespace) -> None:
    from mimo_jax.interop import peft

    if options.base is None or options.audio_config or options.dtype:
        raise UserError(
            "--peft: name the model it belongs to with --base; --audio_config and --dtype do not go with it"
        )
    peft.import_adapter(options.peft, options.base, options.out, options.empty_token_id)
    print(
        f"{options.out}: adapter of {options.peft} on {options.base}; export it, or go on from it as Lora.adapter_from"
    )


def _around_llm(options: argparse.Namespace) -> tuple[MimoAudioConfig, dict[str, Any]]:
    """(configuration, parameters) of MiMo-Audio: the LLM of `--weights`, the rest at random, of one dtype."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    from mimo_jax.interop import configs, hf
    from mimo_jax.models.layers import unbox
    from mimo_jax.models.mimo_audio import MimoAudio
    from mimo_jax.models.transformer import Compute

    shape = configs.llm_shape(configs.read_config(options.weights), options.weights)
    values = configs.read_config(options.audio_config)
    empty = options.empty_token_id
    if empty is None:
        empty = configs.empty_token_id(values, options.audio_config)
    config = dataclasses.replace(configs.lm_config(values, options.audio_config, empty), **shape)
    text = jnp.zeros((1, 1), jnp.int32)
    audio = jnp.zeros((1, 1, config.group_size, config.audio_channels), jnp.int32)
    llm = hf.load_llm(options.weights, config, dtype=options.dtype)
    compute = Compute(param_dtype=str(llm["embed_tokens"].dtype))

    def rest(key: jax.Array) -> dict[str, Any]:  # the LLM's random values are never made: nothing reads them
        params = unbox(MimoAudio(config, compute).init(key, text, audio)["params"])
        return {part: tree for part, tree in params.items() if part not in llm}

    return config, jax.jit(rest)(jax.random.key(options.seed)) | llm


def _export(options: argparse.Namespace) -> None:
    import math

    from mimo_jax.interop import configs, hf
    from mimo_jax.interop.trained import load_run
    from mimo_jax.training import lora

    if options.stablehlo:
        _export_programs(options)
        return
    if options.peft:
        _export_adapter(options)
        return
    if options.base_name or (options.base and options.weights):
        raise UserError("--base_name goes with --peft, --base with --model_dir")
    if not (math.isfinite(options.max_shard_gb) and options.max_shard_gb > 0):
        raise UserError(f"--max_shard_gb={options.max_shard_gb}: give a positive number of gigabytes")
    if options.weights and Path(options.out).resolve() == Path(options.weights).resolve():
        raise UserError(f"--out={options.out} is the folder that is read; name another")
    text_tokenizer, base = options.text_tokenizer, None
    if options.weights:
        base = configs.read_config(options.weights)
        kind, config, tree = _folder(options.weights, base)
        if text_tokenizer is None and kind != "tokenizer" and configs.has_text_tokenizer(options.weights):
            text_tokenizer = options.weights
    else:
        kind, config, tree = load_run(options.model_dir, options.base)
        adapter = lora.located(options.model_dir, options.base)
        if adapter is not None and (Path(adapter.base) / configs.CONFIG).is_file():  # what the base's folder has beside
            base = configs.read_config(adapter.base)
            if text_tokenizer is None and configs.has_text_tokenizer(adapter.base):
                text_tokenizer = adapter.base
    target: dict[str, Any] = {"max_shard_bytes": int(options.max_shard_gb * 1e9)}
    if kind == "tokenizer":
        if options.llm_only or options.dtype or options.text_tokenizer:
            raise UserError("--llm_only, --dtype, --text_tokenizer: for language models; this is an audio tokenizer")
        hf.save_tokenizer(options.out, config, tree, **target)
    else:
        target |= {"text_tokenizer_dir": text_tokenizer, "dtype": options.dtype}
        if options.llm_only or kind == "llm":
            hf.save_llm(options.out, config, tree, **target)
        else:
            hf.save_lm(options.out, config, tree, base_config=base, **target)
    print(f"{options.out}: written")


def _export_adapter(options: argparse.Namespace) -> None:
    from mimo_jax.interop import peft

    if not options.model_dir or options.llm_only or options.text_tokenizer:
        raise UserError("--peft goes with --model_dir, --base, --base_name and --dtype only")
    peft.export_run(options.model_dir, options.out, options.base, options.base_name, options.dtype)
    print(f"{options.out}: written")


def _folder(folder: str, values: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """(kind, configuration, tree) of a folder; the arrays are read one by one when they are written."""
    from mimo_jax.interop import configs, hf
    from mimo_jax.models.mimo_audio import MimoAudioConfig

    kind = configs.kind_of(values)
    if kind == "tokenizer":
        return kind, *hf.load_tokenizer(folder, lazily=True)
    if kind == "lm":
        return kind, *hf.load_lm(folder, lazily=True)
    config = MimoAudioConfig(**configs.llm_shape(values, folder), empty_token_id=0)
    return kind, config, hf.load_llm(folder, config, lazily=True)


def _export_programs(options: argparse.Namespace) -> None:
    from mimo_jax.interop import configs, stablehlo
    from mimo_jax.models.transformer import Compute

    if not options.weights or options.llm_only or options.text_tokenizer:
        raise UserError("--stablehlo goes with --weights and --audio_tokenizer only")
    models: dict[str, Any] = {}
    for folder in filter(None, (options.weights, options.audio_tokenizer)):
        values = configs.read_config(folder)
        kind = configs.kind_of(values)
        if kind == "tokenizer":
            model: Any = configs.tokenizer_config(values, folder)
        elif kind == "lm":
            model = configs.lm_config(values, folder, configs.empty_token_id(values, folder))
        else:
            raise UserError(f"{folder}: a plain language model, which has programs of its own elsewhere")
        if kind in models:
            raise UserError(f"{folder}: give one language model and one audio tokenizer, not two of a kind")
        models[kind] = model
    sizes = {name: getattr(options, name) for name in ("batch", "seconds", "codebooks", "prompt", "slots")}
    shapes = stablehlo.Shapes(**{name: size for name, size in sizes.items() if size is not None})
    dtype = options.dtype or "float32"
    platforms = options.platforms.split(",")
    names = stablehlo.save(options.out, **models, shapes=shapes, compute=Compute(dtype, dtype), platforms=platforms)
    print(f"{options.out}: {', '.join(names)} for {', '.join(platforms)}")


def _verify(options: argparse.Namespace) -> int:
    from mimo_jax.interop import verify

    return 0 if verify.verify(options.weights, options.golden) else 1


def _inspect(options: argparse.Namespace) -> None:
    from mimo_jax.interop import configs, hf
    from mimo_jax.models.mimo_audio import MimoAudioConfig
    from mimo_jax.models.tokenizer import TokenizerConfig

    if options.weights:
        values = configs.read_config(options.weights)
        kind, source = configs.kind_of(values), options.weights
    else:
        # The dataclasses' defaults are the published models.
        kind, source = ("tokenizer" if options.model == "tokenizer_1b" else "lm"), options.model
        values = {}
    if kind == "tokenizer":
        tokenizer = configs.tokenizer_config(values, source) if values else TokenizerConfig()
        variables = hf.tokenizer_shapes(tokenizer)
        tree = {
            **variables["params"],
            "codebooks": {k: v["embed"] for k, v in variables["codebooks"]["quantizer"].items()},
        }
    else:
        if kind == "llm":
            model = MimoAudioConfig(**configs.llm_shape(values, source), empty_token_id=0)
        else:
            model = configs.lm_config(values, source, values.get("empty_token_id", 0)) if values else MimoAudioConfig()
        tree = hf.lm_shapes(model)
        if kind == "llm":
            tree = {part: tree[part] for part in ("embed_tokens", "llm", "lm_head")}
    _print_table(source, tree, options.tensors)


def _print_table(title: str, tree: dict[str, Any], tensors: bool) -> None:
    import math

    from flax import traverse_util

    from mimo_jax.interop.safetensors_files import natural_order

    flat = {"/".join(path): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}
    totals: dict[str, int] = {}
    for name, leaf in flat.items():
        part = name.split("/")[0].rstrip("0123456789").rstrip("_")  # the tables and heads of all codebooks are one part
        totals[part] = totals.get(part, 0) + math.prod(leaf.shape)
    print(f"{title}: {sum(totals.values()) / 1e9:.3f} B parameters")
    if tensors:
        for name in sorted(flat, key=natural_order):
            print(f"  {name:<64} {list(flat[name].shape)!s:<24} {math.prod(flat[name].shape):>16,}")
    for part, count in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"  {part:<40} {count:>16,}  {100 * count / sum(totals.values()):5.1f} %")


if __name__ == "__main__":
    sys.exit(main())
