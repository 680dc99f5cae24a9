"""A web page on which a model can be tried: transcribe, speak, talk, ask about recordings, chat, continue, convert.

    python -m mimo_jax.demo --lm=LM --tokenizer=TOKENIZER
    python -m mimo_jax.demo --lm=LM --tokenizer=TOKENIZER --voices=FOLDER --port=8000

LM and TOKENIZER are folders in the released layout, FOLDER holds recordings of voices to answer in. The page is served
to this machine only unless --host says otherwise; it asks for no password. Speech is played while it is generated where
the program ffmpeg is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags

from mimo_jax.cli import UserError, log_to_stderr, use_compilation_cache

_LM = flags.DEFINE_string("lm", "", "folder of the language model (released layout, with its text tokenizer)")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "folder of the audio tokenizer (released layout)")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen at; 0.0.0.0 = all, for everyone in the network")
_PORT = flags.DEFINE_integer("port", 7860, "port to listen at", lower_bound=0, upper_bound=65535)
_VOICES = flags.DEFINE_string("voices", "", "folder of recordings that are offered as voices of answers")
_BATCH = flags.DEFINE_integer("batch", 8, "answers computed together", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the language model's computation")


def check_inputs() -> None:
    """Raises UserError where flags are missing or name no folder."""
    for flag in (_LM, _TOKENIZER):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; `python -m mimo_jax.demo --help` explains")
    for flag in (_LM, _TOKENIZER, _VOICES):
        if flag.value and not Path(flag.value).is_dir():
            raise UserError(f"--{flag.name}={flag.value}: no such folder")


def demo() -> None:
    """Serves the page until it is interrupted."""
    check_inputs()
    log_to_stderr()
    from mimo_jax.inference.engine import Engine
    from mimo_jax.inference.service import Service
    from mimo_jax.inference.tasks import MimoAudio
    from mimo_jax.serving.demo import OPTIONS, build
    from mimo_jax.serving.demo_tasks import Limits
    from mimo_jax.serving.voices import load_voices

    limits = Limits(running=2 * _BATCH.value)
    use_compilation_cache()
    loaded = MimoAudio.load(_LM.value, _TOKENIZER.value, dtype=_DTYPE.value, max_batch=_BATCH.value)
    voices = load_voices(_VOICES.value, loaded.sample_rate) if _VOICES.value else {}
    assert isinstance(loaded.engine, Engine)
    with Service(loaded.engine) as service:
        page = build(MimoAudio(service, loaded.tokenizer, loaded.codec), voices, limits)
        try:
            _, url, _ = page.launch(
                server_name=_HOST.value,
                server_port=_PORT.value,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                **OPTIONS,
            )
        except OSError as error:
            raise UserError(f"--host={_HOST.value} --port={_PORT.value}: cannot listen there; is it in use?") from error
        print(f"The demo is at {url} (Ctrl-C ends it)", flush=True)
        page.block_thread()


def main(argv: Sequence[str]) -> None:
    """Entry point; exits with code 2 on a user's mistake."""
    try:
        if argv[1:]:
            raise UserError(f"unexpected argument {argv[1]!r}; every option starts with --")
        demo()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    # Nothing is asked of other hosts; read by what gradio imports.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app.run(main)
