"""Preparation: recordings and texts -> everything that training reads.

    python -m mimo_jax.prepare --source=DIR --codec=TOKENIZER_DIR --out=DIR
    python -m mimo_jax.prepare --source=DIR --out=DIR --only=text_tokenizer     # before there is an audio tokenizer

What a source may be is told in docs/sources.md: a folder with manifest.jsonl, tar shards, parquet files, Kaldi lists,
conversations. Its shards go through two passes, *curate* (stages that check, cut, score and select) and *encode* (audio
to codes); then come the text tokenizer, the examples of every task, and packed rows. Interrupted at any moment and
started again, it goes on and ends with the same bytes; what is broken is listed in quarantine.jsonl and skipped.
Options beyond the flags are gin bindings of ``prepare``: ``--gin_file=FILE --gin.prepare.contexts=[512,1024]``.
"""

import dataclasses
import functools
import json
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any, Literal

from mimo_jax import cli
from mimo_jax.data import prepared, stages
from mimo_jax.data.formats import FormatOptions
from mimo_jax.data.sequence import Layout
from mimo_jax.data.text_tokenizer import TextTokenizer, train_text_tokenizer
from mimo_jax.files import replacing, write_text
from mimo_jax.preparation import codes, curated, examples, shards, texts
from mimo_jax.preparation.accounts import Account, Limits, TooManyBadRecords
from mimo_jax.preparation.chain import identity
from mimo_jax.preparation.elements import Stage, StageFault
from mimo_jax.preparation.runner import LocalRunner, Runner, WorkerDied, locked, progress_bar, run_jobs
from mimo_jax.preparation.sources.base import SourceError
from mimo_jax.preparation.sources.opening import open_source
from mimo_jax.preparation.stages.decode import Decode
from mimo_jax.preparation.stages.subsets import KeepSubsets
from mimo_jax.preparation.stages.text_checks import CheckText

SCHEMA_VERSION = 2
Only = Literal["curate", "text_tokenizer", "all"]
_OPTIONS = FormatOptions()
_LIMITS = Limits()
_CURATE: tuple[Stage, ...] = (CheckText(), Decode())
_SHOWN_ATTRIBUTES = 10
_DECODE: tuple[Stage, ...] = (Decode(),)


def prepare(
    source: str,
    out: str,
    codec: Any = None,
    kind: str | None = None,
    text_tokenizer: str | None = None,
    vocab_size: int = 2048,
    tasks: Sequence[str] = (),
    contexts: Sequence[int] = (1024,),
    subsets: Sequence[str] = (),
    options: FormatOptions = _OPTIONS,
    limits: Limits = _LIMITS,
    curate: Sequence[Stage] = _CURATE,
    decode: Sequence[Stage] = _DECODE,
    runner: Runner | None = None,
    channels: int = 8,
    items_per_shard: int = 512,
    records_per_volume: int = 1 << 18,
    examples_per_shard: int = 8192,
    workers: int | None = None,
    codec_workers: int = 1,
    only: Only = "all",
) -> dict[str, Any]:
    """Prepare a source; see the module's text.

    Args:
        source: folder or file; see docs/sources.md.
        out: folder to write.
        codec: folder of an audio tokenizer in the released layout, or an object with ``encode``.
        kind: of the source, where it cannot be told from what lies there.
        text_tokenizer: folder of a text tokenizer to use instead of training one.
        vocab_size: of the text tokenizer that is trained.
        tasks: formats to write; none writes all.
        contexts: context lengths to pack for.
        subsets: parts of the corpus to use; none uses all.
        options: of the formats.
        limits: when the run is refused.
        curate: stages of the first pass.
        decode: stages of the second pass before the audio tokenizer: what it hears.
        runner: of the two passes; None runs them here, in worker processes.
        channels: codebooks to keep.
        items_per_shard: records that are finished, and resumed, together.
        records_per_volume: records that formats combine with each other; the bound of memory.
        examples_per_shard: examples per record file.
        workers: processes for curation and examples; None is one per core.
        codec_workers: processes that run the audio tokenizer, each with its share of the cores; one if an accelerator
            does the work, which belongs to one process.
        only: stop after curation, or after the text tokenizer.

    Returns:
        The content of ``prepare.json`` (for ``only``: the account of the curation).

    Raises:
        SourceError: nothing to read at ``source``.
        ValueError: no codec, unknown tasks, or codes that do not fit the layout.
        TooManyBadRecords: see `accounts.Limits`.
        UserError: no record can be used, or no example can be made of those that can.
    """
    folder = pathlib.Path(out)
    opened = open_source(source, kind, items_per_shard=items_per_shard)
    folder.mkdir(parents=True, exist_ok=True)
    runner = runner or LocalRunner()
    with locked(folder):
        chain = (*((KeepSubsets(tuple(subsets)),) if subsets else ()), *curate)
        first = shards.Pass("curate", opened, chain, curated.CuratedSink(folder / "curated"))
        names = _run(runner, first, workers, limits, str(source))
        given = curated.finish(folder / "curated", names, records_per_volume)
        print(f"records: {given.account}", flush=True)
        _print_dropped(folder / "curated" / "quarantine.jsonl")
        _check_curated(given, names, str(source), only)
        if only == "curate":
            return {"curate": given.account.to_json()}
        text_key, tokenizer = _text_tokenizer(given, folder, text_tokenizer, vocab_size)
        if only == "text_tokenizer":
            return {"curate": given.account.to_json()}
        if codec is None:
            raise ValueError("--codec is needed: the folder of a trained audio tokenizer")

        tokenize, layout = _tokenize(codec, tokenizer, channels)
        spoken = curated.CuratedSource(folder / "curated", tuple(names))
        second = shards.Pass("encode", spoken, (*decode, tokenize), codes.CodesSink(folder / "codes"))
        _run(runner, second, codec_workers, limits, str(source))
        written = _write_examples(
            folder, given, second, text_key, layout, tasks, options, examples_per_shard, workers or None
        )
        _check_examples(written, second, names, str(source))
        rows_key = stages.fingerprint("rows", written.key)
        stages.run_stage(folder / "rows", rows_key, lambda: {})
        rows = _write_rows(folder, written.counts, contexts, layout.special.empty)
        return _finish(folder, given, second, written, rows, dataclasses.asdict(layout), tokenizer.vocab_size)


