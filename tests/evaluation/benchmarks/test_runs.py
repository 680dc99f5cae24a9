"""Answers and scores do not depend on batches, workers, kills or restarts; the command line; the real engine."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from mimo_jax import evaluate
from mimo_jax.cli import UserError
from mimo_jax.data.audio import write_wav
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.evaluation.benchmarks import registry, scoring
from mimo_jax.evaluation.benchmarks.base import choose_shots, integer_of
from mimo_jax.evaluation.benchmarks.runner import Options, generate, settings
from mimo_jax.evaluation.benchmarks.store import AnswerStore, append, digest_of_folder, file_name, read_lines
from mimo_jax.evaluation.benchmarks.tools import Tools
from mimo_jax.interop import hf
from tests.evaluation.benchmarks.stand_ins import RATE, Ears, Model, hashing
from tests.inference.test_tasks import tiny_config

# One of each kind of prompt: few-shot with examples that are chosen, spoken answers in an item's voice, plain.
TASKS = ("mmau_few_shot", "speech_mmlu_s2s", "emotion_conversion", "mmsu")
FILES = ("answers.jsonl", "items.jsonl", "scores.json", "scores.md")


def answered(data, out, name, *runs, model=None):
    """Runs of generation, then scoring; the contents of the files that they leave."""
    benchmark = registry.tasks()[name]
    items = benchmark.read(data / benchmark.data)
    for options in runs:
        store = AnswerStore(out, options.worker, options.workers)
        store.claim(settings(benchmark, options))
        generate(model or Model(hashing), benchmark, items, store, options)
    scoring.score(benchmark, items, AnswerStore(out), Tools({"transcriber": Ears()}), draws=20)
    waves = {path.name: path.read_bytes() for path in sorted((out / "wav").glob("*"))} if (out / "wav").is_dir() else {}
    return {name: (out / name).read_text() for name in FILES} | waves


@pytest.mark.parametrize("name", TASKS)
def test_the_same_for_any_batch_and_number_of_workers(data, tmp_path, name):
    whole = answered(data, tmp_path / "whole", name, Options(batch=100))
    answers = [json.loads(line)["text"] for line in whole["answers.jsonl"].splitlines()]
    assert len(set(answers)) == len(answers)  # each follows from its own prompt and seed
    for batch in (1, 2, 5):
        assert answered(data, tmp_path / f"batch-{batch}", name, Options(batch=batch)) == whole
    for workers in (3, 8):
        runs = [Options(batch=2, worker=worker, workers=workers) for worker in reversed(range(workers))]
        assert answered(data, tmp_path / f"workers-{workers}", name, *runs) == whole


def test_another_seed_gives_other_answers(data, tmp_path):
    first, second = (
        answered(data, tmp_path / str(seed), "mmsu", Options(seed=seed))["answers.jsonl"].splitlines()
        for seed in (0, 1)
    )
    for a, b in zip(map(json.loads, first), map(json.loads, second), strict=True):
        assert a["text"] != b["text"] and a["prompt"] == b["prompt"]


class Killed(Exception):
    pass


def test_the_same_after_a_kill(data, tmp_path):
    name = "speech_mmlu_s2s"
    whole = answered(data, tmp_path / "whole", name, Options())
    calls = []

    def dying(job):
        calls.append(job)
        if len(calls) == 3:
            raise Killed
        return hashing(job)

    with pytest.raises(Killed):
        answered(data, tmp_path / "cut", name, Options(batch=1), model=Model(dying))
    path = tmp_path / "cut" / "answers.jsonl"
    assert len(path.read_text().splitlines()) == 2
    path.write_bytes(path.read_bytes()[:-20])  # killed in the middle of a line
    model = Model(hashing)
    assert answered(data, tmp_path / "cut", name, Options(batch=3), model=model) == whole
    assert len(model.jobs) == 3  # what was there is not done again
    assert answered(data, tmp_path / "cut", name, Options(), model=model) == whole and len(model.jobs) == 3


def test_workers_can_change_in_the_middle(data, tmp_path):
    name = "mmau"
    whole = answered(data, tmp_path / "whole", name, Options())
    runs = [Options(worker=1, workers=3), Options(worker=0, workers=2), Options()]
    assert answered(data, tmp_path / "mixed", name, *runs) == whole


def test_other_settings_are_refused(data, tmp_path):
    answered(data, tmp_path, "mmsu", Options())
    with pytest.raises(UserError, match="seed was 0 and is 1"):
        answered(data, tmp_path, "mmsu", Options(seed=1))
    with pytest.raises(UserError, match="decoding"):
        answered(data, tmp_path, "mmsu", Options(max_new=3))


def test_workers_with_other_settings_are_found_out(data, tmp_path):
    """Each began before the other had an answer, so that neither was refused."""
    benchmark = registry.tasks()["mmsu"]
    items = benchmark.read(data / "mmsu")
    stores = []
    for worker in (0, 1):
        options = Options(seed=worker, worker=worker, workers=2)
        stores.append((AnswerStore(tmp_path, worker, 2), options))
        stores[-1][0].claim(settings(benchmark, options))
    generate(Model(hashing), benchmark, items, *stores[1])
    with pytest.raises(UserError, match="other settings"):
        generate(Model(hashing), benchmark, items, *stores[0])
        AnswerStore(tmp_path).answers()


def test_one_item_that_cannot_run_costs_no_other(data, tmp_path):
    benchmark = registry.tasks()["mmau_pro"]
    items = benchmark.read(data / "mmau_pro")
    broken = dataclasses.replace(items[3], audio=(str(tmp_path / "nowhere.wav"),))
    store = AnswerStore(tmp_path)
    store.claim({})
    model = Model(hashing, limit=7)  # fewer segments than the prompt with two recordings
    failures = generate(model, benchmark, [*items[:3], broken, items[4]], store, Options())
    assert set(failures) == {"closed1", "multi1"} and len(store.answers()) == 3
    assert "nowhere.wav" in failures["closed1"] and "segments" in failures["multi1"]
    # A process that scores later, or another worker, knows why; what was answered since has no reason any more.
    assert AnswerStore(tmp_path, 1, 2).failures() == failures
    assert set(generate(Model(hashing), benchmark, [*items[:3], broken, items[4]], store, Options())) == {"closed1"}
    assert set(AnswerStore(tmp_path).failures()) == {"closed1"}


def test_why_an_item_has_no_answer_is_told_when_scoring_comes_later(data, tmp_path):
    benchmark = registry.tasks()["mmau"]
    items = benchmark.read(data / "mmau")
    items[3] = dataclasses.replace(items[3], audio=(str(tmp_path / "nowhere.wav"),))
    for worker in (0, 1):
        store = AnswerStore(tmp_path, worker, 2)
        store.claim({})
        generate(Model(hashing), benchmark, items, store, Options(worker=worker, workers=2))
    unscored = scoring.score(benchmark, items, AnswerStore(tmp_path), Tools({}), draws=20)["unscored"]
    assert set(unscored) == {items[3].id} and "nowhere.wav" in unscored[items[3].id]
    with pytest.raises(UserError, match="no answers; .*nowhere.wav"):
        scoring.score(benchmark, items[3:4], AnswerStore(tmp_path), Tools({}))


def test_a_reconstruction_that_is_not_finite_costs_no_other(data, tmp_path):
    benchmark = registry.tasks()["tokenizer_reconstruction"]
    items = benchmark.read(data / "tokenizer_reconstruction")
    model = Model(hashing)
    model.codec.decode = lambda codes: [np.full(900, np.nan), *(np.full(900, 0.1) for _ in codes[1:])]
    store = AnswerStore(tmp_path)
    store.claim({})
    failures = generate(model, benchmark, items, store, Options())
    assert set(failures) == {items[0].id} and set(store.answers()) == {item.id for item in items[1:]} != set()


def test_examples_follow_from_the_item_alone(data):
    benchmark = registry.tasks()["mmau_few_shot"]
    items = benchmark.read(data / "mmau")
    for item in items:
        pool = [other for other in items if other.fields["task"] == item.fields["task"]]
        shots = choose_shots(item, pool[::-1], 5)
        assert [s.id for s in shots] == [s.id for s in item.fields["shots"]] and item.id not in {s.id for s in shots}
    assert len({tuple(s.id for s in item.fields["shots"]) for item in items}) > 6
    with pytest.raises(ValueError, match="only 1"):
        choose_shots(items[0], items[:2], 2)
    assert integer_of(0, "mmau", "a") == 225206774  # the same in every version and on every machine


def test_half_a_line_is_dropped_and_overwritten(tmp_path):
    path = tmp_path / "lines.jsonl"
    append(path, [{"id": "a"}, {"id": "b"}])
    path.write_bytes(path.read_bytes()[:-3])
    assert read_lines(path) == [{"id": "a"}]
    append(path, [{"id": "c"}])
    assert read_lines(path) == [{"id": "a"}, {"id": "c"}]
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(UserError, match="line 1"):
        read_lines(path)


def test_names_of_waves():
    assert file_name("a-1.b_c") == "a-1.b_c" and "/" not in file_name("../a/b")
    assert file_name("a/b") != file_name("a_b") and len(file_name("x" * 500)) < 100
    assert len(file_name("题" * 99).encode()) < 100 and file_name("题") != file_name("目")


def test_a_folder_is_known_by_what_lies_in_it(tmp_path):
    names = ("data.jsonl", "voice.wav", "model.safetensors")
    for name in names:
        (tmp_path / name).write_bytes(bytes(1 << 22))
    known = {digest_of_folder(tmp_path, suffixes) for suffixes in (None, (".jsonl",))}
    before = digest_of_folder(tmp_path, (".jsonl",))
    (tmp_path / "voice.wav").unlink()
    assert digest_of_folder(tmp_path, (".jsonl",)) != before  # a recording that came or went
    (tmp_path / "voice.wav").write_bytes(bytes(1 << 22))
    assert {digest_of_folder(tmp_path, suffixes) for suffixes in (None, (".jsonl",))} == known
    with (tmp_path / "model.safetensors").open("r+b") as file:  # weights in the middle of a large file
        file.seek(1 << 21)
        file.write(b"x" * (1 << 17))
    assert digest_of_folder(tmp_path) not in known and digest_of_folder(tmp_path, (".jsonl",)) == before


def test_workers_that_start_together_find_whole_settings(tmp_path):
    """Whoever reads while another writes the same settings finds all of them."""
    script = (
        "import sys; from pathlib import Path; from mimo_jax.evaluation.benchmarks.store import AnswerStore\n"
        "for _ in range(400): AnswerStore(Path(sys.argv[1])).claim({'a': ['x' * 9] * 999})"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


# ----- command line ---------------------------------------------------------------------------------------------------


def test_list_is_quick_and_complete():
    code = "import sys; from mimo_jax import evaluate; evaluate.main(['--list']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, modules = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(registry.tasks()) and all(
        len(line.split()) > 2 for line in lines
    )
    assert not {"transformers", "torch", "jiwer", "soundfile", "sacrebleu"} & set(eval(modules))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--tasks=mmau"], "--data is missing"),
        (["--tasks=mmau", "--data=.", "--out=x"], "--lm is missing"),
        (["--tasks=nothing", "--data=.", "--out=x", "--phase=score"], "no task 'nothing'"),
        (["--tasks=", "--data=.", "--out=x", "--phase=score"], "--tasks is missing"),
        (["--tasks=big_bench_audio_s2t", "--data=.", "--out=x", "--phase=score"], "needs --judge=PLUGIN"),
        (["--tasks=mmau", "--data=DATA", "--out=x", "--lm=.", "--tokenizer=.", "--judge=gpt"], "no plug-in 'gpt'"),
        (["--tasks=mmau", "--data=DATA", "--out=x", "--lm=.", "--tokenizer=.", "--judge=openai:a"], "openai:BASE_URL"),
        (["--tasks=mmau", "--data=DATA", "--out=x", "--lm=.", "--tokenizer=.", "--listener=gpt"], "--listener=gpt"),
        (["--tasks=mmau", "--data=/nowhere", "--out=x", "--phase=score"], "/nowhere/mmau: no such folder"),
        (["--tasks=mmau", "--data=DATA", "--out=OUT", "--phase=score"], "no answers"),
        (["--tasks=mmau", "--data=DATA", "--out=OUT", "--lm=.", "--tokenizer=.", "--workers=2"], "--phase=generate"),
        (["--tasks=mmau", "--data=DATA", "--out=OUT", "--lm=.", "--tokenizer=.", "--worker=1"], "counted from 0 to 0"),
    ],
)
def test_mistakes_are_named(data, tmp_path, capsys, flags, message):
    flags = [flag.replace("DATA", str(data)).replace("OUT", str(tmp_path / "out")) for flag in flags]
    assert evaluate.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny language model with a text tokenizer that can spell, drawn at random."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_text_tokenizer(["option a b c d answer the question"] * 3, vocab_size=280)
    config = tiny_config(tokenizer)
    leaves, tree = jax.tree.flatten(hf.lm_shapes(config))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.2, x.shape).astype(np.float32) for x in leaves])
    tokenizer.save(folder / "text")
    hf.save_lm(folder / "lm", config, params, text_tokenizer_dir=folder / "text")
    return folder / "lm"


def test_with_the_real_engine(data, folders, tokenizer_tiny, tmp_path, capsys, monkeypatch):
    """Batches of several sizes, a kill and a restart through the command; greedy and drawn, written and spoken."""
    (tmp_path / "ears.json").write_text("{}")
    load, loaded = evaluate._load, []

    def load_once(options):  # what was compiled stays compiled
        loaded[:] = loaded or [load(options)]
        return loaded[0]

    monkeypatch.setattr(evaluate, "_load", load_once)

    def flags(out):
        return [
            f"--lm={folders}",
            f"--tokenizer={tokenizer_tiny}",
            "--tasks=mmsu,seed_tts_en",
            f"--data={data}",
            f"--out={tmp_path / out}",
            "--max_new=6",
            "--draws=20",
        ]

    assert evaluate.main([*flags("whole"), "--batch=3", "--phase=generate"]) == 0
    names = [f"{task}/answers.jsonl" for task in ("mmsu", "seed_tts_en")]
    for worker in (0, 1):
        parts = [f"--worker={worker}", "--workers=2", "--phase=generate", "--batch=2"]
        assert evaluate.main([*flags("parts"), *parts]) == 0
    assert evaluate.main([*flags("cut"), "--batch=1", "--phase=generate", "--limit=2"]) == 0
    cut = tmp_path / "cut" / names[0]
    cut.write_bytes(cut.read_bytes()[:-10])
    assert evaluate.main([*flags("cut"), "--batch=4", "--phase=generate"]) == 0
    # What is heard is looked up in a file; an entry that is missing is a mistake that is named, not an empty text.
    score = ["--phase=score", "--tasks=mmsu,seed_tts_en", f"--data={data}", "--draws=20"]
    ears = f"--transcriber=fake:{tmp_path / 'ears.json'}"
    spoken = [json.loads(line) for line in (tmp_path / "whole" / names[1]).read_text().splitlines()]
    if any("audio" in line for line in spoken):
        assert evaluate.main([*score, ears, f"--out={tmp_path / 'whole'}"]) == 2
        assert "no entry for 'wave:" in capsys.readouterr().err
    from mimo_jax.evaluation.benchmarks.base import Answered, Item
    from mimo_jax.evaluation.plugins.fake import wave_key

    waves = [Answered(Item("", {}), line, tmp_path / "whole" / "seed_tts_en").wave()[0] for line in spoken]
    (tmp_path / "ears.json").write_text(json.dumps({wave_key(wave): "good morning" for wave in waves}))
    found = []
    for out in ("whole", "parts", "cut"):
        assert evaluate.main([*score, ears, f"--out={tmp_path / out}"]) == 0
        found.append({name: (tmp_path / out / name).read_text() for name in [*names, "scores.json", "scores.md"]})
    assert found[0] == found[1] == found[2]
    run = json.loads((tmp_path / "whole" / "mmsu" / "run.json").read_text())
    assert run["models"]["lm"]["digest"] and run["data"] and run["decoding"]["text"]["temperature"] == 0.3
    assert all(0 < json.loads(line)["positions"] <= 6 for line in found[0][names[0]].splitlines())
    # Another model is told apart by what it is, not by its name.
    assert evaluate.main([*flags("whole"), "--phase=generate", "--dtype=bfloat16"]) == 2
    assert "dtype was" in capsys.readouterr().err


def test_a_tokenizer_alone(data, tokenizer_tiny, tmp_path, capsys):
    flags = ["--tasks=tokenizer_reconstruction", f"--tokenizer={tokenizer_tiny}", f"--data={data}", f"--out={tmp_path}"]
    assert evaluate.main([*flags, "--codebooks=4", "--draws=20"]) == 0
    scores = json.loads((tmp_path / "tokenizer_reconstruction" / "scores.json").read_text())
    assert scores["complete"] and -1 <= scores["metrics"]["STOI"]["value"] < 0.9  # an untrained tokenizer
    # A recording that cannot be used has no answer and no score, and the exit code says so.
    shutil.copytree(data / "tokenizer_reconstruction", tmp_path / "silent" / "tokenizer_reconstruction")
    write_wav(tmp_path / "silent" / "tokenizer_reconstruction" / "c.wav", np.zeros(9000, np.float32))
    silent = [*flags[:2], f"--data={tmp_path / 'silent'}", f"--out={tmp_path / 'out'}", "--codebooks=4", "--draws=20"]
    assert evaluate.main(silent) == 1
    scores = json.loads((tmp_path / "out" / "tokenizer_reconstruction" / "scores.json").read_text())
    assert set(scores["unscored"]) == {"c"} and "silent" in scores["unscored"]["c"] and scores["scored"] == 2
    capsys.readouterr()
    assert evaluate.main([*flags, "--codebooks=99"]) == 2
    assert "the tokenizer has" in capsys.readouterr().err
    changed = [flag.replace(str(data), str(tmp_path / "other")) for flag in flags]
    assert evaluate.main([*changed, "--phase=score"]) == 2


class TinyCodec:
    """Codes of any tokenizer: what lm_tiny reads has 8 codebooks, tokenizer_tiny writes 4."""

    sample_rate = RATE

    def encode(self, waves, channels):
        rng = [np.random.default_rng(np.frombuffer(w[:64].tobytes(), np.uint32)) for w in waves]
        return [r.integers(0, 8, (6 + int(r.integers(6)), channels)).astype(np.int32) for r in rng]

    def decode(self, codes):
        return [np.repeat((c.sum(1) - 28) / 64, 40).astype(np.float32) for c in codes]


def test_lm_tiny_answers_alike_in_any_batch(data, lm_tiny, tmp_path):
    """Few-shot prompts with audio on both sides, spoken answers; and drawn text."""
    from mimo_jax.inference.engine import Engine
    from mimo_jax.inference.loading import language_model
    from mimo_jax.inference.tasks import MimoAudio

    train_text_tokenizer(["the answer to the question is option a or b, with one letter"] * 9, 295).save(tmp_path / "t")
    config, params, text = language_model(lm_tiny, tmp_path / "t")
    model = MimoAudio(Engine(config, params, max_batch=4, max_positions=2048), text, TinyCodec())
    for name in ("speech_mmlu_s2s", "mmsu"):
        short = Options(max_new=12)
        runs = [
            [dataclasses.replace(short, batch=4)],
            [dataclasses.replace(short, batch=1, worker=worker, workers=3) for worker in (2, 0, 1)],
        ]
        found = [answered(data, tmp_path / f"{name}-{i}", name, *run, model=model) for i, run in enumerate(runs)]
        assert found[0] == found[1]
        lines = [json.loads(line) for line in found[0]["answers.jsonl"].splitlines()]
        assert all(1 <= line["positions"] <= 12 for line in lines)
        assert len({line["text"] for line in lines}) == len(lines)
        if name == "speech_mmlu_s2s":
            assert all(line["seconds"] > 0 for line in lines) and len(found[0]) == len(FILES) + len(lines)
