"""Decoding of the benchmarks, as the released evaluation does it, and the wording of their requests."""

import dataclasses

from mimo_jax.data import prompts
from mimo_jax.inference.decoding import FEW_SHOT_SPEECH, TASKS
from mimo_jax.inference.sampling import Sampling

_DIALOGUE_TEXT = Sampling(True, temperature=0.3, top_p=0.95)
_DIALOGUE_CODES = Sampling(True, temperature=0.7, top_p=0.95)

TRANSCRIPTION = TASKS["asr"]
SPEECH = TASKS["tts"]
STYLED_SPEECH = TASKS["instruct_tts"]
UNDERSTANDING = TASKS["audio_understanding"]
FEW_SHOT_TEXT = TASKS["few_shot_question_answering"]
FEW_SHOT_SPOKEN = FEW_SHOT_SPEECH
# Choices are longer than the letters of SpeechMMLU.
FEW_SHOT_CHOICE = dataclasses.replace(FEW_SHOT_TEXT, min_new=0, max_new=64)
CONVERSION = TASKS["speech_to_speech"]
CONTINUATION = TASKS["continue_speech"]
SPOKEN_DIALOGUE = dataclasses.replace(TASKS["spoken_dialogue"], text=_DIALOGUE_TEXT, audio=_DIALOGUE_CODES)
WRITTEN_DIALOGUE = dataclasses.replace(TASKS["speech_to_text_dialogue"], text=_DIALOGUE_TEXT, audio=_DIALOGUE_CODES)

# One wording each, whatever the item: an instruction drawn at random would make scores vary with the seed.
TRANSCRIBE: dict[str, str] = {language: pool[0] for language, pool in prompts.ASR_INSTRUCTIONS.items()}
READ_ALOUD: dict[str, str] = {language: pool[0] for language, pool in prompts.TTS_INSTRUCTIONS.items()}
