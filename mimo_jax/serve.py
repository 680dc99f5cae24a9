"""Serves a model over HTTP, with the protocol of OpenAI's API: chat with and without sound, speech, transcription.

    python -m mimo_jax.serve --lm=LM --tokenizer=TOKENIZER
    python -m mimo_jax.serve --lm=LM --tokenizer=TOKENIZER --port=8080 --voices=VOICES --dtype=bfloat16 --demo

LM and TOKENIZER are folders in the released layout, VOICES one of reference recordings, which requests name by their
file names without suffix. The key that requests must show is --api_key or, where other users could see the command
line, the environment variable MIMO_API_KEY. SIGTERM and Ctrl+C let running requests end. See docs/serving.md.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from mimo_jax.cli import UserError, log_to_stderr, use_compilation_cache
from mimo_jax.serving.limits import Limits

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from mimo_jax.inference.tasks import MimoAudio

_LM = flags.DEFINE_string("lm", "", "folder of the language model (released layout, with its text tokenizer)")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "folder of the audio tokenizer (released layout)")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; others than the loopback are open to a network")
_PORT = flags.DEFINE_integer("port", 8000, "port; 0 = a free one", lower_bound=0, upper_bound=65535)
_API_KEY = flags.DEFINE_string("api_key", "", "key that requests must show; default: MIMO_API_KEY, else none")
_NAME = flags.DEFINE_string("model_name", "", "name of the model in requests; default: the name of --lm's folder")
_VOICES = flags.DEFINE_string("voices", "", "folder of recordings whose voices requests may name")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the language model's computation")
_DEMO = flags.DEFINE_bool("demo", False, "also serve a page to try the model with, at /demo")
_WARM_UP = flags.DEFINE_bool("warm_up", True, "compile the usual shapes before the first request")
_CACHE = flags.DEFINE_string(
    "compilation_cache", "", "folder of compiled programs; default: JAX_COMPILATION_CACHE_DIR, else ~/.cache/mimo_jax"
)
_DEFINE: dict[str, Any] = {"int": flags.DEFINE_integer, "float": flags.DEFINE_float}
_LIMITS: dict[str, Any] = {
    field.name: _DEFINE[str(field.type)](field.name, field.default, field.metadata["help"])
    for field in dataclasses.fields(Limits)
}


def limits_of_flags() -> Limits:
    """The limits that were given. Raises UserError."""
    try:
        return Limits(**{name: flag.value for name, flag in _LIMITS.items()})
    except ValueError as error:
        raise UserError(f"--{error}") from error


def serve() -> None:
    """Runs what the flags say, until it is told to stop."""
    limits, api_key = limits_of_flags(), _API_KEY.value or os.environ.get("MIMO_API_KEY", "")
    for flag in (_LM, _TOKENIZER):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; `python -m mimo_jax.serve --help` explains")
        if not Path(flag.value).is_dir():
            raise UserError(f"--{flag.name}={flag.value}: no such folder")
    if _VOICES.value and not Path(_VOICES.value).is_dir():
        raise UserError(f"--voices={_VOICES.value}: no such folder")
    from mimo_jax.serving import server

    try:
        listening = server.bound(_HOST.value, _PORT.value)
    except OSError as error:
        raise UserError(f"--host={_HOST.value} --port={_PORT.value}: {error}") from error
    if _HOST.value not in server.LOOPBACK and not api_key:
        _say(f"warning: {_HOST.value} can be reached from elsewhere and no --api_key is set: everybody there may ask")

    use_compilation_cache(_CACHE.value)
    from mimo_jax.inference.tasks import MimoAudio
    from mimo_jax.serving.app import Endpoint
    from mimo_jax.serving.voices import load_voices
    from mimo_jax.serving.warm_up import warm_up

    _say(f"loading {_LM.value} and {_TOKENIZER.value}")
    engine: dict[str, Any] = {"max_batch": limits.max_batch, "max_positions": limits.max_positions}
    model = MimoAudio.load(_LM.value, _TOKENIZER.value, dtype=_DTYPE.value, **engine)
    model = _shared(model, limits)
    voices = load_voices(_VOICES.value, model.sample_rate) if _VOICES.value else {}
    name = _NAME.value or Path(_LM.value).resolve().name
    endpoint = Endpoint(model, name=name, voices=voices, limits=limits, api_key=api_key)
    if _WARM_UP.value:
        seconds = warm_up(endpoint.works.model, limits.max_batch, limits.max_audio_seconds, _say)
        _say(f"warm-up took {seconds:.0f} s")

    def mount_demo(application: Starlette) -> None:
        if _DEMO.value:
            import gradio

            from mimo_jax.serving import demo

            blocks = demo.build(endpoint.works.model, voices)
            auth = ("mimo", api_key) if api_key else None
            app: Any = application  # gradio writes of FastAPI, and mounts on what that is made of
            gradio.mount_gradio_app(app, blocks, path="/demo", auth=auth, **demo.OPTIONS)

    host, port = listening.getsockname()[:2]
    application = endpoint.app(mount_demo)
    _say(f"serving {name} at http://{f'[{host}]' if ':' in host else host}:{port}")
    server.server(application, limits, log_level="warning").run(sockets=[listening])


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


def main(argv: Sequence[str]) -> None:
    """Entry point; exits with code 2 on a user's mistake."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # of itself, and after uvicorn has ended its requests
    try:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}; every option starts with --")
        log_to_stderr()
        serve()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    app.run(main)
