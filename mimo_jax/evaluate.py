"""Benchmarks of post-training evaluation: answers their items with a model, scores the answers.

    python -m mimo_jax.evaluate --list
    python -m mimo_jax.evaluate --tasks=mmau,mmsu --lm=LM --tokenizer=TOKENIZER --data=DATA --out=OUT
    python -m mimo_jax.evaluate --tasks=seed_tts_en --lm=LM --tokenizer=TOKENIZER --data=DATA --out=OUT \\
        --transcriber=transformers:openai/whisper-large-v3
    python -m mimo_jax.evaluate --tasks=big_bench_audio_s2t --phase=score --data=DATA --out=OUT \\
        --judge=openai:https://api.openai.com/v1#gpt-4o-mini

LM and TOKENIZER are folders in the released layout, training runs (--text_tokenizer names what a run lacks) or
repositories of the Hugging Face hub. A task's data lie in a folder of DATA in the form in which they are published:
docs/evaluation.md describes each, and the plug-ins that scoring may need.

Answers go to OUT/TASK/answers.jsonl, speech to OUT/TASK/wav, verdicts to OUT/TASK/items.jsonl, scores with
intervals and all that decides them to OUT/TASK/scores.json and scores.md, a table of all tasks to OUT/scores.md.
Started again, both phases go on with what is missing. Several machines share a task: each runs --phase=generate with
--workers=N and its own --worker, then one runs --phase=score.

Exit code: 0; 1 where items are left without an answer or a score; 2 for a mistake in the input.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_jax.cli import UserError
from mimo_jax.inference import arguments as shared

if TYPE_CHECKING:
    from mimo_jax.evaluation.benchmarks.base import Benchmark, Item
    from mimo_jax.evaluation.benchmarks.runner import Model, Options
    from mimo_jax.evaluation.benchmarks.store import AnswerStore

# Files of a task's folder that say what its items are.
_DATA_KINDS = (".json", ".jsonl", ".parquet", ".txt", ".tsv", ".scp")
_KINDS = {
    "transcriber": "speech recogniser of spoken answers",
    "judge": "language model that marks answers",
    "listener": "language model that hears spoken answers and marks them",
    "text_embedder": "embeddings of texts, for the nearest choice",
    "speaker_embedder": "embeddings of voices, for their likeness",
    "translation_scorer": "trained metric of translations",
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark with its items and its folder of results."""

    benchmark: Benchmark
    items: list[Item]
    data: str
    folder: Path


def evaluate(options: argparse.Namespace) -> bool:
    """Runs the phases; returns whether every item got what the last phase gives."""
    from mimo_jax.evaluation.benchmarks import registry

    if options.list:
        for name, benchmark in registry.tasks().items():
            print(f"{name:26} {benchmark.description}")
        return True
    chosen = registry.chosen(options.tasks)
    if options.phase != "score" and not options.worker < options.workers:
        raise UserError(f"--worker={options.worker}: workers are counted from 0 to {options.workers - 1}")
    if options.phase == "all" and options.workers > 1:
        raise UserError("--workers: let each worker run --phase=generate, and one process --phase=score after them")
    if options.phase != "generate":
        _check_plugins(options, chosen)
    tasks = [_task(benchmark, options) for benchmark in chosen]
    answered = options.phase == "score" or answer(options, tasks)
    return answered if options.phase == "generate" else score(options, tasks)


def answer(options: argparse.Namespace, tasks: Sequence[Task]) -> bool:
    """The first phase; returns whether every item of this worker has an answer."""
    from mimo_jax.evaluation.benchmarks import runner

    run = runner.Options(options.seed, options.batch, options.worker, options.workers, options.max_new)
    identities = _identities(options)
    model = _load(options)
    complete = True
    for task in tasks:
        store = _store(task, run)
        store.claim(runner.settings(task.benchmark, run, data=task.data, **identities))
        failures = runner.generate(model, task.benchmark, task.items, store, run)
        for name, reason in failures.items():
            print(f"{task.benchmark.name}: {name} has no answer: {reason}", file=sys.stderr)
        complete = complete and not failures
    return complete


def score(options: argparse.Namespace, tasks: Sequence[Task]) -> bool:
    """The second phase; returns whether every item has a score."""
    from mimo_jax.evaluation.benchmarks import registry, runner, scoring, tables
    from mimo_jax.evaluation.benchmarks.tools import Tools

    loaded = {kind: _plugin(kind, getattr(options, kind)) for kind in _KINDS if getattr(options, kind)}
    complete = True
    for task in tasks:
        name = task.benchmark.name
        store = _store(task, runner.Options())
        settings = store.settings()
        if settings is not None and settings.get("data") != task.data:
            raise UserError(
                f"{task.folder}: its answers were made of other data than {options.data}/{task.benchmark.data} "
                "holds now; give the same data, or choose another --out and generate again"
            )
        tools = Tools(loaded, task.folder / "calls.jsonl")
        scores = scoring.score(task.benchmark, task.items, store, tools, seed=options.seed, draws=options.draws)
        for metric, figure in scores["metrics"].items():
            print(f"{name}: {metric} {tables.number(figure)}")
        if not scores["complete"]:
            complete = False
            print(
                f"{name}: {scores['items'] - scores['scored']} of {scores['items']} items have no score; "
                f"{task.folder / scoring.SCORES} says why; start again to try again",
                file=sys.stderr,
            )
    scoring.summarise(Path(options.out), list(registry.tasks()), options.seed, options.draws)
    return complete


