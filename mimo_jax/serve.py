"""Serves a model over HTTP, with the protocol of OpenAI's API: chat with and without sound, speech, transcription.

    python -m mimo_jax.serve --lm=LM --tokenizer=TOKENIZER
    python -m mimo_jax.serve --lm=LM --tokenizer=TOKENIZER --port=8080 --voices=VOICES --dtype=bfloat16 --demo

LM and TOKENIZER are folders in the released layout, training runs (--text_tokenizer names what a run lacks) or
repositories of the Hugging Face hub, VOICES a folder of reference recordings, which requests name by their file names
without suffix. The key that requests must show is --api_key or, where other users could see the command line, the
environment variable MIMO_API_KEY. SIGTERM and Ctrl+C let running requests end. See docs/serving.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_jax.cli import UserError, log_to_stderr
from mimo_jax.inference import arguments as shared
from mimo_jax.serving.limits import Limits

if TYPE_CHECKING:
    import asyncio
    from types import FrameType

    import numpy as np
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from mimo_jax.inference.tasks import MimoAudio


def limits_of(options: argparse.Namespace) -> Limits:
    """The limits that were given. Raises UserError."""
    try:
        return Limits(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Limits)})
    except ValueError as error:
        raise UserError(f"--{error}") from error


def serve(options: argparse.Namespace) -> None:
    """Serves until it is told to stop."""
    log_to_stderr()
    limits, api_key = limits_of(options), options.api_key or os.environ.get("MIMO_API_KEY", "")
    if options.voices and not Path(options.voices).is_dir():
        raise UserError(f"--voices={options.voices}: no such folder")
    shared.require("uvicorn", "serve")
    if options.demo:
        shared.require("gradio", "demo")
    from mimo_jax.serving import server

    try:
        listening = server.bound(options.host, options.port)
    except OSError as error:
        raise UserError(f"--host={options.host} --port={options.port}: {error}") from error
    if options.host not in server.LOOPBACK and not api_key:
        _say(f"warning: {options.host} can be reached from elsewhere and no --api_key is set: everybody there may ask")

    from mimo_jax.serving.app import Endpoint
    from mimo_jax.serving.voices import load_voices
    from mimo_jax.serving.warm_up import warm_up

    _say(f"loading {options.lm} and {options.tokenizer}")
    engine: dict[str, Any] = {"max_batch": limits.max_batch, "max_positions": limits.max_positions}
    model = _shared(shared.load(options, options.compilation_cache, **engine), limits)
    voices = load_voices(options.voices, model.sample_rate) if options.voices else {}
    name = options.model_name or Path(options.lm).resolve().name
    endpoint = Endpoint(model, name=name, voices=voices, limits=limits, api_key=api_key)
    if options.warm_up:
        seconds = warm_up(endpoint.works.model, limits.max_batch, limits.max_audio_seconds, _say)
        _say(f"warm-up took {seconds:.0f} s")

    pages: list[asyncio.Event] = []

    def mount(application: Starlette) -> None:
        if options.demo:
            pages.append(_mount_demo(application, endpoint.works.model, voices, api_key))

    runs = server.server(endpoint.app(mount), limits, log_level="warning")
    for event in pages:
        _set_at_exit(event, runs)
    host, port = listening.getsockname()[:2]
    _say(f"serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}")
    runs.run(sockets=[listening])


def _mount_demo(
    application: Starlette, model: MimoAudio, voices: Mapping[str, np.ndarray], api_key: str
) -> asyncio.Event:
    """Adds /demo; once the event is set, pages that are open let go of their connections."""
    from starlette.responses import RedirectResponse
    from starlette.routing import Route

    from mimo_jax.serving import demo

    def page(request: Request) -> Response:
        # Relative: a proxy may serve this under another path.
        return RedirectResponse("demo/" + (f"?{request.url.query}" if request.url.query else ""))

    app: Any = application  # gradio writes of FastAPI, and mounts on what that is made of
    auth = ("mimo", api_key) if api_key else None
    demo.gr.mount_gradio_app(app, demo.build(model, voices), path="/demo", auth=auth, **demo.OPTIONS)
    mounted = app.routes[-1].app
    app.routes.append(Route("/demo", page))
    return mounted.stop_event


def _set_at_exit(event: asyncio.Event, runs: uvicorn.Server) -> None:
    """Sets an event when the server is told to stop: it waits for connections, and open pages hold one for ever."""
    handle_exit = runs.handle_exit

    def end(sig: int, frame: FrameType | None) -> None:
        event.set()
        handle_exit(sig, frame)

    runs.handle_exit = end  # type: ignore[method-assign]


def _shared(model: MimoAudio, limits: Limits) -> MimoAudio:
    """The same model for many threads."""
    from mimo_jax.inference.engine import Engine
    from mimo_jax.inference.service import Service
    from mimo_jax.inference.tasks import MimoAudio

    assert isinstance(model.engine, Engine)
    # Every dispatch of so many positions gives sound to those who listen.
    service = Service(model.engine, max_waiting=limits.max_requests, positions=8)
    return MimoAudio(service, model.tokenizer, model.codec)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 = a mistake in the input, named in one line)."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # of itself, and after uvicorn has ended its requests
    try:
        return _parser().run(serve, arguments)
    except KeyboardInterrupt:
        return 130


def _parser() -> shared.Parser:
    parser = shared.Parser("mimo_jax.serve", __doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; others than the loopback are open to a network")
    add("--port", type=shared.integer(0, 65535), default=8000, help="port; 0 = a free one")
    add("--api_key", default="", help="key that requests must show; default: MIMO_API_KEY, else none")
    add("--model_name", default="", help="name of the model in requests; default: the last part of --lm")
    add("--voices", default="", help="folder of recordings whose voices requests may name")
    parser.add_switch("demo", False, "also serve a page to try the model with, at /demo")
    parser.add_switch("warm_up", True, "compile the usual shapes before the first request")
    add(
        "--compilation_cache",
        default="",
        help="folder of compiled programs; default: JAX_COMPILATION_CACHE_DIR, else ~/.cache/mimo_jax/jax",
    )
    for field in dataclasses.fields(Limits):
        kind = {"int": int, "float": float}[str(field.type)]
        add(f"--{field.name}", type=kind, default=field.default, help=field.metadata["help"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
