"""Preparation: a folder of recordings (or the built-in corpus) -> everything that training reads.

    python -m mimo_jax.prepare --manifest=DIR --codec=TOKENIZER_DIR --out=DIR
    python -m mimo_jax.prepare --manifest=DIR --out=DIR --only=text_tokenizer     # before there is an audio tokenizer

Stages: scan (broken files are counted, listed in quarantine.jsonl, skipped), text tokenizer, audio to codes, examples
of every task, packed rows. Interrupted at any moment and started again, it goes on and ends with the same bytes.
Options beyond the flags are gin bindings of ``prepare``: ``--gin_file=FILE --gin.prepare.contexts=[512,1024]``.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

from mimo_jax import cli
from mimo_jax.data import preparation, stages
from mimo_jax.data.all_formats import formats
from mimo_jax.data.formats import FormatOptions, Material
from mimo_jax.data.manifest import MANIFEST_NAME, Record, TextRecord, read_manifest, read_texts
from mimo_jax.data.prepared import MANIFEST, TEXT_TOKENIZER
from mimo_jax.data.sequence import Layout
from mimo_jax.data.text_tokenizer import TextTokenizer, train_text_tokenizer
from mimo_jax.files import write_text

SCHEMA_VERSION = 1
Only = Literal["scan", "text_tokenizer", "all"]
_OPTIONS = FormatOptions()
_LIMITS = preparation.Limits()


def _progress(iterable: Any, **kwargs: Any) -> Any:
    from tqdm import tqdm

    return tqdm(iterable, file=sys.stderr, **kwargs)


def _stat(root: pathlib.Path, record: Record) -> tuple[str, int, int]:
    """Name, size and time of a record's file: a mended file is looked at again."""
    try:
        found = (root / record.audio).stat()
    except (OSError, ValueError):
        return record.audio, -1, -1
    return record.audio, found.st_size, found.st_mtime_ns


@dataclasses.dataclass(frozen=True)
class _Input:
    """What the scan found."""

    key: str
    counts: dict[str, Any]
    records: list[Record]
    texts: list[TextRecord]


def _scan(
    manifest: pathlib.Path, out: pathlib.Path, subsets: Sequence[str], limits: preparation.Limits, workers: int | None
) -> _Input:
    folder = out / "scan"
    files, _, _ = preparation.parse_manifest(manifest)
    key = stages.fingerprint(
        "scan",
        stages.file_hash(manifest),
        sorted(subsets),
        dataclasses.asdict(limits),
        [_stat(manifest.parent, r) for r in files],
    )
    counts = stages.run_stage(
        folder,
        key,
        lambda: preparation.scan(manifest, folder, subsets=subsets, limits=limits, workers=workers, progress=_progress),
    )
    texts_file = manifest.parent / "texts.jsonl"
    texts = [t for t in read_texts(texts_file) if not subsets or t.subset in subsets] if texts_file.is_file() else []
    key = stages.fingerprint(key, [dataclasses.astuple(t) for t in texts])
    return _Input(key, counts, read_manifest(folder / MANIFEST_NAME) if counts["written"] else [], texts)


def _text_tokenizer(given: _Input, out: pathlib.Path, source: str | None, vocab_size: int) -> tuple[str, TextTokenizer]:
    folder = out / TEXT_TOKENIZER
    key = stages.fingerprint("text", given.key, vocab_size, stages.folder_hash(source) if source else None)

    def work() -> dict[str, Any]:
        material = Material(
            [r for r in given.records if r.split == "train"], [t for t in given.texts if t.split == "train"]
        )
        made = (
            TextTokenizer.load(source)
            if source
            else train_text_tokenizer(preparation.tokenizer_texts(material), vocab_size)
        )
        made.save(folder)
        return {"vocab_size": made.vocab_size}

    stages.run_stage(folder, key, work)
    return key, TextTokenizer.load(folder)


def _open_codec(codec: Any) -> Any:
    if not isinstance(codec, (str, pathlib.Path)):
        return codec
    from mimo_jax.inference.codec import AudioCodec

    return AudioCodec.load(codec)


def _layout(codec: Any, tokenizer: TextTokenizer, channels: int) -> Layout:
    """The layout for a codec: its codebooks' sizes are the empty ids."""
    sizes = getattr(codec, "codebook_sizes", None)
    default = Layout(tokenizer.special)
    if sizes is None:
        return default
    if len(sizes) < channels:
        raise ValueError(f"the audio tokenizer has {len(sizes)} codebooks; {channels} are asked for")
    return dataclasses.replace(default, empty_codes=tuple(int(n) for n in sizes[:channels]))


