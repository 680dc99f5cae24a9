"""Decoding defaults of every task, as in the released inference code."""

import dataclasses

from mimo_jax.inference.sampling import GREEDY, Sampling

_CODES = Sampling(True, temperature=0.9, top_p=0.95)
_TEXT_END = ("<|endoftext|>", "<|im_end|>")
_SPEECH_END = ("<|endoftext|>", "<|eostm|>", "<|im_end|>")


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a task is decoded.

    Attributes:
      text, audio: how text tokens and codes are chosen.
      stop: tokens that end the answer.
      spoken: whether the answer is speech.
      min_new, max_new: limits of the answer in positions; None = the engine's.
      until: the answer's text ends before it; a base model goes on with examples of its own.
    """

    text: Sampling
    stop: tuple[str, ...]
    spoken: bool = False
    audio: Sampling = _CODES
    min_new: int = 0
    max_new: int | None = None
    until: str = ""


_DIALOGUE = Sampling(True, temperature=0.6, top_p=0.95)

# Decoding defaults by task. The tasks of base models take those of their instruction-tuned counterparts; limits of
# few-shot answers are those of the released evaluation (SpeechMMLU).
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
    "few_shot_question_answering": Decoding(GREEDY, _TEXT_END, min_new=5, max_new=10, until="\n\n"),
    "continue_speech": Decoding(GREEDY, ("<|endoftext|>", "<|eosp|>"), spoken=True),
    "pretrain_asr": Decoding(GREEDY, ("<|endoftext|>",)),
    "pretrain_tts": Decoding(Sampling(True, temperature=0.6), ("<|endoftext|>", "<|eostm|>"), spoken=True),
}

# Of `few_shot_question_answering`, where the answer is spoken.
FEW_SHOT_SPEECH = Decoding(GREEDY, ("<|endoftext|>", "<|eostm|>"), spoken=True, min_new=10, max_new=25, until="\n\n")
