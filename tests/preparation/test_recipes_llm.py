"""Text LLMs of recipes: strict replies, an endpoint that fails, replies that are kept, rules that say what is true."""

import collections
import contextlib
import json
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mimo_jax.cli import UserError
from mimo_jax.data.corpus import questions
from mimo_jax.data.corpus.plan import CorpusConfig, generator, plan_corpus
from mimo_jax.data.manifest import Record, to_json
from mimo_jax.data.manifest_files import read_conversations, write_manifest
from mimo_jax.preparation.accounts import Limits, TooManyBadRecords
from mimo_jax.preparation.elements import StageFault
from mimo_jax.preparation.recipes import rules_thoughts
from mimo_jax.preparation.recipes.base import Beside
from mimo_jax.preparation.recipes.forms import REASONS, Form, Rejected, Section, facts_of
from mimo_jax.preparation.recipes.instruct_tts import InstructTts
from mimo_jax.preparation.recipes.llm import Replies, open_llm
from mimo_jax.preparation.recipes.rules import Rules
from mimo_jax.preparation.recipes.run import run_recipe
from mimo_jax.preparation.recipes.thinking import Thinking

FORM = Form((Section("thought", "why", 40, lines=True), Section("answer", "what", 9)))
LOOSE = Limits(bad_share=1.0)


# --- replies ---------------------------------------------------------------------------------------------------------


def test_a_reply_is_its_sections():
    assert FORM.parse(" <thought>\na\nb</thought>\n\n<answer> c </answer>\n") == {"thought": "a\nb", "answer": "c"}
    assert FORM.parse(FORM.written(thought="x", answer="y")) == {"thought": "x", "answer": "y"}
    assert "<thought>why</thought>\n<answer>what</answer>" in FORM.described()


@pytest.mark.parametrize(
    "reply, reason",
    [
        ("", "empty_reply"),
        (" \n", "empty_reply"),
        ("a thought", "unparsable_reply"),
        ("<thought>a</thought>", "unparsable_reply"),
        ("<answer>c</answer><thought>a</thought>", "unparsable_reply"),
        ("Sure! <thought>a</thought><answer>c</answer>", "unparsable_reply"),
        ("<thought>a</thought> and so <answer>c</answer>", "unparsable_reply"),
        ("<thought>a</thought><answer>c</answer> I hope this helps", "unparsable_reply"),
        ("<thought>a</thought><answer>c", "unparsable_reply"),
        ("<thought></thought><answer>c</answer>", "empty_section"),
        ("<thought>a</thought><answer> \n </answer>", "empty_section"),
        ("<thought>a</thought><thought>b</thought><answer>c</answer>", "leaks_form"),
        ("<thought>a <|im_end|> b</thought><answer>c</answer>", "leaks_form"),
        ("<thought><think>a</think></thought><answer>c</answer>", "leaks_form"),
        ("<thought>```a```</thought><answer>c</answer>", "leaks_form"),
        (f"<thought>{'a' * 41}</thought><answer>c</answer>", "too_long"),
        ("<thought>a</thought><answer>c\nd</answer>", "several_lines"),
        ("<thought>The metadata says so</thought><answer>c</answer>", "leaks_source"),
        ("<thought>By the caption it is</thought><answer>c</answer>", "leaks_source"),
    ],
)
def test_other_replies_are_rejected(reply, reason):
    with pytest.raises(Rejected) as caught:
        FORM.parse(reply)
    assert caught.value.reason == reason and reason in REASONS


# --- an endpoint -----------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Chat completions by ``answer(facts) -> reply, or (status, text)``."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked, self.lock = [], threading.Lock()
        self.answer = right

    def spec(self, options=""):
        return f"openai:http://127.0.0.1:{self.server_port}/v1#writer?retries=0&backoff=0{options}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        facts = facts_of(prompt)
        with self.server.lock:
            self.server.asked.append(facts["id"])
        reply = self.server.answer(facts)
        status, content = 200, json.dumps({"choices": [{"message": {"content": reply}}]})
        if isinstance(reply, tuple):
            status, content = reply
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content.encode())

    def log_message(self, *_):
        pass


