"""Scores a set of few-shot questions: as a hook of a training run, or once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.evaluation.few_shot.choices import ChoiceSet
from mimo_jax.objectives.language_model import LanguageModelObjective
from mimo_jax.parallel import mesh as mesh_lib

PREFIX = "few_shot"


class FewShot:
    """A hook: parameters -> share of right choices and mean margin of every task of a set.

    `few_shot/TASK`: share of questions whose right candidate gained most by the prompt. `few_shot/TASK_margin`: nats by
    which it gained more than the others did on average; it moves before the share does.

    Args:
      path: file of a `ChoiceSet`.
      objective: gives the model and its computation; the patch buffers have room for every patch here.
      rows, context: of a batch. `rows` must divide by the devices that rows are split over.

    Raises:
      UserError: no such file, questions that do not fit, a set made with another sequence layout.
    """

    def __init__(self, path: str, objective: LanguageModelObjective, rows: int = 8, context: int = 256):
        self._set = ChoiceSet.load(path)
        layout = self._set.layout()
        model = objective.model
        for name, mine, its in (
            ("<|empty|>", layout.special.empty, model.empty_token_id),
            ("codebooks", layout.channels, model.audio_channels),
            ("frames of a patch", layout.group_size, model.group_size),
        ):
            if mine != its:
                raise UserError(f"{path}: made with {name} = {mine}, the model has {its}; make the set again")
        full = dataclasses.replace(objective, patch_capacity=1.0, labelled_capacity=1.0)
        self._batches = self._set.batches(rows, context, layout)
        self._compiled = jax.jit(full.position_losses)

    @property
    def questions(self) -> ChoiceSet:
        """The set."""
        return self._set

    def log_likelihood(self, params: Any) -> np.ndarray:
        """Of each sequence's candidate, text and all codes: float64 [N], nats."""
        sums = np.zeros(len(self._set.length))
        mesh = jax.sharding.get_mesh()
        for batch in self._batches:
            inputs: dict[str, Any] = {name: x for name, x in batch.items() if name != "sequence"}
            if not mesh.empty:
                inputs = mesh_lib.put_batch(_of_this_process(inputs), mesh)
            text, audio = self._compiled(params, inputs)
            nll = _whole(text).astype(np.float64) + _whole(audio).astype(np.float64).sum(-1)
            mine = batch["sequence"] >= 0
            np.add.at(sums, batch["sequence"][mine], -nll[mine])
        return sums

    def __call__(self, params: Any, mutable: Any) -> Mapping[str, float]:
        """The metrics of these parameters."""
        del mutable
        return metrics(self._set, self.log_likelihood(params))


def metrics(questions: ChoiceSet, log_likelihood: np.ndarray) -> dict[str, float]:
    """`few_shot/TASK` and `few_shot/TASK_margin` from the log-likelihoods [N] of a set."""
    scores = questions.pmi(log_likelihood)
    index = np.arange(len(scores))
    right = scores[index, questions.answer]
    # Equal scores are a guess: right with the probability that guessing among them has.
    best = scores.max(axis=1, keepdims=True)
    tied = (scores == best).sum(axis=1)
    correct = np.where(right == best[:, 0], 1 / tied, 0.0)
    there = np.isfinite(scores)
    others = (np.where(there, scores, 0.0).sum(axis=1) - right) / (there.sum(axis=1) - 1)
    results = {}
    for number, name in enumerate(questions.tasks):
        mine = questions.task == number
        results[f"{PREFIX}/{name}"] = float(correct[mine].mean())
        results[f"{PREFIX}/{name}_margin"] = float((right - others)[mine].mean())
    return results


def _of_this_process(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This process's rows of a global batch."""
    count, index = jax.process_count(), jax.process_index()
    rows = len(batch["text"]) // count
    return {name: x[index * rows : (index + 1) * rows] for name, x in batch.items()}


def _whole(x: jax.Array) -> np.ndarray:
    """An array on the host, whichever processes hold it."""
    if x.is_fully_addressable:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
