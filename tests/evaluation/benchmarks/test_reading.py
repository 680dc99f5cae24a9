"""Data as published: mistakes named by file, line and field; Parquet with sound inside; a judge that hears."""

import base64
import io
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile

from mimo_jax.cli import UserError
from mimo_jax.evaluation.benchmarks import listening, registry
from mimo_jax.evaluation.benchmarks.runner import Options, generate
from mimo_jax.evaluation.benchmarks.store import AnswerStore
from mimo_jax.evaluation.plugins.base import PluginError
from tests.evaluation.benchmarks.stand_ins import Model, hashing

# task, file, what is replaced, by what, what the error says
MISTAKES = [
    ("mmsu", "question/mmsu.jsonl", '"choice_c": 7, ', "", "mmsu.jsonl, line 1: field 'choice_c' is missing"),
    (
        "mmsu",
        "question/mmsu.jsonl",
        '"answer_gt": "green"',
        '"answer_gt": "pink"',
        "line 2: field 'answer_gt' is 'pink'",
    ),
    ("mmsu", "question/mmsu.jsonl", '{"id": "s3"', '{"id" "s3"', "mmsu.jsonl, line 4: no JSON"),
    ("mmsu", "question/mmsu.jsonl", '"id": "s1"', '"id": "s0"', "two items have the id 's0'"),
    ("mmsu", "question/mmsu.jsonl", "audio/4.wav", "audio/nowhere.wav", "line 5: field 'audio_path' names"),
    ("mmau", "mmau-test-mini.json", '"answer": "狗叫"', '"answer": "牛叫"', "record 8: field 'choices' does not hold"),
    ("mmau_few_shot", "mmau-test-mini.json", '"task": "speech"', '"task": "music"', None),
    ("mmar", "MMAR-meta.json", '"modality"', '"mode"', "MMAR-meta.json, record 1: field 'modality' is missing"),
    ("mmau_pro", "data.jsonl", '"No Commas"', '"No commas"', "line 3: field 'task_identifier' is 'No commas'"),
    (
        "mmau_pro",
        "data.jsonl",
        '"Include Keywords", "kwargs": {',
        '"Number Words (range)", "kwargs": {"N1": 1, ',
        "'N2'",
    ),
    ("mmau_pro", "data.jsonl", '"keywords"', '"words"', "line 2: field 'kwargs' does not suit the rule"),
    ("speech_mmlu_s2s", "data.jsonl", '"answer": 3', '"answer": 4', "line 4: field 'answer' is 4"),
    ("speech_mmlu_s2s", "data.jsonl", '"voice_id": "v002"', '"voice_id": "v9"', "line 2: field 'voice_id' 'v9' names"),
    ("speech_mmlu_t2t", "few_shot_prompts.json", '"beginning"', '"start"', "'law' needs a beginning and 5 examples"),
    ("big_bench_audio_s2t", "data.jsonl", '"official_answer": "yes"', '"official_answer": ""', "line 2: field"),
    ("multi_challenge_s2s", "data.jsonl", '"PASS_CRITERIA": "YES"', '"PASS_CRITERIA": "MAYBE"', "expected YES or NO"),
    ("multi_challenge_s2s", "data.jsonl", '"v1"', '"v2"', "field 'assistant_voice_id' names 'prompt_wav/v2.wav'"),
    ("librispeech", "test_clean/manifest.txt", "1089-1\t", "1089-1 ", "manifest.txt, line 2: expected id, a tab"),
    ("librispeech", "test_clean/manifest.txt", "1089-1\t", "1089-2\t", "manifest.txt, line 2: field 'id' names"),
    ("instruct_tts_eval_en", "en.jsonl", '"DSD"', '"dsd"', "en.jsonl, line 1: field 'DSD' is missing"),
    ("voice_conversion", "VoiceConversion.tsv", "#", "+", "record 1: field 'prompt' holds"),
    ("emotion_conversion", "ex01_happy2sad.scp", "wav/a1.wav|", "wav/a1.wav ", "scp, line 2: expected source|target"),
    ("emotion_conversion", "transcripts.tsv", "b2\t", "c2\t", "transcripts.tsv has no words of b2"),
    ("denoising", "pairs.jsonl", '"text": "please call stella"', '"text": " "', "line 1: field 'text' is empty"),
]


