"""The measured part in which the model does in writing what an instruction says with the words of a recording.

An answer is right if it is the reference letter by letter. That takes two things, hearing the words and following the
instruction, and two kinds of figures tell them apart: the answer judged by the words that the model itself hears (its
own transcript of the recording), and the answer judged by all other instructions that the recording could have had.
"""

from __future__ import annotations

from collections.abc import Sequence

from mimo_jax.data.corpus import instructions
from mimo_jax.evaluation import metrics
from mimo_jax.evaluation.parts import Part, figures_of, nothing, rows_of
from mimo_jax.evaluation.selection import Item
from mimo_jax.evaluation.speech_parts import item_seeds
from mimo_jax.evaluation.systems import SpeechModel
from mimo_jax.objectives.transcripts import normalise_text


def written_instructions(model: SpeechModel, items: Sequence[Item], limit: int, seed: int) -> Part:
    """The first ``limit`` instructions of the items (`instructions.kind_of`), answered in writing.

    ``written_instruction_accuracy``: share of answers that are the reference. ``..._accuracy_transcript``: what the
    right words in plain score. ``..._accuracy_other_kinds``: what the answers score as answers to the other kinds of
    instructions about the same words, on average; answers that do not depend on the instruction score the same in both.

    ``written_instruction_followed``: share of answers that are right for the words the model hears itself, whatever was
    said, and ``..._followed_other_kinds`` as above. Where these words leave the instruction no answer of its own
    (`instructions.answers`), as with no words or one, it counts as not followed.
    ``written_instruction_heard_wer``: word error rate of what the model hears.
    """
    asked = [(item, qa, k) for item in items for qa in item.record.qa if (k := instructions.kind_of(qa))][:limit]
    if not asked:
        return nothing()
    ids = [f"{item.record.id}/{qa['question']}" for item, qa, _ in asked]
    waves, texts = [item.wave for item, _, _ in asked], [item.text for item, _, _ in asked]
    wordings, references = [qa["question"] for _, qa, _ in asked], [qa["answer"] for _, qa, _ in asked]
    kinds = [kind for _, _, kind in asked]
    seeds = item_seeds(seed, "written_instructions", ids)
    answers = model.answer_about_audio(waves, wordings, seeds=seeds)
    heard = model.asr(waves, seeds=item_seeds(seed, "written_instructions/heard", ids))
    rights = [metrics.identical(reference, answer) for reference, answer in zip(references, answers, strict=True)]
    plain = [metrics.identical(reference, text) for reference, text in zip(references, texts, strict=True)]
    said = [_judged(*one) for one in zip(kinds, texts, answers, strict=True)]
    own = [_judged(*one) for one in zip(kinds, heard, answers, strict=True)]
    return {
        "figures": figures_of(
            written_instruction_accuracy=metrics.mean_estimate(rights),
            written_instruction_accuracy_transcript=metrics.mean_estimate(plain),
            written_instruction_accuracy_other_kinds=metrics.mean_estimate([other for _, other in said]),
            written_instruction_followed=metrics.mean_estimate([followed for followed, _ in own]),
            written_instruction_followed_other_kinds=metrics.mean_estimate([other for _, other in own]),
            written_instruction_heard_wer=metrics.word_error_rate(texts, heard),
        ),
        "items": rows_of(
            id=ids,
            kind=kinds,
            instruction=wordings,
            text=texts,
            reference=references,
            answer=answers,
            heard=heard,
            followed=[followed for followed, _ in own],
            seed=seeds,
        ),
    }


def _judged(kind: str, text: str, answer: str) -> tuple[bool, float]:
    """Whether an answer is right for the kind about the words of a text; for how many of the other kinds, a share."""
    rights = {k: metrics.identical(a, answer) for k, a in instructions.answers(normalise_text(text).split()).items()}
    followed = rights.pop(kind, False)
    return followed, sum(rights.values()) / len(rights) if rights else 0.0
