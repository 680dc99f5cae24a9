"""Models out of training runs: what the newest checkpoint holds, whatever stage made it; imported models as runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_jax.cli import UserError

if TYPE_CHECKING:
    from mimo_jax.training.lora import Adapter
    from mimo_jax.training.meta import Meta


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a training run or of an import."""
    return (Path(folder) / "checkpoints").is_dir()


def load_run(model_dir: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> tuple[str, Any, Any]:
    """(kind, configuration, tree) of a run's newest checkpoint, the configuration from the run's own gin text.

    kind: "lm" (tree = parameters) or "tokenizer" (tree = variables). The arrays are read one by one when they are used:
    neither the model nor the train state is ever whole in memory. What gin is configured with is replaced. Of a LoRA
    run, the adapter merged into its base.

    Args:
      model_dir: of the run.
      base: where the base of a LoRA run is now; None = where it was.

    Raises:
      UserError: no checkpoint there, a configuration that cannot be rebuilt, a run of a model without released layout,
        a LoRA run whose base is missing or has changed.
    """
    from mimo_jax.interop import configs
    from mimo_jax.objectives.language_model import LanguageModelObjective
    from mimo_jax.training import lora, warm_start
    from mimo_jax.training.checkpoints import stored_params

    params, mutable, meta = stored_params(Path(model_dir), averaged=True)
    adapter = lora.located(model_dir, base)
    if meta.model is not None and configs.kind_of(meta.model) == "tokenizer":
        config = configs.tokenizer_config(meta.model, model_dir)
        return "tokenizer", config, {"params": params["tokenizer"], **mutable}
    objective = _objective(model_dir, meta)
    if isinstance(objective, LanguageModelObjective):
        return "lm", objective.model, params if adapter is None else warm_start.whole(objective, adapter, params)
    if hasattr(objective, "tokenizer_variables"):
        return "tokenizer", objective.config, objective.tokenizer_variables(params, mutable)
    raise UserError(f"{model_dir}: trained with {type(objective).__name__}, which has no released layout")


def load_adapter(
    model_dir: str | os.PathLike[str], base: str | os.PathLike[str] | None = None
) -> tuple[Any, Any, Adapter]:
    """(configuration of the whole model, factors, what adapter.json says) of a LoRA run, as `load_run`.

    Raises:
      UserError: as `load_run`, or a run that is none of LoRA.
    """
    from mimo_jax.training import lora
    from mimo_jax.training.checkpoints import stored_params

    params, _, meta = stored_params(Path(model_dir), averaged=True)
    adapter = lora.located(model_dir, base)
    if adapter is None:
        raise UserError(f"{model_dir}: its checkpoints hold a whole model, no adapter; export it without --peft")
    return _objective(model_dir, meta).model, params, adapter


def must_be_free(folder: str | os.PathLike[str]) -> None:
    """Raises UserError if a folder holds a checkpoint already: the new one could hide behind it."""
    from mimo_jax.training.checkpoints import latest_step

    if latest_step(Path(folder)) is not None:
        raise UserError(f"{folder}: holds a checkpoint already; name another folder, or remove it")


def save_imported(folder: str | os.PathLike[str], state: dict[str, Any], values: dict[str, Any]) -> None:
    """Writes the checkpoint of a model from elsewhere.

    Args:
      folder: MODEL_DIR to make.
      state: {"params": ...} and, where there is some, {"mutable": ...}.
      values: what the model's `config.json` says.
    """
    import jax

    from mimo_jax.training.checkpoints import Checkpoints
    from mimo_jax.training.meta import Meta

    largest = max(leaf.nbytes for leaf in jax.tree.leaves(state))
    checkpoints = Checkpoints(Path(folder), asynchronous=False, concurrent_gb=1 + largest // 10**9)
    checkpoints.save(state, Meta(step=0, model=values))
    checkpoints.close()


def _objective(model_dir: str | os.PathLike[str], meta: Meta) -> Any:
    """The loss that the run trained the whole model with, also where it trained an adapter."""
    import gin

    from mimo_jax.interop import configs
    from mimo_jax.objectives.language_model import LanguageModelObjective
    from mimo_jax.objectives.lora import Lora
    from mimo_jax.train import train

    if meta.model is not None:  # imported
        return LanguageModelObjective(configs.lm_config(meta.model, model_dir, meta.model["empty_token_id"]))
    try:
        gin.parse_config(meta.config)
        # Of train's arguments only the objective is made: the others would open the data.
        objective = gin.get_bindings(train, resolve_references=False)["objective"].scoped_configurable_fn()
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{model_dir}: the run's configuration cannot be rebuilt: {error}") from error
    return objective.objective if isinstance(objective, Lora) else objective