def _write_examples(
    given: _Input,
    codes: preparation.CodesStore,
    tokenizer: TextTokenizer,
    layout: Layout,
    tasks: Sequence[str],
    options: FormatOptions,
    out: pathlib.Path,
    per_shard: int,
) -> dict[str, Any]:
    known = formats()
    if unknown := [t for t in tasks if t not in known]:
        raise ValueError(f"unknown tasks {unknown}; known are {sorted(known)}")
    counts: dict[str, Any] = {}
    usable = [r for r in given.records if len(codes(r.id))]
    for split, material in _selections(usable, given.texts).items():
        for name in tasks or known:
            counts.setdefault(name, {})[split] = preparation.write_examples(
                known[name],
                material,
                split,
                codes,
                options,
                tokenizer,
                layout,
                out / name,
                per_shard=per_shard,
                progress=_progress,
            )
    return counts


def _selections(records: Sequence[Record], texts: Sequence[TextRecord]) -> dict[str, Material]:
    """Material of each split; held-out splits also apart by subset ("validation_core"), so that losses can be, too."""
    wanted: dict[str, tuple[str, str | None]] = {
        split: (split, None) for split in preparation.splits_of([*records, *texts])
    }
    subsets = sorted({r.subset for r in records})
    if len(subsets) > 1:
        wanted |= {f"{s}_{subset}": (s, subset) for s in list(wanted) if s != "train" for subset in subsets}

    def pick(items: Sequence[Any], split: str, subset: str | None) -> list[Any]:
        return [item for item in items if item.split == split and subset in (None, item.subset)]

    return {name: Material(pick(records, *key), pick(texts, *key)) for name, key in wanted.items()}


def prepare(
    manifest: str,
    out: str,
    codec: Any = None,
    text_tokenizer: str | None = None,
    vocab_size: int = 2048,
    tasks: Sequence[str] = (),
    contexts: Sequence[int] = (1024,),
    subsets: Sequence[str] = (),
    options: FormatOptions = _OPTIONS,
    limits: preparation.Limits = _LIMITS,
    channels: int = 8,
    chunk: int = 256,
    examples_per_shard: int = 8192,
    workers: int | None = None,
    only: Only = "all",
) -> dict[str, Any]:
    """Prepare a folder; see the module's text.

    Args:
        manifest: folder with ``manifest.jsonl`` (and ``texts.jsonl``), or the file.
        out: folder to write.
        codec: folder of an audio tokenizer in the released layout, or an object with ``encode``.
        text_tokenizer: folder of a text tokenizer to use instead of training one.
        vocab_size: of the text tokenizer that is trained.
        tasks: formats to write; none writes all.
        contexts: context lengths to pack for.
        subsets: parts of the corpus to use; none uses all.
        options: of the formats.
        limits: when a recording or the run is refused.
        channels: codebooks to keep.
        chunk: recordings per resumable part of the encoding.
        examples_per_shard: examples per record file.
        workers: decoding threads; default one per core.
        only: stop after the scan, or after the text tokenizer.

    Returns:
        The content of ``prepare.json`` (for ``only``: the counts of the scan).

    Raises:
        FileNotFoundError: no manifest.
        ValueError: no codec, unknown tasks, or codes that do not fit the layout.
        TooManyBadRecords: see `Limits`.
    """
    source, folder = pathlib.Path(manifest), pathlib.Path(out)
    source = source / MANIFEST_NAME if source.is_dir() else source
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such manifest")
    folder.mkdir(parents=True, exist_ok=True)
    given = _scan(source, folder, subsets, limits, workers)
    _print_scan(given.counts, folder)
    if only == "scan":
        return {"scan": given.counts}
    text_key, tokenizer = _text_tokenizer(given, folder, text_tokenizer, vocab_size)
    if only == "text_tokenizer":
        return {"scan": given.counts}
    if codec is None:
        raise ValueError("--codec is needed: the folder of a trained audio tokenizer")

    opened = _open_codec(codec)
    layout = _layout(opened, tokenizer, channels)
    identity = (
        stages.folder_hash(codec) if isinstance(codec, (str, pathlib.Path)) else getattr(codec, "fingerprint", "")
    )
    codes_key = stages.fingerprint("codes", given.key, identity, layout.empty_codes, chunk)
    codes_folder = folder / "codes"
    codes_counts = stages.run_stage(
        codes_folder,
        codes_key,
        lambda: preparation.encode_audio(
            given.records,
            folder / "scan",
            lambda: opened,
            layout,
            codes_folder,
            chunk=chunk,
            workers=workers,
            progress=_progress,
        ),
    )
    codes = preparation.CodesStore(codes_folder, given.records, chunk)

    fields = dataclasses.asdict(layout)
    examples_key = stages.fingerprint(
        "examples",
        SCHEMA_VERSION,
        codes_key,
        text_key,
        fields,
        sorted(tasks),
        dataclasses.asdict(options),
        examples_per_shard,
    )
    # Plans for other contexts, made on demand, belong to the examples they were made of.
    rows_key = stages.fingerprint("rows", examples_key)
    examples = stages.run_stage(
        folder / "examples",
        examples_key,
        lambda: _write_examples(
            given, codes, tokenizer, layout, tasks, options, folder / "examples", examples_per_shard
        ),
    )
    written = {task: {s: c["written"] for s, c in splits.items()} for task, splits in examples.items()}
    stages.run_stage(folder / "rows", rows_key, lambda: {})
    rows = preparation.write_all_rows(folder, written, contexts, layout.special.empty, _progress)
    return _finish(folder, given.counts, codes_counts, examples, rows, fields, tokenizer.vocab_size)


