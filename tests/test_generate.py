"""The commands that use a model: what names it, mistakes, a run over a manifest with bad records, resuming it."""

import argparse
import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from mimo_jax import convert, generate, transcribe
from mimo_jax.cli import UserError
from mimo_jax.data.audio import write_wav
from mimo_jax.data.manifest import Record
from mimo_jax.data.manifest_files import write_manifest
from mimo_jax.data.text_tokenizer import train_text_tokenizer
from mimo_jax.inference.decoding import TASKS
from mimo_jax.inference.inputs import SOURCES, from_options, wav_name
from mimo_jax.interop import hf
from tests.inference.test_tasks import tiny_config


@pytest.fixture(scope="module")
def folders(tokenizer_tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    tokenizer = train_text_tokenizer(["the cat sat on the mat"] * 3, vocab_size=280)
    config = tiny_config(tokenizer)
    leaves, tree = jax.tree.flatten(hf.lm_shapes(config))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.2, x.shape).astype(np.float32) for x in leaves])
    tokenizer.save(folder / "text")
    hf.save_lm(folder / "lm", config, params, text_tokenizer_dir=folder / "text")
    rng = np.random.default_rng(1)
    for number in range(5):
        write_wav(folder / f"{number}.wav", rng.normal(0, 0.1, 3000 + 400 * number).astype(np.float32))
    (folder / "broken.wav").write_bytes(b"RIFFnothing")
    records = [Record(str(n), f"{n}.wav", "the cat", split="train") for n in range(5)]
    write_manifest(
        folder / "manifest.jsonl", [*records[:2], Record("broken", "broken.wav", split="train"), *records[2:]]
    )
    return folder, folder / "lm", tokenizer_tiny


def model_flags(folders):
    return f"--lm={folders[1]}", f"--tokenizer={folders[2]}"


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--task=asr"], "--lm is missing"),
        (["--lm=/nowhere", "--tokenizer=/nowhere", "--task=asr"], "--lm=/nowhere: no such folder, and no repository"),
        (["MODEL", "--text_tokenizer=nowhere", "--task=asr"], "--text_tokenizer=nowhere: no such folder"),
        (["MODEL"], "--task is missing"),
        (["MODEL", "--task=sing"], "--task: invalid choice: 'sing'"),
        (["MODEL", "--tas=asr"], "unexpected argument '--tas=asr'"),
        (["MODEL", "--task=asr", "a.wav"], "unexpected argument 'a.wav'"),
        (["MODEL", "--task=asr", "--batch=0"], "--batch: '0' is no integer of at least 1"),
        (["MODEL", "--task=asr"], "--task=asr needs --audio"),
        (["MODEL", "--task=tts", "--audio=a.wav"], "--task=tts needs --text"),
        (["MODEL", "--task=tts", "--text=x", "--audio=a.wav"], "takes no --audio"),
        (["MODEL", "--task=instruct_tts", "--text=x"], "needs --style"),
        (["MODEL", "--task=asr", "--audio=a.wav", "--manifest=x"], "either --manifest or inputs"),
        (["MODEL", "--task=asr", "--audio=nowhere.wav"], "nowhere.wav: missing"),
        (["MODEL", "--task=tts", "--text=x", "--voice=v.wav"], "--task=tts takes no --voice"),
        (["MODEL", "--task=asr", "--audio=a.wav", "--thinking"], "--task=asr takes no --thinking"),
        (["MODEL", "--task=tts", "--text=LOUD <|EMPTY|>"], "holds <|empty|>"),
        (["MODEL", "--task=asr", "--audio=a.wav", "--out=/dev/null"], "--out=/dev/null: "),
        (["MODEL", "--task=asr", "--manifest=/nowhere"], "--manifest: "),
    ],
)
def test_mistakes_are_named(folders, tmp_path, capsys, flags, message):
    expanded = [part for flag in flags for part in (model_flags(folders) if flag == "MODEL" else [flag])]
    (tmp_path / "results.jsonl").write_text("earlier")
    assert generate.main([f"--out={tmp_path}", *expanded]) == 2
    assert (tmp_path / "results.jsonl").read_text() == "earlier"
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ")