# --- the two passes --------------------------------------------------------------------------------------------------


def _run(runner: Runner, one: shards.Pass, workers: int | None, limits: Limits, source: str) -> list[str]:
    """Finishes a pass; names of its shards."""
    found = one.source.shards()
    names = [shard.name for shard in found]
    listed = str(one.sink.folder / "*.dropped.jsonl")
    pending = [shard for shard in found if one.finished(shard) is None]

    def check(account: Account) -> None:
        account.check(limits, source, listed, lambda: shards.first_dropped(one.sink.folder, names))

    runner.run(one, pending, workers, check)
    one.remove_others(found)
    account = shards.total_account(one.sink.folder, names)
    if not account.balanced:
        raise RuntimeError(f"{one.name}: records were lost: {account}")
    check(account)
    if pending:
        times = shards.read_times(one.sink.folder, names)
        print(f"{one.name}: {len(pending)} of {len(found)} shards done now\n{shards.speed_table(times)}", flush=True)
    return names


def _check_curated(given: curated.Curated, names: Sequence[str], source: str, only: Only) -> None:
    """Stops where no record is left, and says where no recording has words: mostly a wrong path, a wrong column."""
    account, folder = given.account, given.folder / curated.SHARDS
    # That stages filter everything may be what somebody who only curates wants to know.
    if not account.written and not (only == "curate" and account.filtered and not account.quarantined):
        if not account.items_in:
            raise cli.UserError(f"{source}: no records; there is nothing to prepare")
        first = shards.first_dropped(folder, names) or shards.first_dropped(folder, names, "filtered")
        raise cli.UserError(
            f"{source}: none of {account.items_in} records can be used ({dict(sorted(account.reasons.items()))}); "
            f"the first: {first}. See {folder}/*.dropped.jsonl, then mend the data and start again"
        )
    attributes = given.attributes_without_text()
    if attributes is not None:
        shown = [f"{name} ({count})" for name, count in list(attributes.items())[:_SHOWN_ATTRIBUTES]]
        kept = f"; fields kept as attributes: {', '.join(shown)}" if shown else ""
        print(f"no recording has `text`{kept}", flush=True)


