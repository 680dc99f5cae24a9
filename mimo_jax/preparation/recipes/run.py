"""A run of a recipe: a source in, a folder that preparation takes as a source out.

OUT/manifest.jsonl          the recordings that conversations name, ``part_of`` one of them
OUT/conversations.jsonl     the conversations, in the order of the source
OUT/quarantine.jsonl        what could not be used, and why; filtered.jsonl: what the recipe has no use for
OUT/synthesis.json          counts, written last
OUT/shards/, replies.sqlite the finished parts, and every reply of the text LLM: what a run goes on with
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from mimo_jax.data.manifest import Conversation, Record, TextRecord, conversation_of, to_json
from mimo_jax.data.stages import file_hash, fingerprint
from mimo_jax.data.stages import to_json as to_text
from mimo_jax.files import replacing, write_text
from mimo_jax.preparation import shards
from mimo_jax.preparation.accounts import Account, Limits
from mimo_jax.preparation.curated import SHARDS, CuratedSink, dropped_line, relative_audio
from mimo_jax.preparation.elements import Element, Stage
from mimo_jax.preparation.recipes.base import Recipe
from mimo_jax.preparation.recipes.llm import TextLlm, open_llm
from mimo_jax.preparation.recipes.stage import Write
from mimo_jax.preparation.runner import LocalRunner, locked
from mimo_jax.preparation.sources.base import Shard, Source, SourceError
from mimo_jax.preparation.sources.opening import open_source
from mimo_jax.preparation.sources.turns import recordings
from mimo_jax.preparation.stages.subsets import KeepSubsets

SUMMARY = "synthesis.json"
REPLIES = "replies.sqlite"
_LIMITS = Limits()


def run_recipe(
    source: str,
    out: str,
    recipe: Recipe,
    llm: str | TextLlm = "rules",
    *,
    kind: str | None = None,
    whole: bool = False,
    subsets: Sequence[str] = (),
    replies: str | None = None,
    limits: Limits = _LIMITS,
    items_per_shard: int = 256,
    workers: int | None = None,
) -> dict[str, Any]:
    """Writes conversations; see the module's text. Started again it goes on, and ends with the same bytes.

    Args:
        source: folder or file, as `mimo_jax.prepare` takes it.
        out: folder to write.
        recipe: what is written.
        llm: ``rules``, ``openai:BASE_URL#MODEL``, or a text LLM (picklable, if there are several workers).
        kind: of the source, where it cannot be told from what lies there.
        whole: carry over all that the source has, so that one preparation makes every task's examples; without it the
            recordings serve the conversations alone.
        subsets: parts of the source to write about; none is all.
        replies: file that keeps the LLM's replies; None is ``OUT/replies.sqlite``. Runs may share it.
        limits: when the run is refused; of replies, not of records.
        items_per_shard: records that are finished together, about.
        workers: processes; None is one for an endpoint (which is asked several things at once), else one per core.

    Returns:
        The content of ``synthesis.json``.

    Raises:
        SourceError: nothing to read, or nothing that the recipe has a use for.
        ValueError: the folder is the source's, or another process works in it.
        StageFault: the LLM does not reply.
        TooManyBadRecords: see `accounts.Limits`.
    """
    folder = pathlib.Path(out)
    if pathlib.Path(source).resolve() == folder.resolve():
        raise ValueError(f"{out}: the source's own folder; name another one to write")
    opened = open_source(source, kind, items_per_shard=items_per_shard)
    writer = open_llm(llm) if isinstance(llm, str) else llm
    folder.mkdir(parents=True, exist_ok=True)
    model = f"{writer.identity} {fingerprint(recipe.name, recipe.wording)[:12]}"
    stage = Write(recipe, llm, str(replies or folder / REPLIES), model)
    chain: tuple[Stage, ...] = (*((KeepSubsets(tuple(subsets)),) if subsets else ()), stage)
    one = shards.Pass(recipe.name, opened, chain, CuratedSink(folder))
    if workers is None and not getattr(writer, "quick", False):
        workers = 1
    with locked(folder):
        found = opened.shards()
        listed = str(folder / SHARDS / "*.dropped.jsonl")
        pending = [shard for shard in found if one.finished(shard) is None]
        LocalRunner().run(one, pending, workers, lambda account: _of_replies(account).check(limits, source, listed))
        one.remove_others(found)
        account = shards.total_account(one.sink.folder, [shard.name for shard in found])
        _of_replies(account).check(limits, source, listed)
        print(f"{recipe.name}: {account}", flush=True)
        if not account.pieces["written"]:
            raise SourceError(f"{source}: no conversation could be written for the recipe {recipe.name}; see {listed}")
        return _finish(folder, opened, found, one, whole, {"recipe": recipe.name, "llm": writer.identity})


def _of_replies(account: Account) -> Account:
    """The account of conversations and bad replies alone: a record with one of each would count as written."""
    written, bad = account.pieces["written"], account.pieces["quarantined"]
    return dataclasses.replace(account, items_in=written + bad, written=written, quarantined=bad, filtered=0)


def _finish(
    folder: pathlib.Path, source: Source, found: Sequence[Shard], one: shards.Pass, whole: bool, facts: dict[str, Any]
) -> dict[str, Any]:
    """Puts the shards together, with the recordings that they name."""
    names = {"manifest": "manifest.jsonl", "conversations": "conversations.jsonl", "texts": "texts.jsonl"}
    counts: Counter[str] = Counter()
    with (
        replacing(folder / names["manifest"]) as m,
        replacing(folder / names["conversations"]) as c,
        replacing(folder / names["texts"]) as t,
    ):
        with _open(m) as manifest, _open(c) as conversations, _open(t) as texts:
            files: dict[type, TextIO] = {Record: manifest, Conversation: conversations, TextRecord: texts}
            kinds: dict[type, str] = {Record: "recordings", Conversation: "conversations", TextRecord: "texts"}
            for shard in found:
                made = list(_conversations(one.sink.folder / f"{shard.name}.conversations.jsonl"))
                carried = _carried(source, shard, made, folder, whole)
                for record in [*carried, *made]:
                    files[type(record)].write(to_json(record) + "\n")
                    counts[kinds[type(record)]] += 1
    if not counts["texts"]:
        (folder / names["texts"]).unlink()
    for kind, name in (("quarantined", "quarantine.jsonl"), ("filtered", "filtered.jsonl")):
        with replacing(folder / name) as partial, _open(partial) as lines:
            for shard in found:
                dropped = shards.read_dropped(one.sink.folder, shard.name)
                lines.writelines(dropped_line(item) for item in dropped if item.kind == kind)
    account = shards.total_account(one.sink.folder, [shard.name for shard in found])
    written = [name for name in names.values() if (folder / name).is_file()]
    result = {
        **facts,
        "account": account.to_json(),
        "written": dict(sorted(counts.items())),
        "hashes": {name: file_hash(folder / name) for name in written},
    }
    write_text(folder / SUMMARY, to_text(result))
    return result


def _open(path: pathlib.Path) -> TextIO:
    return path.open("w", encoding="utf-8", errors="surrogateescape")


def _conversations(path: pathlib.Path) -> Iterator[Conversation]:
    if path.is_file():
        with path.open(encoding="utf-8", errors="surrogateescape") as lines:
            yield from (conversation_of(json.loads(line)) for line in lines)


def _carried(
    source: Source, shard: Shard, made: Sequence[Conversation], folder: pathlib.Path, whole: bool
) -> Iterator[Record | TextRecord | Conversation]:
    """What goes along with a shard's conversations: the recordings that they name, or all that the source has."""
    part_of: dict[str, str] = {}
    for conversation in made:
        for name in recordings(conversation.turns):
            part_of.setdefault(name, conversation.id)
    taken = {conversation.id for conversation in made}
    for element in source.read(shard):
        if not isinstance(element, Element):
            continue
        record = element.record
        if isinstance(record, Record):
            record = dataclasses.replace(record, audio=relative_audio(record.audio, folder))
            if whole:
                yield record
            elif record.id in part_of:
                # Links to recordings that stay behind would lead nowhere.
                nothing: dict[str, Any] = {"reply": None, "clean": None, "parallel": None, "document": None}
                yield dataclasses.replace(record, part_of=part_of[record.id], **nothing)
        elif whole and record.id not in taken:  # the same recipe's work of an earlier run is replaced
            yield record
