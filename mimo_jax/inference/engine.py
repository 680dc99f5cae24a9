"""Generation from one model: many requests in one batch, many positions per dispatch.

    engine = Engine(config, params)
    engine.generate(requests)          # all answers, in their order
    for update in engine.stream(request):
        ...                            # one answer as it comes

What runs on the device is in `programs`, who runs when in `batcher`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jax.sharding import Mesh

from mimo_jax.inference import quantization
from mimo_jax.inference.batcher import FIRST_PATCHES, SMALLEST_SLOTS, Batcher, Limits, power_of_two
from mimo_jax.inference.placement import placed_params
from mimo_jax.inference.programs import Params, Programs
from mimo_jax.inference.requests import MAX_STOP_TOKENS, Request, RequestError, Result, Update, joined
from mimo_jax.models.mimo_audio import MimoAudioConfig
from mimo_jax.models.transformer import Compute


class Engine:
    """Generates from one model.

    Args:
      config: shape of the model.
      params: its parameter tree (stacked layers, boxed or not).
      compute: dtypes; parameters are stored in `compute.param_dtype`, the cache in `compute.dtype`.
      chunk: positions of a prompt that are processed at a time (a power of two).
      mesh: devices that share the work, all of this process: parameters and caches are split by heads over its axis
        `tensor`, rows over the others; None = the default device.
      weights: "full", or "int8" (`quantization`): the kernels of the LLM take 8 bits a number.
      limits: attributes of `Limits`: max_batch, max_positions, ...
    """

    def __init__(
        self,
        config: MimoAudioConfig,
        params: Params,
        compute: Compute = Compute(),  # noqa: B008
        *,
        chunk: int = 32,
        mesh: Mesh | None = None,
        weights: str = "full",
        **limits: int,
    ) -> None:
        if chunk != power_of_two(chunk) or chunk > SMALLEST_SLOTS:
            raise ValueError(f"chunk = {chunk}: must be a power of two, at most {SMALLEST_SLOTS}")
        self.config, self.limits = config, Limits(**limits)
        quantization.check(weights)
        self._programs = Programs(config, compute, chunk, mesh, weights == "int8")
        self._params = placed_params(config, compute, params, mesh, weights)

    @property
    def max_positions(self) -> int:
        """Limit of prompt and answer together."""
        return self.limits.max_positions

    def check(self, request: Request) -> None:
        """Raises RequestError for a request that cannot run, saying why."""
        config, length = self.config, len(request.text)
        if length < 1:
            raise RequestError("empty prompt: at least one position is needed")
        if length >= self.max_positions:
            raise RequestError(f"prompt of {length} positions; the limit for prompt and answer is {self.max_positions}")
        expected = (length, config.group_size, config.audio_channels)
        if request.audio.shape != expected:
            raise RequestError(f"audio of the prompt has shape {request.audio.shape}; expected {expected}")
        if request.text.min() < 0 or request.text.max() >= config.vocab_size:
            raise RequestError(
                f"text ids of the prompt reach from {request.text.min()} to {request.text.max()}; "
                f"the vocabulary is 0..{config.vocab_size - 1}"
            )
        if request.max_new < 1 or request.min_new < 0:
            raise RequestError(f"max_new = {request.max_new}, min_new = {request.min_new}: at least 1 and 0")
        if len(request.stop_tokens) > MAX_STOP_TOKENS:
            raise RequestError(f"{len(request.stop_tokens)} stop tokens; at most {MAX_STOP_TOKENS} are looked for")

    def batcher(self, **limits: int) -> Batcher:
        """A batch that requests can join and leave at any time; limits other than the engine's by name."""
        return Batcher(self._programs, self._params, Limits(**{**vars(self.limits), **limits}))

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Answers to `requests`, in their order. Raises RequestError, naming every one that cannot run."""
        reasons = {}
        for number, request in enumerate(requests):
            try:
                self.check(request)
            except RequestError as error:
                reasons[number] = str(error)
        if reasons:
            raise RequestError(reasons)
        batcher = self.batcher()
        updates: dict[int, list[Update]] = {batcher.submit(request): [] for request in requests}
        while batcher.busy:
            for update in batcher.turn():
                updates[update.ticket].append(update)
        return [joined(parts) for parts in updates.values()]

    def stream(self, request: Request, *, positions: int = 4, first_patches: int = FIRST_PATCHES) -> Iterator[Update]:
        """One answer as it comes, about `positions` of it at a time; closing the iterator ends the work.

        Args:
          request: what to answer.
          positions, first_patches: see `Limits`.

        Raises:
          RequestError: a request that cannot run.
        """
        self.check(request)
        batcher = self.batcher(positions=positions, first_patches=first_patches)
        batcher.submit(request)
        while batcher.busy:
            yield from batcher.turn()
