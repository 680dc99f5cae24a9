"""Models out of training runs: what a run's newest checkpoint holds, whatever stage made it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mimo_jax.cli import UserError


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a training run or of an import."""
    return (Path(folder) / "checkpoints").is_dir()


def load_run(model_dir: str | os.PathLike[str]) -> tuple[str, Any, Any]:
    """(kind, configuration, tree) of a run's newest checkpoint, the configuration from the run's own gin text.

    kind: "lm" (tree = parameters) or "tokenizer" (tree = variables). The arrays are read one by one when they are used:
    neither the model nor the train state is ever whole in memory. What gin is configured with is replaced.

    Raises:
      UserError: no checkpoint there, a configuration that cannot be rebuilt, a run of a model without released layout.
    """
    import gin

    from mimo_jax.interop import configs
    from mimo_jax.objectives.language_model import LanguageModelObjective
    from mimo_jax.train import train
    from mimo_jax.training.checkpoints import stored_params

    params, mutable, meta = stored_params(Path(model_dir), averaged=True)
    if meta.model is not None:  # imported
        if configs.kind_of(meta.model) == "tokenizer":
            config = configs.tokenizer_config(meta.model, model_dir)
            return "tokenizer", config, {"params": params["tokenizer"], **mutable}
        return "lm", configs.lm_config(meta.model, model_dir, meta.model["empty_token_id"]), params
    try:
        gin.parse_config(meta.config)
        # Of train's arguments only the objective is made: the others would open the data.
        objective = gin.get_bindings(train, resolve_references=False)["objective"].scoped_configurable_fn()
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{model_dir}: the run's configuration cannot be rebuilt: {error}") from error
    if isinstance(objective, LanguageModelObjective):
        return "lm", objective.model, params
    if hasattr(objective, "tokenizer_variables"):
        return "tokenizer", objective.config, objective.tokenizer_variables(params, mutable)
    raise UserError(f"{model_dir}: trained with {type(objective).__name__}, which has no released layout")