def _check_examples(written: "_Examples", encoded: shards.Pass, names: Sequence[str], source: str) -> None:
    counts = [count for by in written.counts.values() for count in by.values()]
    if any(count["written"] for count in counts):
        return
    bad = [f"{one['detail']} (record {one['id']})" for count in counts for one in count["bad"]]
    first = next(iter([*filter(None, [shards.first_dropped(encoded.sink.folder, names)]), *bad]), "")
    why = f"the first that failed: {first}" if first else "the records lack the fields that tasks need"
    raise cli.UserError(f"{source}: no examples for {', '.join(written.counts)}: {why} (docs/own_data.md)")


def _print_dropped(path: pathlib.Path, shown: int = 20) -> None:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            if number == shown:
                print(f"  ... all of them: {path}")
                break
            print(f"  skipped: {line.rstrip()}")


def _text_tokenizer(
    given: curated.Curated, out: pathlib.Path, source: str | None, vocab_size: int
) -> tuple[str, TextTokenizer]:
    folder = out / prepared.TEXT_TOKENIZER
    key = stages.fingerprint("text", given.key, vocab_size, stages.folder_hash(source) if source else None)

    def work() -> dict[str, Any]:
        made = TextTokenizer.load(source) if source else train_text_tokenizer(texts.training_texts(given), vocab_size)
        made.save(folder)
        return {"vocab_size": made.vocab_size}

    stages.run_stage(folder, key, work)
    return key, TextTokenizer.load(folder)


def _tokenize(codec: Any, tokenizer: TextTokenizer, channels: int) -> tuple[codes.Tokenize, Layout]:
    """The stage for a codec, and the layout: its codebooks' sizes are the empty ids."""
    if isinstance(codec, (str, pathlib.Path)):
        from mimo_jax.inference.codec import AudioCodec
        from mimo_jax.interop import configs

        sizes = configs.tokenizer_config(configs.read_config(codec), codec).codebook_sizes
        opening: Any = functools.partial(AudioCodec.load, str(codec))
        fingerprint = stages.folder_hash(codec)
    else:
        sizes, opening = codec.codebook_sizes, functools.partial(_same, codec)
        fingerprint = str(getattr(codec, "fingerprint", ""))
    if len(sizes) < channels:
        raise ValueError(f"the audio tokenizer has {len(sizes)} codebooks; {channels} are asked for")
    kept = tuple(int(n) for n in sizes[:channels])
    return codes.Tokenize(opening, kept, fingerprint), Layout(tokenizer.special, empty_codes=kept)


def _same(codec: Any) -> Any:
    return codec


# --- examples and rows -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Examples:
    """Counts by task and split; the key of what they were made of; hashes of the files."""

    counts: dict[str, Any]
    key: str
    hashes: dict[str, str]


def _write_examples(
    folder: pathlib.Path,
    given: curated.Curated,
    encoded: shards.Pass,
    text_key: str,
    layout: Layout,
    tasks: Sequence[str],
    options: FormatOptions,
    per_shard: int,
    workers: int | None,
) -> _Examples:
    names = [shard.name for shard in encoded.source.shards()]
    codes_key = [shards.read_side(encoded.sink.folder, name)["sha256"] for name in names]
    key = stages.fingerprint(
        "examples", examples.SCHEMA_VERSION, codes_key, text_key, identity(layout), identity(options), per_shard
    )
    out = folder / "examples"
    out.mkdir(exist_ok=True)
    work = examples.ExampleWork(
        given, encoded.sink.folder, folder / prepared.TEXT_TOKENIZER, layout, options, out, key, per_shard
    )
    jobs = examples.jobs_of(given, tasks)
    sides: dict[examples.Job, dict[str, Any]] = {}
    with progress_bar("examples", len(jobs), "file") as bar:
        for job, side in run_jobs(work, jobs, workers):
            sides[job] = side
            bar.update(1)
    ordered = [(job, sides[job]) for job in jobs]
    counts = examples.finish(out, ordered)
    whole = stages.fingerprint(key, [v.key for v in given.volumes], [job.task for job in jobs])
    return _Examples(counts, whole, examples.hashes(out, ordered))


def _write_rows(folder: pathlib.Path, counts: dict[str, Any], contexts: Sequence[int], empty: int) -> dict[str, Any]:
    """Packing plans of every task, split and context length; returns {context: {task-split: rows, fill, dropped}}."""
    jobs = [(c, t, s) for c in contexts for t, by in counts.items() for s, n in by.items() if n["written"]]
    out: dict[str, Any] = {str(context): {} for context in contexts}
    with progress_bar("packing", len(jobs), "plan") as bar:
        for context, task, split in jobs:
            rows = prepared.planned_rows(folder, task, split, context, empty)
            report = {"rows": rows.num_rows, "fill": round(rows.fill, 6), "dropped": len(rows.dropped)}
            out[str(context)][f"{task}-{split}"] = report
            bar.update(1)
    return out


