"""Decoding defaults of every task, as in the released inference code."""

import dataclasses

from mimo_jax.inference.sampling import GREEDY, Sampling

_CODES = Sampling(True, temperature=0.9, top_p=0.95)
_TEXT_END = ("<|endoftext|>", "<|im_end|>")
_SPEECH_END = ("<|endoftext|>", "<|eostm|>", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a task is decoded: samplers of text and codes, tokens that end the answer, and whether it is spoken."""

    text: Sampling
    stop: tuple[str, ...]
    spoken: bool = False
    audio: Sampling = _CODES


_DIALOGUE = Sampling(True, temperature=0.6, top_p=0.95)

# Decoding defaults by task; the tasks of base models take those of their instruction-tuned counterparts.
TASKS: dict[str, Decoding] = {
    "asr": Decoding(GREEDY, _TEXT_END),
    "tts": Decoding(Sampling(True, temperature=0.6), _SPEECH_END, spoken=True),
    "instruct_tts": Decoding(Sampling(True, temperature=0.6), _SPEECH_END, spoken=True),
    "natural_instruction_tts": Decoding(Sampling(True, temperature=0.6), _SPEECH_END, spoken=True),
    "audio_understanding": Decoding(Sampling(True, temperature=0.3, top_p=0.95), _TEXT_END),
    "spoken_dialogue": Decoding(_DIALOGUE, _SPEECH_END, spoken=True),
    "speech_to_text_dialogue": Decoding(_DIALOGUE, _TEXT_END),
    "text_dialogue": Decoding(Sampling(True, temperature=0.4, top_p=0.95), _TEXT_END),
    "speech_to_speech": Decoding(GREEDY, ("<|endoftext|>", "<|eostm|>"), spoken=True),
    "continue_speech": Decoding(GREEDY, ("<|endoftext|>", "<|eosp|>"), spoken=True),
    "pretrain_asr": Decoding(GREEDY, ("<|endoftext|>",)),
    "pretrain_tts": Decoding(Sampling(True, temperature=0.6), ("<|endoftext|>", "<|eostm|>"), spoken=True),
}