def _task(benchmark: Benchmark, options: argparse.Namespace) -> Task:
    from mimo_jax.evaluation.benchmarks.store import digest_of_folder

    folder = Path(options.data) / benchmark.data
    items = benchmark.read(folder)
    if options.limit:
        items = items[: options.limit]
    return Task(benchmark, items, digest_of_folder(folder, _DATA_KINDS), Path(options.out) / benchmark.name)


def _store(task: Task, run: Options) -> AnswerStore:
    from mimo_jax.evaluation.benchmarks.store import AnswerStore

    return AnswerStore(task.folder, run.worker, run.workers)


def _identities(options: argparse.Namespace) -> dict[str, Any]:
    """What a run is told apart by, beside its task: the models and how they are computed."""
    import jax

    import mimo_jax
    from mimo_jax.evaluation.benchmarks.store import digest_of_folder
    from mimo_jax.inference import loading
    from mimo_jax.inference.requests import MAX_POSITIONS

    models = {
        name: {"name": getattr(options, name), "digest": digest_of_folder(loading.found(getattr(options, name)))}
        for name in ("lm", "tokenizer", "text_tokenizer")
        if getattr(options, name)
    }
    environment = {
        "mimo_jax": mimo_jax.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
    }
    return {
        "models": models,
        "dtype": options.dtype,
        "codebooks": options.codebooks,
        "max_positions": MAX_POSITIONS,
        "environment": environment,
    }


def _load(options: argparse.Namespace) -> Model:
    if options.lm:
        from mimo_jax.inference.requests import MAX_POSITIONS

        return shared.load(options, max_batch=options.batch, max_positions=MAX_POSITIONS)
    from mimo_jax.evaluation.benchmarks.codec_only import CodecOnly

    return CodecOnly.load(options.tokenizer, options.codebooks)


def _plugin(kind: str, spec: str) -> Any:
    if kind == "listener":
        from mimo_jax.evaluation.benchmarks.listening import load

        return load(spec)
    from mimo_jax.evaluation import plugins

    return plugins.load(kind, spec)


def _check_plugins(options: argparse.Namespace, chosen: Sequence[Benchmark]) -> None:
    """Before anything is answered, which may take hours."""
    from mimo_jax.evaluation import plugins

    for benchmark in chosen:
        for kind in benchmark.needs:
            if not getattr(options, kind):
                raise UserError(
                    f"--tasks={benchmark.name}: scoring needs --{kind}=PLUGIN (docs/evaluation.md lists them); "
                    "--phase=generate goes without"
                )
    for kind in _KINDS:
        if spec := getattr(options, kind):
            _plugin(kind, spec) if kind == "listener" else plugins.check(kind, spec)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    complete = True

    def command(options: argparse.Namespace) -> None:
        nonlocal complete
        complete = evaluate(options)

    return _parser().run(command, arguments) or int(not complete)


class _Parser(shared.Parser):
    """Asks for models only where they are used."""

    def _check(self, options: argparse.Namespace) -> None:
        if options.list:
            return
        for name in ("data", "out"):
            if not getattr(options, name):
                raise UserError(f"--{name} is missing; `{self.prog} --help` explains")
        if options.phase == "score":
            return
        from mimo_jax.evaluation.benchmarks import registry

        only_tokenizer = all(benchmark.model == "tokenizer" for benchmark in registry.chosen(options.tasks))
        if only_tokenizer and not options.lm and options.tokenizer:
            options = argparse.Namespace(**{**vars(options), "lm": options.tokenizer})
        super()._check(options)


def _parser() -> _Parser:
    parser = _Parser("mimo_jax.evaluate", __doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="show all tasks, one a line")
    add("--tasks", default="", help="tasks with commas between them")
    add("--data", default="", help="folder of the benchmarks' data")
    add("--out", default="", help="folder of the results")
    add("--phase", choices=("generate", "score", "all"), default="all", help="what to do")
    add("--limit", type=shared.integer(1), help="only the first items of each task")
    add("--seed", type=shared.integer(0), default=0, help="of the random choices and of the intervals")
    add("--batch", type=shared.integer(1), default=32, help="items answered together")
    add("--workers", type=shared.integer(1), default=1, help="processes that share the items")
    add("--worker", type=shared.integer(0), default=0, help="which of them this is, from 0")
    add("--max_new", type=shared.integer(1), help="longest answer in positions, where the task allows more")
    add("--codebooks", type=shared.integer(1), default=8, help="of tokenizer_reconstruction without --lm")
    add("--draws", type=shared.integer(1), default=1000, help="of the bootstrap")
    for kind, text in _KINDS.items():
        add(f"--{kind}", default="", metavar="PLUGIN", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
