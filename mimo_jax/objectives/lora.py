"""Low-rank adaptation (LoRA, arXiv 2106.09685): only factors A, B of W + (alpha / rank) A B train, W stays.

A kernel W [in, out] gets A [in, rank] and B [rank, out]; stacked layers keep their leading axis: A [L, in, rank], B
[L, rank, out]. An adapter's arrays are named after what they adapt: "llm/layers/attention/q_proj/kernel/lora_a".

How the product is made. A kernel inside a scanned layer is never merged: its `Linear` computes x W + s (x A) B, and the
factors are scanned with the layer's other parameters. Merging there (`nn.map_variables`) would give the same numbers,
but A and B would get their gradients through that of the merged kernel: every backward pass would make x^T g [in, out]
in float32, add it up over the devices, and only then shrink it to rank. So a frozen kernel costs no weight gradient (a
third of the arithmetic), no exchange of gradients between devices, and the merged W is never in memory, whatever the
rematerialisation. Kernels outside the layers (`lm_head` and the like) are merged once a step instead, because the loss
reads them without their module; there A and B do pay for a whole gradient.
"""

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from mimo_jax.cli import UserError
from mimo_jax.models import cost, layers
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import Compute
from mimo_jax.objectives.base import Batch, Metrics, Mutable, Params
from mimo_jax.objectives.language_model import LanguageModelObjective

Array = jax.Array
Path = tuple[str, ...]

BASE = "base"
"""Entry of the non-gradient state that holds the frozen parameters."""
FACTORS = ("lora_a", "lora_b")
_PROJECTIONS = (*(f"attention/{name}_proj" for name in ("q", "k", "v", "out")), "gate_proj", "up_proj", "down_proj")
_BELOW_LLM = ("speech_group_downcast/kernel", *(f"patch_encoder/layers/{name}/kernel" for name in _PROJECTIONS))
LLM_PROJECTIONS = (r"llm/layers/attention/(q|k|v|out)_proj/kernel", r"llm/layers/(gate|up|down)_proj/kernel")


@dataclasses.dataclass(frozen=True)
class Lora:
    """The language model's loss as a function of adapters; the model's parameters are non-gradient state.

    Attributes:
      objective: loss of the whole model.
      rank: of the factors.
      alpha: the product counts alpha / rank.
      targets: regular expressions; a kernel is adapted if one of them matches its whole name. The default is attention
        and MLP of the LLM.
      base_dtype: of the frozen parameters in memory; None = `Compute.param_dtype`. "bfloat16" loses nothing of weights
        that were released in it.
      adapter_from: MODEL_DIR of a LoRA run or of an imported adapter whose factors a fresh start begins with, instead
        of random A and B = 0; it must have been made for the same base.
    """

    objective: LanguageModelObjective
    rank: int = 16
    alpha: float = 32.0
    targets: Sequence[str] = LLM_PROJECTIONS
    base_dtype: str | None = None
    adapter_from: str | None = None

    # An adapter belongs to the weights that an export of the base has.
    starts_from_average: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"Lora.rank = {self.rank}: at least 1")
        if not self.alpha > 0:
            raise UserError(f"Lora.alpha = {self.alpha}: must be positive; the product counts alpha / rank")
        if not self.targets or not all(self.targets):
            raise UserError(f"Lora.targets = {self.targets!r}: name at least one kernel by a regular expression")

    # --- what others ask a language model's objective for ---

    @property
    def model(self) -> MimoAudioConfig:
        return self.objective.model

    @property
    def compute(self) -> Compute:
        return self.objective.compute

    @property
    def trains_audio(self) -> bool:
        return self.objective.trains_audio

    @property
    def vocab_chunk(self) -> int:
        return self.objective.vocab_chunk

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / self.rank

    def flops(self, text: float, audio: float, batch: Mapping[str, Any], causal: bool) -> float:
        """Model FLOPs of training on so many text and audio positions in batches of such shapes.

        No weight gradients; no backward pass through the patch encoder where nothing in it is adapted. The factors' own
        arithmetic (below 1 % at usual ranks) is not counted.
        """
        context = batch["text"].shape[1]
        each = cost.forward_flops(self.model, context, causal)
        of_patch = each.audio if self.trains_audio else each.audio_without_decoder
        forward = text * each.text + audio * of_patch
        attention = (text + audio) * cost.attention_flops(self.model.llm, context, causal)  # twice in a backward pass
        below = any(re.fullmatch(pattern, name) for pattern in self._patterns for name in _BELOW_LLM)
        return 2 * forward + attention - (0 if below else audio * (each.audio_without_decoder - each.text))

    # --- the objective ---

    def adapted(self, boxed: Any) -> dict[str, Any]:
        """The boxed kernels (shape and logical axes) that get factors, by full name.

        Args:
          boxed: the model's parameters or their shapes, with logical axes.

        Raises:
          UserError: a pattern that matches nothing, or something else than the kernel of a linear map.
        """
        flat = traverse_util.flatten_dict(boxed, sep="/")
        found: dict[str, Any] = {}
        for pattern in self._patterns:
            try:
                names = [name for name in flat if re.fullmatch(pattern, name)]
            except re.error as error:
                raise UserError(f"Lora.targets: {pattern!r} is no regular expression: {error}") from error
            if not names:
                kernels = sorted(name for name in flat if name.endswith("/kernel"))
                raise UserError(
                    f"Lora.targets: {pattern!r} matches no parameter; it must match a whole name, such as {kernels[0]} "
                    f"(python -m mimo_jax.convert inspect --model=mimo_audio_7b --tensors lists them)"
                )
            for name in names:
                shape = flat[name].value.shape
                if not name.endswith("/kernel") or len(shape) not in (2, 3):
                    raise UserError(
                        f"Lora.targets: {pattern!r} matches {name} {shape}, which is not the kernel of a linear map; "
                        "let the pattern end with '/kernel'"
                    )
            found |= {name: flat[name] for name in names}
        return {name: found[name] for name in sorted(found)}

    def init(self, rng: Array, batch: Batch) -> tuple[Params, Mutable]:
        """(factors, {"base": zeros}): B is 0 and A uniform within 1 / sqrt(in), as PEFT has it by default.

        The frozen parameters are read afterwards (`training.warm_start`): nothing random is made in their size.
        """
        shapes, rest = jax.eval_shape(self.objective.init, rng, batch)
        if rest:
            raise UserError(f"Lora.objective: {type(self.objective).__name__} has non-gradient state; adapt another")
        dtype = jnp.dtype(self.compute.param_dtype)
        flat: dict[str, Any] = {}
        for name, box in self.adapted(shapes).items():
            (*stacked, fan_in, fan_out), (*of_stack, rows, columns) = box.value.shape, box.names
            bound = fan_in**-0.5  # Kaiming uniform with a = sqrt(5)
            # The key follows from the name: other targets change nothing of this one.
            key = jax.random.fold_in(rng, zlib.crc32(name.encode()))
            a = jax.random.uniform(key, (*stacked, fan_in, self.rank), dtype, -bound, bound)
            b = jnp.zeros((*stacked, self.rank, fan_out), dtype)
            flat[f"{name}/{FACTORS[0]}"] = nn.LogicallyPartitioned(a, (*of_stack, rows, None))
            flat[f"{name}/{FACTORS[1]}"] = nn.LogicallyPartitioned(b, (*of_stack, None, columns))
        base = jax.tree.map(lambda x: jnp.zeros(x.shape, self.base_dtype or x.dtype), shapes)
        return traverse_util.unflatten_dict(flat, sep="/"), {BASE: base}

    def loss(
        self, params: Params, mutable: Mutable, batch: Batch, rng: Array, progress: Array
    ) -> tuple[Array, tuple[Mutable, Metrics]]:
        loss, (_, metrics) = self._applied(
            params, mutable, lambda tree: self.objective.loss(tree, {}, batch, rng, progress)
        )
        return loss, (mutable, metrics)

    def totals(self, batch: Batch) -> dict[str, Array]:
        return self.objective.totals(batch)

    def share(
        self,
        params: Params,
        mutable: Mutable,
        batch: Batch,
        rng: Array,
        progress: Array,
        totals: dict[str, Array],
    ) -> tuple[Array, tuple[Mutable, Metrics]]:
        loss, (_, metrics) = self._applied(
            params, mutable, lambda tree: self.objective.share(tree, {}, batch, rng, progress, totals)
        )
        return loss, (mutable, metrics)

    def evaluate(self, params: Params, mutable: Mutable, batch: Batch) -> dict[str, tuple[Array, Array]]:
        return self._applied(params, mutable, lambda tree: self.objective.evaluate(tree, {}, batch))

    @property
    def _patterns(self) -> tuple[str, ...]:
        return (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)

    def _applied(self, params: Params, mutable: Mutable, function: Callable[[Params], Any]) -> Any:
        """`function` of the model's parameters with the factors at work."""
        if BASE not in mutable:
            raise UserError("LoRA: a run's checkpoint holds the adapter only; its base has to be read beside it")
        tree, branches = with_factors(mutable[BASE], params, self.scale)
        seen: set[Path] = set()
        with nn.intercept_methods(_low_rank_branch(self.scale, seen)):
            result = function(tree)
        if unused := sorted("/".join(path) for path in branches - seen):
            raise UserError(f"Lora.targets: {unused[0]} takes no part in this stage's loss; leave it out")
        return result


