"""A web page on which a model can be tried: transcribe, speak, talk, ask about recordings, chat, continue, convert.

    python -m mimo_jax.demo --lm=LM --tokenizer=TOKENIZER
    python -m mimo_jax.demo --lm=LM --tokenizer=TOKENIZER --voices=FOLDER --port=8000

LM and TOKENIZER are folders in the released layout, training runs (--text_tokenizer names what a run lacks) or
repositories of the Hugging Face hub, FOLDER holds recordings of voices to answer in. The page is served to this machine
only unless --host says otherwise; it asks for no password. Speech is played while it is generated where the program
ffmpeg is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mimo_jax.cli import UserError, log_to_stderr
from mimo_jax.inference import arguments as shared


def demo(options: argparse.Namespace) -> None:
    """Serves the page until it is interrupted."""
    if options.voices and not Path(options.voices).is_dir():
        raise UserError(f"--voices={options.voices}: no such folder")
    shared.require("gradio", "demo")
    log_to_stderr()
    from mimo_jax.inference.engine import Engine
    from mimo_jax.inference.service import Service
    from mimo_jax.inference.tasks import MimoAudio
    from mimo_jax.serving.demo import OPTIONS, build
    from mimo_jax.serving.demo_tasks import Limits
    from mimo_jax.serving.voices import load_voices

    limits = Limits(running=2 * options.batch)
    loaded = shared.load(options, max_batch=options.batch)
    voices = load_voices(options.voices, loaded.sample_rate) if options.voices else {}
    assert isinstance(loaded.engine, Engine)
    with Service(loaded.engine) as service:
        page = build(MimoAudio(service, loaded.tokenizer, loaded.codec), voices, limits)
        try:
            _, url, _ = page.launch(
                server_name=options.host,
                server_port=options.port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                **OPTIONS,
            )
        except OSError as error:
            raise UserError(
                f"--host={options.host} --port={options.port}: cannot listen there; is it in use?"
            ) from error
        print(f"The demo is at {url} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code (2 = a mistake in the input, named in one line)."""
    return _parser().run(demo, arguments)


def _parser() -> shared.Parser:
    parser = shared.Parser("mimo_jax.demo", __doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 = all, for everyone in the network")
    add("--port", type=shared.integer(0, 65535), default=7860, help="port to listen at")
    add("--voices", default="", help="folder of recordings that are offered as voices of answers")
    add("--batch", type=shared.integer(1), default=8, help="answers computed together")
    return parser


if __name__ == "__main__":
    sys.exit(main())