def _finish(
    folder: pathlib.Path,
    given: curated.Curated,
    encoded: shards.Pass,
    written: _Examples,
    rows: dict[str, Any],
    layout: dict[str, Any],
    vocab_size: int,
) -> dict[str, Any]:
    """Write quarantine.jsonl (all stages) and, last of all, prepare.json."""
    names = [shard.name for shard in encoded.source.shards()]
    late = shards.total_account(encoded.sink.folder, names)
    bad = [one for by in written.counts.values() for c in by.values() for one in c.pop("bad")]
    with replacing(folder / "quarantine.jsonl") as partial, partial.open("wb") as out:
        out.write((folder / "curated" / "quarantine.jsonl").read_bytes())
        for name in names:
            for one in shards.read_dropped(encoded.sink.folder, name):
                out.write(curated.dropped_line(one).encode("utf-8", "surrogateescape"))
        out.writelines((json.dumps(one, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape") for one in bad)
    for task, by in written.counts.items():
        splits = [f"{s} {c['written']} ({c['text']} text + {c['audio']} audio)" for s, c in by.items() if c["in"]]
        print(f"{task}: {', '.join(splits) or 'nothing to make it of'}")
    plans = sorted(p for p in (folder / "rows").rglob("*") if p.is_file() and p.suffix in (".npy", ".npz"))
    result = {
        "version": SCHEMA_VERSION,
        "layout": layout,
        "vocab_size": vocab_size,
        "examples": {task: {s: c["written"] for s, c in by.items()} for task, by in written.counts.items()},
        "counts": {
            "records": given.account.to_json(),
            "encoded": late.to_json(),
            "examples": written.counts,
        },
        "packing": rows,
        "hashes": {
            **{
                f"codes/{name}": d
                for s in names
                for name, d in shards.read_side(encoded.sink.folder, s)["sha256"].items()
            },
            **written.hashes,
            **{str(p.relative_to(folder)): stages.file_hash(p) for p in plans},
        },
    }
    write_text(folder / prepared.MANIFEST, stages.to_json(result))
    return result


# --- command line ----------------------------------------------------------------------------------------------------

_FLAGS = {
    "source": "folder or file to prepare: manifest.jsonl, tar shards, parquet, Kaldi lists, conversations.",
    "kind": "what the source is, where it cannot be told.",
    "out": "folder to write.",
    "codec": "folder of a trained audio tokenizer (released layout).",
    "text_tokenizer": "folder of a text tokenizer to use instead of training one.",
}


def _from_flags() -> None:
    import gin
    from absl import flags

    given = {name: value for name in (*_FLAGS, "only", "workers") if (value := flags.FLAGS[name].value) is not None}
    if flags.FLAGS.runner == "beam":
        from mimo_jax.preparation.beam import BeamRunner

        given["runner"] = BeamRunner(shlex.split(flags.FLAGS.beam_flags))
    try:
        gin.get_configurable(prepare)(**given)
    except (FileNotFoundError, ValueError, TypeError, SourceError, StageFault, TooManyBadRecords, WorkerDied) as error:
        raise cli.UserError(str(error)) from error


def main() -> None:
    """Command line; a flag wins over gin."""
    import gin
    from absl import flags

    for name, meaning in _FLAGS.items():
        flags.DEFINE_string(name, None, meaning)
    flags.DEFINE_integer("workers", None, "processes; default one per core.", lower_bound=1)
    flags.DEFINE_enum("runner", "local", ["local", "beam"], "what runs curation and encoding; beam is an extra.")
    flags.DEFINE_string("beam_flags", "", "Beam's own, in one string: '--runner=DataflowRunner --project=...'.")
    flags.DEFINE_enum("only", None, ["curate", "text_tokenizer", "all"], "stop after this stage.")
    # Registered by hand, so that --gin.prepare.NAME=value works without a gin file.
    for function in (prepare, _from_flags):
        gin.external_configurable(function, module="mimo_jax.prepare")
    cli.run(_from_flags)


if __name__ == "__main__":
    # gin files bind the functions of the module by its name, not those of __main__.
    from mimo_jax import prepare as _module

    _module.main()