def with_factors(base: Params, adapters: Params, scale: float) -> tuple[Params, set[Path]]:
    """The model's parameters, ready for `_low_rank_branch`, and the modules in scanned layers that have factors.

    Kernels outside scanned layers are merged (float32 where the base is narrower); inside, the factors are put beside
    the kernel.
    """
    flat, branches = dict(traverse_util.flatten_dict(base)), set()
    for path, (a, b) in pairs(adapters).items():
        if a.ndim == 2:
            flat[path] = flat[path] + scale * jnp.matmul(a, b, precision="highest")
        else:
            flat |= {(*path[:-1], name): factor for name, factor in zip(FACTORS, (a, b), strict=True)}
            branches.add(path[:-1])
    return traverse_util.unflatten_dict(flat), branches


def pairs(adapters: Params) -> dict[Path, tuple[Any, Any]]:
    """(A, B) by the path of the kernel that they adapt."""
    flat = traverse_util.flatten_dict(adapters)
    return {path[:-1]: (flat[path], flat[(*path[:-1], FACTORS[1])]) for path in flat if path[-1] == FACTORS[0]}


def _low_rank_branch(scale: float, seen: set[Path]) -> Callable[..., Any]:
    """Interceptor that adds `scale * (x A) B` to every `Linear` with factors beside its kernel, and notes its path."""

    def intercept(call: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
        y = call(*args, **kwargs)
        module = context.module
        if not isinstance(module, layers.Linear) or context.method_name != "__call__":
            return y
        if not module.has_variable("params", FACTORS[0]):
            return y
        seen.add(module.path)
        (x,) = args
        a, b = (module.get_variable("params", name) for name in FACTORS)
        row_axes = (*module.row_axes, *(None for _ in x.shape))[: x.ndim - 1]
        inner = layers.matmul(x.astype(module.dtype), a, (module.axes[0], None), row_axes)
        reordered = b if module.reorder is None else module.reorder(b)
        return y + scale * layers.matmul(inner, reordered, (None, module.axes[1]), row_axes)

    return intercept