def _print_scan(counts: dict[str, Any], folder: pathlib.Path) -> None:
    total, written, filtered, bad = (counts[k] for k in ("in", "written", "filtered", "quarantined"))
    print(
        f"records: {total} in = {written} written + {filtered} filtered + {bad} quarantined {counts['reasons'] or ''}"
    )
    if bad:
        for line in (
            (folder / "scan" / "quarantine.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()[:20]
        ):
            print(f"  skipped: {line}")


def _finish(
    folder: pathlib.Path,
    scanned: dict[str, Any],
    codes: dict[str, Any],
    examples: dict[str, Any],
    rows: dict[str, Any],
    layout: dict[str, Any],
    vocab_size: int,
) -> dict[str, Any]:
    """Write quarantine.jsonl (all stages) and, last of all, prepare.json."""
    lost = [
        json.dumps(b, ensure_ascii=False) + "\n"
        for splits in examples.values()
        for c in splits.values()
        for b in c.get("bad", ())
    ]
    parts = [(folder / p / "quarantine.jsonl").read_text(encoding="utf-8") for p in ("scan", "codes")]
    write_text(folder / "quarantine.jsonl", "".join([*parts, *lost]))
    counted = {
        task: {s: {k: v for k, v in c.items() if k != "bad"} for s, c in splits.items()}
        for task, splits in examples.items()
    }
    for task, splits in counted.items():
        print(
            f"{task}: "
            + ", ".join(f"{s} {c['written']} ({c['text']} text + {c['audio']} audio)" for s, c in splits.items())
        )
    files = sorted(p for part in ("codes", "examples", "rows") for p in (folder / part).rglob("*") if _is_output(p))
    result = {
        "version": SCHEMA_VERSION,
        "layout": layout,
        "vocab_size": vocab_size,
        "examples": {task: {s: c["written"] for s, c in splits.items()} for task, splits in counted.items()},
        "counts": {
            "records": {
                "in": scanned["in"],
                "written": codes["written"],
                "filtered": scanned["filtered"],
                "quarantined": scanned["quarantined"] + codes["quarantined"],
                "reasons": scanned["reasons"],
            },
            "examples": counted,
        },
        "packing": rows,
        "hashes": {str(p.relative_to(folder)): stages.file_hash(p) for p in files},
    }
    write_text(folder / MANIFEST, stages.to_json(result))
    return result


def _is_output(path: pathlib.Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.suffix in (".npz", ".npy", ".array_record")


_FLAGS = {
    "manifest": "folder with manifest.jsonl (and texts.jsonl), or the file.",
    "out": "folder to write.",
    "codec": "folder of a trained audio tokenizer (released layout).",
    "text_tokenizer": "folder of a text tokenizer to use instead of training one.",
}


def _from_flags() -> None:
    import gin
    from absl import flags

    given = {name: value for name in (*_FLAGS, "only") if (value := flags.FLAGS[name].value) is not None}
    try:
        gin.get_configurable(prepare)(**given)
    except (FileNotFoundError, ValueError, TypeError, preparation.TooManyBadRecords) as error:
        raise cli.UserError(str(error)) from error


def main() -> None:
    """Command line; a flag wins over gin."""
    import gin
    from absl import flags

    for name, meaning in _FLAGS.items():
        flags.DEFINE_string(name, None, meaning)
    flags.DEFINE_enum("only", None, ["scan", "text_tokenizer", "all"], "stop after this stage.")
    # Registered by hand, so that --gin.prepare.NAME=value works without a gin file.
    for function in (prepare, _from_flags):
        gin.external_configurable(function, module="mimo_jax.prepare")
    cli.run(_from_flags)


if __name__ == "__main__":
    # gin files bind the functions of the module by its name, not those of __main__.
    from mimo_jax import prepare as _module

    _module.main()