def right(facts):
    return f"<thought>It is {facts['answer']}.</thought><answer>{facts['answer']}</answer>"


@pytest.fixture
def server():
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def source(tmp_path):
    """Twelve recordings with a question each; they need not be there to be written about."""
    folder = tmp_path / "source"
    folder.mkdir()
    fields = {"text": "hello there", "caption": "A calm voice.", "split": "train"}
    qa = [{"question": "How is the voice?", "answer": "Calm."}]
    write_manifest(folder / "manifest.jsonl", [Record(f"r{i:02d}", f"{i}.wav", qa=qa, **fields) for i in range(12)])
    return str(folder)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_endpoint_writes_thoughts_and_bad_replies_are_listed(server, source, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    bad = {
        "r01": "no tags",
        "r02": "",
        "r03": "<thought>It is loud.</thought><answer>loud</answer>",
        "r04": f"<thought>{'so ' * 500}</thought><answer>Calm.</answer>",
        "r05": (400, "content filter"),
        "r06": None,
        "r07": "<thought>calm</thought><answer>  CALM </answer>",  # right, written otherwise
    }
    server.answer = lambda facts: bad.get(facts["id"][:3], right(facts))
    result = run_recipe(source, str(tmp_path / "out"), Thinking(), server.spec(), limits=LOOSE)
    made = read_conversations(tmp_path / "out")
    assert [c.id[:3] for c in made] == ["r00", "r07", "r08", "r09", "r10", "r11"]
    assert made[1].turns[1] == {
        "role": "assistant",
        "thinking": True,
        "content": [{"type": "text", "text": "Calm."}],
        "Chain-of-thought": "calm\n",
    }
    reasons = {"unparsable_reply": 1, "empty_reply": 2, "other_answer": 1, "too_long": 1, "refused": 1}
    assert result["account"]["reasons"] == reasons
    listed = lines(tmp_path / "out" / "quarantine.jsonl")
    assert [one["id"] for one in listed] == [f"r{i:02d}/thinking/qa0" for i in range(1, 7)]
    assert collections.Counter(one["reason"] for one in listed) == reasons
    assert "content filter" in listed[4]["detail"]
    assert (
        result["llm"].startswith("openai writer") and "sk-secret" not in (tmp_path / "out/synthesis.json").read_text()
    )


def test_what_was_answered_is_not_asked_again(server, source, tmp_path):
    out = tmp_path / "out"
    failing = {f"r{i:02d}" for i in (2, 5, 9)}
    server.answer = lambda facts: (503, "busy") if facts["id"][:3] in failing else right(facts)
    with pytest.raises(StageFault, match=r"3 of 12 calls failed.*503.*replies\.sqlite: start again"):
        run_recipe(source, str(out), Thinking(), server.spec())
    assert len(server.asked) == 12 and not (out / "conversations.jsonl").exists()
    server.asked.clear()
    server.answer = right
    run_recipe(source, str(out), Thinking(), server.spec())
    assert sorted(name[:3] for name in server.asked) == sorted(failing)
    whole = (out / "conversations.jsonl").read_bytes()
    server.asked.clear()
    # Finished parts, then replies, are enough: also for another folder, other parts, other modes, more workers.
    run_recipe(source, str(out), Thinking(), server.spec())
    shared = {"replies": str(out / "replies.sqlite")}
    other = tmp_path / "other"
    run_recipe(source, str(other), Thinking(), server.spec("&concurrency=2"), items_per_shard=3, workers=2, **shared)
    assert (other / "conversations.jsonl").read_bytes() == whole
    run_recipe(source, str(other), Thinking(modes=("plain", "thinking")), server.spec(), **shared)
    assert len(read_conversations(other)) == 24
    assert server.asked == []
    # Another model is another writer.
    run_recipe(source, str(other), Thinking(), server.spec().replace("#writer", "#author"), **shared)
    assert len(server.asked) == 12


CHILD = """
import sys
from mimo_jax.preparation.recipes.run import run_recipe
from mimo_jax.preparation.recipes.thinking import Thinking
run_recipe(sys.argv[1], sys.argv[2], Thinking(), sys.argv[3], workers=1)
"""


def test_a_killed_run_keeps_every_reply_that_came(server, source, tmp_path):
    hanging, release = threading.Event(), threading.Event()

    def answer(facts):
        if facts["id"] >= "r05":
            hanging.set()
            release.wait(30)
        return right(facts)

    server.answer = answer
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", CHILD, source, str(out), server.spec("&concurrency=1")])
    assert hanging.wait(30)
    store, end = sqlite3.connect(out / "replies.sqlite"), time.monotonic() + 10
    while store.execute("SELECT COUNT(*) FROM replies").fetchone()[0] < 5 and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    child.wait()
    release.set()
    server.answer = right
    with server.lock:
        server.asked.clear()
    run_recipe(source, str(out), Thinking(), server.spec())
    assert sorted(name[:3] for name in server.asked) == [f"r{i:02d}" for i in range(5, 12)]
    run_recipe(source, str(tmp_path / "whole"), Thinking(), server.spec())
    assert (out / "conversations.jsonl").read_bytes() == (tmp_path / "whole" / "conversations.jsonl").read_bytes()


def test_wrong_settings_and_too_many_bad_replies_stop_the_run(server, source, tmp_path):
    server.answer = lambda facts: (401, "who are you")
    with pytest.raises(StageFault, match="401.*correct the address, model or key"):
        run_recipe(source, str(tmp_path / "a"), Thinking(), server.spec())
    server.answer = lambda facts: "no" if facts["id"] < "r06" else right(facts)
    with pytest.raises(TooManyBadRecords, match="6 of 12 records are bad .*'unparsable_reply': 6"):
        run_recipe(source, str(tmp_path / "b"), Thinking(), server.spec(), limits=Limits(0.2, 5))


def test_the_first_reply_to_a_prompt_stays(tmp_path):
    one, other = Replies(tmp_path / "r.sqlite"), Replies(tmp_path / "r.sqlite")
    one.keep("m", "p", "first \ud800")
    other.keep("m", "p", "second")
    assert (one.find("m", "p"), other.find("m", "p")) == ("first ?", "first ?")
    assert one.find("m", "q") is one.find("n", "p") is None
    one._connection.execute("DROP TABLE replies")
    for call in (lambda: one.find("m", "p"), lambda: one.keep("m", "q", "r")):
        with pytest.raises(UserError, match=r"r\.sqlite: no such table.*start again"):
            call()
    (tmp_path / "text").write_text("no database, " * 100)
    with pytest.raises(UserError, match="text: not a store of replies"):
        Replies(tmp_path / "text")


# --- prompts and rules -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan():
    sizes = dict.fromkeys(("core_validation", "core_test_voices", "wide_validation", "wide_test_voices", "texts"), 0)
    return [u.record for u in plan_corpus(CorpusConfig(core_utterances=50, wide_utterances=1000, **sizes))[0]]


@pytest.mark.parametrize("recipe", [Thinking(), InstructTts(natural_share=0.4, voice_share=0.3)], ids=lambda r: r.name)
def test_rules_write_about_all_of_the_built_in_corpus(recipe, plan):
    beside = Beside(plan)
    asked = [request for record in plan for request in recipe.requests(record, beside)]
    replies = Rules().complete([request.prompt for request in asked])
    for request, reply in zip(asked, replies, strict=True):
        recipe.conversations(request, request.form.parse(reply))
    assert len(asked) > 800
    if recipe.name == "thinking":
        kinds = collections.Counter(r.record.attributes.get("kind", "sound") for r in asked)
        assert set(kinds) == {"sound", *questions.KINDS}
    else:
        assert sum("<request>" in reply for reply in replies) == pytest.approx(0.4 * len(asked), rel=0.15)
        assert sum(r.voice is not None for r in asked) == pytest.approx(0.3 * len(asked), rel=0.2)
        assert len(set(replies)) == len(replies)
    # Whatever comes before or beside: the same.
    assert Rules().complete([asked[7].prompt]) == [replies[7]]


def test_rules_say_nothing_that_is_not_so():
    rng = generator(5)
    told = 0
    for number in range(300):
        one, other = questions.question(rng), questions.question(rng)
        facts = {"id": f"{number}", "question": one.text, "answer": one.reply, "asked_aloud": True}
        assert one.answer in rules_thoughts.write(facts).split("<answer>")[0]
        if one.kind in ("arithmetic", "calendar") and other.answer != one.answer:
            told += rules_thoughts.write({**facts, "answer": other.reply}) != ""
    assert told == 0
    about = {
        "id": "x",
        "question": "how loud is the voice",
        "answer": "loud",
        "heard": {"attributes": {"volume": "loud"}},
    }
    assert "strong" in rules_thoughts.write(about)
    assert rules_thoughts.write({**about, "answer": "quiet"}) == ""
    assert rules_thoughts.write({**about, "question": "what is the weather like", "answer": "sunny"}) == ""
    described = {**about, "question": "how old is it", "heard": {"caption": "An old voice."}}
    assert rules_thoughts.write({**described, "answer": "young"}) == ""
    assert "What I hear: An old voice." in rules_thoughts.write({**described, "answer": "old"})


def test_a_prompt_holds_all_that_is_known_and_no_tag_of_the_data():
    record = Record(
        "a", "a.wav", "x </facts> y", caption="warm", qa=[{"question": "q", "answer": "b", "choices": ["b", "c"]}]
    )
    [request] = Thinking().requests(record, Beside([record]))
    assert request.prompt.count("</facts>") == 1
    facts = facts_of(request.prompt)
    assert facts["heard"] == {"caption": "warm", "text": "x </facts> y"} and facts["choices"] == ["b", "c"]
    assert request.question == "q Choose from: b, c."
    assert Thinking().requests(Record("a", "a.wav", qa=record.qa), Beside([])) == []


@pytest.mark.parametrize(
    "given, reason",
    [
        ({"request": "Say it softly", "thought": "t"}, "words_missing"),
        ({"style": "softly say: good, night to you", "thought": "t"}, "words_in_style"),
    ],
)
def test_instructions_and_words_are_told_apart(given, reason):
    record = Record("a", "a.wav", "Good night to you.", caption="soft")
    [request] = InstructTts().requests(record, Beside([record]))
    with pytest.raises(Rejected) as caught:
        InstructTts().conversations(request, given)
    assert caught.value.reason == reason
    [made] = InstructTts().conversations(request, {"request": 'Softly: "good night, to you"', "thought": "t"})
    assert "Chain-of-thought" in to_json(made)


def test_chinese_words_are_told_apart_from_the_style_too():
    record = Record("a", "a.wav", "今天天气很好。", caption="soft")
    [request] = InstructTts().requests(record, Beside([record]))
    with pytest.raises(Rejected) as caught:
        InstructTts().conversations(request, {"style": "轻声说今天天气很好", "thought": "t"})
    assert caught.value.reason == "words_in_style"
    assert InstructTts().conversations(request, {"style": "轻声说", "thought": "t"})


@pytest.mark.parametrize(
    "fields", [{"text": None}, {"caption": None}, {"attributes": {"noise": "hum"}}, {"clean": "b"}]
)
def test_unfit_recordings_are_not_asked_about(fields):
    record = Record("a", "a.wav", **{"text": "hello", "caption": "soft", **fields})
    assert InstructTts().requests(record, Beside([record])) == []


def test_specs():
    assert open_llm("rules").identity == "rules 1"
    with pytest.raises(UserError, match="there are: rules"):
        open_llm("magic")
    # Where a model runs does not decide what it says.
    assert (
        open_llm("openai:http://a/v1#m?seed=1").identity == open_llm("openai:http://b/v1#m?seed=1&timeout=9").identity
    )
    assert open_llm("openai:http://a/v1#m?seed=1").identity != open_llm("openai:http://a/v1#m?seed=2").identity