@pytest.mark.parametrize("task, file, old, new, message", MISTAKES)
def test_mistakes_in_data_are_named(data, tmp_path, task, file, old, new, message):
    benchmark = registry.tasks()[task]
    folder = tmp_path / benchmark.data
    shutil.copytree(data / benchmark.data, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    if message is None:  # a change that is none
        assert len(benchmark.read(folder)) == 12
        return
    with pytest.raises(UserError) as error:
        benchmark.read(folder)
    assert message in str(error.value)


def test_signs_that_break_lines_may_stand_in_texts(data, tmp_path):
    folder = tmp_path / "mmsu"
    shutil.copytree(data / "mmsu", folder)
    path = folder / "question" / "mmsu.jsonl"
    first = json.loads(path.read_text().splitlines()[0])
    rows = [first | {"id": f"{k}", "question": f"one{sign}two"} for k, sign in enumerate("\u2028\x85\u2029")]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("\ufeff" + text, newline="")
    (folder / ".cache").mkdir()  # as a download from the hub leaves it
    (folder / ".cache" / "state.json").write_text("{}")
    assert [i.fields["question"] for i in registry.tasks()["mmsu"].read(folder)] == [r["question"] for r in rows]
    path.rename(folder / "question" / "other.jsonl")
    assert len(registry.tasks()["mmsu"].read(folder)) == 3
    (tmp_path / "seed" / "en").mkdir(parents=True)
    (tmp_path / "seed" / "en" / "text.txt").write_text("\ufeffone\u2028two\nthree\n")
    items = registry.tasks()["seed_tts_en"].read(tmp_path / "seed")
    assert [item.fields["text"] for item in items] == ["one\u2028two", "three"]


def test_recordings_may_be_named_in_any_way(data, tmp_path):
    """Paths with detours and objects behind URLs are the items' recordings as they are named."""
    benchmark = registry.tasks()["speech_mmlu_s2t"]
    folder = tmp_path / "speech_mmlu"
    shutil.copytree(data / "speech_mmlu", folder)
    path = folder / "data.jsonl"
    path.write_text(path.read_text().replace('"audio/law/', '"audio//./law/'))
    answers = []
    for place in (data / "speech_mmlu", folder):
        store = AnswerStore(tmp_path / "out" / str(len(answers)))
        store.claim({})
        assert generate(Model(hashing), benchmark, benchmark.read(place), store, Options()) == {}
        answers.append(store.answers())
    assert answers[0] == answers[1] != {}


@pytest.mark.parametrize("task", registry.tasks())
def test_missing_data_are_named(task, tmp_path):
    with pytest.raises(UserError, match=str(tmp_path)):
        registry.tasks()[task].read(tmp_path / "nowhere")


def test_parquet_with_recordings_inside(data, tmp_path):
    """As on the hub: the same items, and the same codes, as from files."""
    benchmark = registry.tasks()["big_bench_audio_s2t"]
    rows = [json.loads(line) for line in (data / "big_bench_audio" / "data.jsonl").open()]
    for row in rows:
        row["audio"] = {"bytes": (data / "big_bench_audio" / row["audio"]).read_bytes(), "path": row["audio"]}
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "parquet" / "data" / "train-0.parquet", row_group_size=2)
    answers = []
    for name, folder in (("files", data / "big_bench_audio"), ("parquet", tmp_path / "parquet")):
        store = AnswerStore(tmp_path / "out" / name)
        store.claim({})
        assert generate(Model(hashing), benchmark, benchmark.read(folder), store, Options()) == {}
        answers.append(store.answers())
    assert answers[0] == answers[1] and len(answers[0]) == 3


class _Endpoint(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, sound = asked["messages"][0]["content"]
        wave, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["input_audio"]["data"])))
        if "broken" in text["text"]:
            self.send_error(400)
            return
        said = f"{text['text']}: {len(wave)} samples at {rate}, YES"
        body = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_judge_that_hears():
    server = HTTPServer(("127.0.0.1", 0), _Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        listener = listening.load(f"openai:http://127.0.0.1:{server.server_port}/v1#ears?key=&retries=0")
        waves = [(np.zeros(500, np.float32), 24_000), (np.zeros(0, np.float32), 16_000)]
        assert listener.ask(["one", "two"], waves) == [
            "one: 500 samples at 24000, YES",
            "two: 1600 samples at 16000, YES",
        ]
        with pytest.raises(PluginError) as error:
            listener.ask(["one", "broken"], waves)
        assert error.value.finished == {0: "one: 500 samples at 24000, YES"}
        assert "ears" in listener.identity
    finally:
        server.shutdown()
    with pytest.raises(UserError, match="temperature=hot must be a number"):
        listening.load("openai:http://a/v1#m?temperature=hot")
    with pytest.raises(UserError, match="expected openai"):
        listening.load("whisper")
