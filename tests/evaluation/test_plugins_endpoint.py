"""Plug-ins behind an OpenAI-compatible endpoint: a local server that also fails in every way that servers do."""

import email.parser
import email.policy
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from mimo_jax.cli import UserError
from mimo_jax.evaluation import plugins

KEY = "sk-a-secret-key"


class Server(ThreadingHTTPServer):
    """Replies with ``answer(path, body)``, after the failures that are in the list."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.failures, self.lock = [], [], threading.Lock()
        self.under_way = self.most_under_way = 0
        self.delay = 0.0
        self.answer = lambda path, body: {"choices": [{"message": {"content": body["messages"][0]["content"] + "!"}}]}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            failure = server.failures.pop(0) if server.failures else None
            server.under_way += 1
            server.most_under_way = max(server.most_under_way, server.under_way)
        try:
            self.reply(failure, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had timed out
        finally:
            with server.lock:
                server.under_way -= 1

    def reply(self, failure, body):
        time.sleep(self.server.delay)
        if failure == "silent":
            time.sleep(0.6)
        if failure == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"{")
            self.close_connection = True
            return
        if failure == "closed":
            self.close_connection = True
            self.connection.close()
            return
        status, headers, content = 200, {}, b"not JSON"
        if isinstance(failure, tuple):
            status, headers, content = failure
        elif failure != "bad JSON":
            if self.headers["Content-Type"] == "application/json":
                body = json.loads(body)
            answer = self.server.answer(self.path, body)
            if isinstance(answer, tuple):
                status, headers, content = answer
            else:
                content = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def judge(server, options="", model="some/judge:1"):
    return plugins.load("judge", f"openai:{server.url}#{model}?backoff=0.01&{options}")


def test_a_judge_is_asked_with_its_settings(server):
    plugin = judge(server, "max_tokens=100&seed=7")
    assert isinstance(plugin, plugins.Judge)
    assert plugin.ask(["one?", "两?"]) == ["one?!", "两?!"]
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    values = json.loads(body)
    assert len(values.pop("messages")) == 1
    assert values == {"model": "some/judge:1", "temperature": 0, "max_tokens": 100, "seed": 7}
    assert judge(server, "temperature=").ask(["a"]) == ["a!"]
    assert "temperature" not in json.loads(server.requests[-1][2])


def test_the_identity_has_what_decides_replies_and_no_more(server):
    plugin = judge(server, "seed=7&timeout=5&concurrency=2&retries=1")
    assert plugin.identity == f"openai judge {server.url}#some/judge:1 temperature=0 seed=7"


FAILURES = {
    "rate": (429, {}, b"slow down"),
    "server": (500, {}, b""),
    "overloaded": (503, {}, b"later"),
    "bad JSON": "bad JSON",
    "form": (200, {}, b'{"choices": []}'),
    "empty": (200, {}, b'{"choices": [{"message": {"content": ""}, "finish_reason": "length"}]}'),
    "cut": "cut",
    "closed": "closed",
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_may_pass_is_tried_again(server, failure):
    server.failures += [failure, failure]
    assert judge(server).ask(["a"]) == ["a!"]
    assert len(server.requests) == 3


def test_a_silent_endpoint_is_given_up_on_and_tried_again(server):
    server.failures.append("silent")
    assert judge(server, "timeout=0.3").ask(["a"]) == ["a!"]
    assert len(server.requests) == 2


def test_the_endpoint_says_how_long_to_wait(server):
    server.failures.append((429, {"Retry-After": "0.4"}, b""))
    start = time.monotonic()
    assert judge(server).ask(["a"]) == ["a!"]
    assert time.monotonic() - start >= 0.4


def test_waits_double(server, monkeypatch):
    from mimo_jax import endpoints

    waits = []
    monkeypatch.setattr(endpoints.Endpoint, "_pause", lambda self, seconds: waits.append(seconds))
    monkeypatch.setattr(endpoints.random, "random", lambda: 1.0)
    server.failures += [(500, {}, b"")] * 3 + [(429, {"Retry-After": "9999"}, b"")]
    plugins.load("judge", f"openai:{server.url}#m?backoff=25").ask(["a"])
    assert waits == [25, 50, 60, 60]


def test_the_last_try_fails_the_call_and_the_others_are_kept(server):
    server.answer = lambda path, body: (
        {"error": "no"}
        if (text := body["messages"][0]["content"]) == "bad"
        else {"choices": [{"message": {"content": text.upper()}}]}
    )
    with pytest.raises(plugins.PluginError, match="1 of 3 calls failed.*KeyError.*3 tries") as caught:
        judge(server, "retries=2").ask(["a", "bad", "c"])
    assert caught.value.finished == {0: "A", 2: "C"}
    assert len(server.requests) == 5


def test_a_refused_request_is_not_repeated(server):
    server.failures.append((400, {}, b"content filter"))
    with pytest.raises(plugins.PluginError, match="HTTP 400: content filter"):
        judge(server).ask(["a"])
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_wrong_settings_are_the_users(server, status):
    server.failures.append((status, {}, f"wrong key {KEY}".encode()))
    with pytest.raises(UserError, match=f"some/judge:1: HTTP {status}: wrong key ") as caught:
        judge(server, "concurrency=1").ask(["a"])
    assert KEY not in str(caught.value)


def test_wrong_settings_end_the_wait_of_the_other_calls(server):
    right, plugin = server.answer, plugins.load("judge", f"openai:{server.url}#m?concurrency=2&backoff=30")
    server.answer = lambda path, body: (500 if body["messages"][0]["content"] == "busy" else 401, {}, b"")
    start = time.monotonic()
    with pytest.raises(UserError, match="401"):
        plugin.ask(["busy", "b", "c"])
    assert time.monotonic() - start < 10 and len(server.requests) <= 3
    server.answer = right
    assert plugin.ask(["c"]) == ["c!"]


def test_nothing_listens(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    closed = Server()
    closed.server_close()
    with pytest.raises(plugins.PluginError, match="refused.*2 tries"):
        judge(closed, "retries=1").ask(["a"])


def test_the_key_is_never_written(server, caplog):
    import logging

    caplog.set_level(logging.DEBUG)
    server.failures += [(500, {}, f"your key {KEY}".encode()), (500, {}, f"your key {KEY}".encode())]
    plugin = judge(server, "retries=1")
    with pytest.raises(plugins.PluginError) as caught:
        plugin.ask(["a"])
    assert "your key ***" in str(caught.value)
    assert KEY not in str(caught.value) + plugin.identity + caplog.text


def test_a_redirection_is_not_followed(server):
    server.failures.append((302, {"Location": f"{server.url}/elsewhere"}, b""))
    with pytest.raises(UserError, match="HTTP 302"):
        judge(server).ask(["a"])
    assert len(server.requests) == 1


def test_the_key_is_where_the_spec_says(server, monkeypatch):
    monkeypatch.setenv("OTHER_KEY", "sk-other")
    judge(server, "key=OTHER_KEY").ask(["a"])
    judge(server, "key=").ask(["a"])
    monkeypatch.delenv("OPENAI_API_KEY")
    judge(server).ask(["a"])
    assert [headers.get("Authorization") for _, headers, _ in server.requests] == ["Bearer sk-other", None, None]
    with pytest.raises(UserError, match="MISSING_KEY"):
        judge(server, "key=MISSING_KEY")


def test_a_key_that_cannot_be_sent_is_not_shown(server, monkeypatch):
    for key in ("sk-one\nsk-two", "sk-oné"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError, match="OPENAI_API_KEY holds signs") as caught:
            judge(server)
        assert "sk-" not in str(caught.value)


def test_calls_under_way_are_bounded_and_replies_in_order(server):
    server.delay = 0.05
    prompts = [str(i) for i in range(12)]
    assert judge(server, "concurrency=4").ask(prompts) == [f"{i}!" for i in range(12)]
    assert server.most_under_way == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("openai:http://a/v1", "expected openai:BASE_URL#MODEL"),
        ("openai:a/v1#m", "expected openai:BASE_URL#MODEL"),
        ("openai:http://me:word@a/v1#m", "environment variable"),
        ("openai:http://me:word@a/v1", "environment variable"),
        ("openai:http://a/v1?api_key=word#m", "environment variable"),
        ("openai:http://a/v1#m?timeout=soon", "timeout=soon"),
        ("openai:http://a/v1#m?concurrency=0", "from 1 up"),
        ("openai:http://a/v1#m?max_tokens=x", "max_tokens=x"),
        ("openai:http://a/v1#m?top_q=1", "no option top_q; there are: key, timeout"),
    ],
)
def test_specs_of_another_form_are_refused(spec, message):
    with pytest.raises(UserError, match=message) as caught:
        plugins.load("judge", spec)
    assert "word" not in str(caught.value).replace("password", "")


def test_speech_goes_as_a_file(server):
    def answer(path, body):
        return {"text": " some words\n"}

    server.answer = answer
    plugin = plugins.load("transcriber", f"openai:{server.url}#whisper-1")
    assert isinstance(plugin, plugins.Transcriber)
    wave = np.sin(np.arange(800) / 5).astype(np.float32)
    assert plugin.transcribe([wave, np.zeros(0, np.float32)], 16_000, "zh") == ["some words", ""]
    (path, headers, body) = server.requests[0]
    assert path == "/v1/audio/transcriptions" and len(server.requests) == 1
    head = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
    form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    parts = {part.get_param("name", header="Content-Disposition"): part for part in form.iter_parts()}
    file = parts.pop("file")
    fields = {name: part.get_payload(decode=True).decode() for name, part in parts.items()}
    assert fields == {"model": "whisper-1", "language": "zh", "temperature": "0", "response_format": "json"}
    sent, rate = soundfile.read(io.BytesIO(file.get_payload(decode=True)), dtype="float32")
    assert rate == 16_000 and np.allclose(sent, wave, atol=1e-4) and file.get_filename() == "audio.wav"


def test_embeddings_come_in_order_and_of_unit_length(server):
    def answer(path, body):
        assert path == "/v1/embeddings" and all(body["input"])
        rows = [{"index": i, "embedding": [3.0, 4.0 * len(t)]} for i, t in enumerate(body["input"])]
        return {"data": rows[::-1]}

    server.answer = answer
    plugin = plugins.load("text_embedder", f"openai:{server.url}#e?dimensions=2&concurrency=3")
    assert isinstance(plugin, plugins.TextEmbedder)
    texts = ["x" * (i % 5) for i in range(130)]
    vectors = plugin.embed(texts)
    expected = np.array([[3.0, 4.0 * max(1, len(text))] for text in texts])
    assert np.allclose(vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert len(server.requests) == 3 and json.loads(server.requests[0][2])["dimensions"] == 2
    assert not plugin.embed([]).size
    server.answer = lambda path, body: (503, {}, b"") if len(body["input"]) == 64 else answer(path, body)
    with pytest.raises(plugins.PluginError) as caught:
        plugins.load("text_embedder", f"openai:{server.url}#e?retries=0").embed(texts[:70])
    assert caught.value.finished == {} and sorted(caught.value.failures) == list(range(64))  # by text, not by call
    server.answer = lambda path, body: {"data": []}
    with pytest.raises(plugins.PluginError, match="KeyError"):
        plugins.load("text_embedder", f"openai:{server.url}#e?retries=0").embed(["a"])
