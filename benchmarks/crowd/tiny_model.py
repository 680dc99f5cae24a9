"""A tiny model of random weights to be served, its voices and recordings, and the process that serves it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

RATE = 24_000
LIMITS = {"max_body_bytes": 2_000_000, "max_audio_seconds": 8.0, "max_characters": 2000, "max_messages": 8}
LIMITS |= {"max_new": 64, "max_positions": 256}
NAME = "tiny"
WORDS = ["the cat sat on the mat", "say it softly", "what do you hear", "good morning to you all", "a long walk home"]


def write_model(folder: Path) -> None:
    """Writes `lm`, `tokenizer` and `voices`: tiny, random, about half of each answer speech."""
    import jax
    import soundfile

    from mimo_jax.data import prompts
    from mimo_jax.data.text_tokenizer import train_text_tokenizer
    from mimo_jax.interop import hf
    from mimo_jax.models.mimo_audio import MimoAudioConfig
    from mimo_jax.models.tokenizer import TokenizerConfig

    # Prompts are short where the tokenizer knows their words.
    known = [*WORDS, prompts.STYLE_LINE, prompts.STYLE_VOICE_LINE, prompts.VOICE_LINE, "user\n", "assistant\n"]
    known += [wording for pool in (prompts.ASR_INSTRUCTIONS, prompts.TTS_INSTRUCTIONS) for wording in pool["en"]]
    text = train_text_tokenizer(known * 3, vocab_size=700)
    config = MimoAudioConfig(
        vocab_size=text.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        audio_channels=4,
        delay_pattern=(0, 1, 2, 3),
        speech_vocab_size=(17, 17, 9, 9),
        speech_zeroemb_idx=(16, 16, 8, 8),
        local_dim=16,
        local_layers=1,
        local_attn_heads=2,
        local_ffn_dim=32,
        input_local_layers=1,
        input_local_dim=16,
        empty_token_id=text.special.empty,
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), hf.lm_shapes(config))
    # With this one the token `<|empty|>`, which stands for a patch, is the best at about every third position.
    column = np.random.default_rng(8).normal(0, 3, config.hidden_size)
    params["lm_head"]["kernel"][:, config.empty_token_id] = column
    text.save(folder / "text")
    hf.save_lm(folder / "lm", config, params, text_tokenizer_dir=folder / "text")

    tokenizer = TokenizerConfig(
        d_model=32,
        encoder_layers=2,
        encoder_skip_layer_id=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=64,
        n_mels=16,
        vocoder_dim=16,
        vocoder_intermediate_dim=64,
        vocoder_num_layers=2,
        vocoder_attention_heads=2,
        vocoder_attn_window_size=(4, 1),
        num_quantizers=4,
        codebook_size=(16, 16, 8, 8),
    )
    variables = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(x.dtype), hf.tokenizer_shapes(tokenizer))
    hf.save_tokenizer(folder / "tokenizer", tokenizer, variables)
    (folder / "voices").mkdir()
    for number, name in enumerate(("anna", "ben")):
        soundfile.write(folder / "voices" / f"{name}.wav", wave_of(0.6, number), RATE, subtype="FLOAT")


def wave_of(seconds: float, seed: int) -> np.ndarray:
    """A recording: float32 [samples]."""
    rng = np.random.default_rng(seed)
    time_ = np.arange(int(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (120 + 40 * seed % 400) * time_) + 0.05 * rng.standard_normal(len(time_))
    return wave.astype(np.float32)


def file_of(wave: np.ndarray, kind: str = "FLAC") -> bytes:
    """A file of 16 bits."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format=kind, subtype="PCM_16")
    return file.getvalue()


def start(folder: Path, *more: str) -> tuple[subprocess.Popen[str], str]:
    """(the server's process, its address)."""
    flags = [f"--{name}={value}" for name, value in LIMITS.items()]
    command = [sys.executable, "-m", "mimo_jax.serve", f"--lm={folder / 'lm'}", f"--tokenizer={folder / 'tokenizer'}"]
    command += [f"--voices={folder / 'voices'}", f"--model_name={NAME}", "--port=0", *flags, *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"serving \S+ at (http://\S+)", line):
            # Nobody may be stopped by a full pipe.
            threading.Thread(target=lambda: [sys.stderr.write(rest) for rest in process.stderr], daemon=True).start()  # type: ignore[union-attr]
            return process, found[1]
    raise RuntimeError(f"the server did not start:\n{''.join(lines)}")