def test_manifest_with_resume(folders, tmp_path, capsys):
    flags = [*model_flags(folders), "--task=pretrain_asr", f"--manifest={folders[0]}", "--max_new=4", "--batch=2"]
    assert generate.main([*flags, f"--out={tmp_path / 'whole'}"]) == 0
    whole = (tmp_path / "whole" / "results.jsonl").read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "broken", "2", "3", "4"]
    assert "broken.wav" in lines[2]["error"] and all("text" in line for line in lines if line["id"] != "broken")

    assert generate.main([*flags, f"--out={tmp_path / 'cut'}"]) == 0
    results = tmp_path / "cut" / "results.jsonl"
    results.write_bytes(whole[: len(whole) // 2])  # killed in the middle of a line
    assert generate.main([*flags, f"--out={tmp_path / 'cut'}"]) == 0
    assert results.read_bytes() == whole

    capsys.readouterr()
    assert generate.main([*flags, "--max_new=5", f"--out={tmp_path / 'cut'}"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_another_manifest_has_other_records(folders, tmp_path, capsys):
    flags = [*model_flags(folders), "--task=pretrain_asr", "--max_new=4", f"--out={tmp_path / 'out'}"]
    manifests = [tmp_path / name / "manifest.jsonl" for name in "ab"]
    for number, manifest in enumerate(manifests):
        write_manifest(manifest, [Record("0", str(folders[0] / f"{number}.wav"), "the cat", split="train")])
    assert generate.main([*flags, f"--manifest={manifests[0]}"]) == 0
    assert generate.main([*flags, f"--manifest={manifests[1]}"]) == 2
    assert "other settings" in capsys.readouterr().err


def test_speech_of_a_manifest(folders, tmp_path):
    """Names that cannot be those of files, texts that cannot be spoken: no record costs another its result."""
    texts = {"a/b": "the cat", "a_b": "the mat", "bad": "THE <|EMPTY|>", "n" * 250: "sat"}
    records = [Record(name, "0.wav", text, split="train") for name, text in texts.items()]
    write_manifest(tmp_path / "manifest.jsonl", records)
    flags = [*model_flags(folders), "--task=pretrain_tts", f"--manifest={tmp_path}", "--max_new=12", "--seed=3"]
    assert generate.main([*flags, f"--out={tmp_path / 'out'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(texts)
    assert ["error" in line for line in lines] == [False, False, True, False]
    names = [wav_name(name) for name in texts]
    assert len(set(names)) == 4 and names[1] == "a_b.wav" and max(map(len, names)) < 240
    assert all(line["audio"] == name for line, name in zip(lines, names, strict=True) if "audio" in line)


def test_an_answer_does_not_take_the_place_of_its_input(folders, tmp_path, capsys):
    wave = (folders[0] / "0.wav").read_bytes()
    (tmp_path / "0.wav").write_bytes(wave)
    write_manifest(tmp_path / "manifest.jsonl", [Record("0", "0.wav", split="train")])
    flags = [*model_flags(folders), "--task=continue_speech", "--max_new=4", f"--out={tmp_path}"]
    assert generate.main([*flags, f"--audio={tmp_path / '0.wav'}"]) == 2
    assert "would be overwritten" in capsys.readouterr().err
    assert generate.main([*flags, f"--manifest={tmp_path}"]) == 0
    assert "would be overwritten" in json.loads((tmp_path / "results.jsonl").read_text())["error"]
    assert (tmp_path / "0.wav").read_bytes() == wave


@pytest.mark.parametrize(
    "turns, message",
    [
        ([], "the last turn must be the user's"),
        ([{"role": "user", "text": "x"}, {"role": "assistant", "text": "y"}], "the last turn must be the user's"),
        ([{"role": "assistant", "audio": "0.wav"}, {"role": "user", "text": "x"}], "of an assistant with its words"),
        ([{"role": "user", "text": "x", "audio": "0.wav"}], "of a user without text"),
        ([{"role": "user", "audio": 5}], "audio is the path"),
        ([{"role": "user", "audio": None}], "a turn needs role"),
        ([{"role": "user", "text": 5}], "5 is given as a text"),
    ],
)
def test_dialogues_that_cannot_be_answered(folders, tmp_path, turns, message):
    (tmp_path / "talk.json").write_text(json.dumps(turns))
    options = argparse.Namespace(task="spoken_dialogue", audio=[], text=[], dialogue=tmp_path / "talk.json", seed=0)
    with pytest.raises(UserError, match=message):
        from_options(options, 24000)


def test_what_is_too_long_spoils_no_other(folders, tmp_path, capsys):
    flags = [*model_flags(folders), "--task=pretrain_asr", "--max_new=4", "--max_positions=18", f"--out={tmp_path}"]
    assert generate.main([*flags, f"--manifest={folders[0]}", "--batch=8"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["0", "1", "broken", "2", "3", "4"]
    reasons = [line.get("error", "").partition(" ")[0] for line in lines]
    assert "prompt" in reasons and "" in reasons, lines
    assert all("the limit for prompt and answer is 18" in x["error"] for x in lines if "prompt" in x.get("error", ""))

    capsys.readouterr()
    assert generate.main([*flags, f"--audio={folders[0] / '4.wav'}"]) == 2
    assert capsys.readouterr().err.startswith("error: 4: prompt of ")


def test_speech_is_written(folders, tmp_path, capsys):
    flags = [*model_flags(folders), "--task=continue_speech", f"--audio={folders[0] / '3.wav'}", "--max_new=4"]
    assert generate.main([*flags, f"--out={tmp_path}"]) == 0
    (line,) = [json.loads(x) for x in capsys.readouterr().out.splitlines()]
    assert line["id"] == "3" and line["seconds"] >= 0
    assert ("audio" in line) == (tmp_path / "3.wav").is_file()


def test_training_runs_with_a_text_tokenizer(folders, tmp_path, capsys):
    lm, tokenizer = folders[1:]
    for source, name in ((lm, "lm"), (tokenizer, "tokenizer")):
        assert convert.main(["import", f"--weights={source}", f"--out={tmp_path / name}"]) == 0
    run = [f"--lm={tmp_path / 'lm'}", f"--tokenizer={tmp_path / 'tokenizer'}"]
    task = ["--task=pretrain_asr", f"--audio={folders[0] / '0.wav'}", "--max_new=4"]
    for flags, out in ((model_flags(folders), "a"), ([*run, f"--text_tokenizer={lm}"], "b")):
        assert generate.main([*flags, *task, f"--out={tmp_path / out}"]) == 0
    (expected, made) = [(tmp_path / out / "results.jsonl").read_text() for out in "ab"]
    assert made == expected
    assert generate.main([*run, *task, f"--out={tmp_path / 'c'}"]) == 2
    assert "a training run has no text tokenizer" in capsys.readouterr().err


def test_weights_without_a_text_tokenizer(folders, tmp_path, capsys):
    config = json.loads((folders[1] / "config.json").read_text())
    del config["empty_token_id"]  # the released folder does not have it either
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text(json.dumps(config))
    (tmp_path / "lm" / "model.safetensors").symlink_to(folders[1] / "model.safetensors")
    flags = [f"--lm={tmp_path / 'lm'}", f"--tokenizer={folders[2]}", "--task=pretrain_asr"]
    flags += [f"--audio={folders[0] / '0.wav'}", "--max_new=4", f"--out={tmp_path / 'out'}"]
    assert generate.main(flags) == 2
    assert "no usable text tokenizer" in capsys.readouterr().err
    assert generate.main([*flags, f"--text_tokenizer={folders[0] / 'text'}"]) == 0


def test_a_silent_recording_has_an_empty_transcript(folders, tmp_path):
    write_wav(tmp_path / "silence.wav", np.zeros(24000, np.float32))
    flags = [f"--audio={tmp_path / 'silence.wav'}", "--format=vtt", f"--out={tmp_path / 'out'}"]
    assert transcribe.main([*model_flags(folders), *flags]) == 0
    assert (tmp_path / "out" / "silence.vtt").read_text().split() == ["WEBVTT"]


def test_help_is_quick_to_come_and_explains_the_tasks():
    """All commands in one process: they share the names of their options."""
    code = """
import sys
from mimo_jax import demo, generate, serve, transcribe
for command in (demo, serve, transcribe, generate):
    try:
        command.main(["--help"])
    except SystemExit as end:
        assert end.code == 0
assert not {"jax", "starlette", "gradio", "huggingface_hub"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--dialogue is a JSON list of turns" in done.stdout and "--no-thinking" in done.stdout
    assert done.stdout.count("--text_tokenizer TEXT_TOKENIZER") >= 4 and "(default: 256)" in done.stdout


def test_tasks_on_the_command_line():
    """All but the one whose questions come with examples of their own."""
    assert set(SOURCES) == set(TASKS) - {"few_shot_question_answering"}
    assert set(SOURCES) <= set(re.findall(r"\w+", generate.__doc__))
