"""Plug-ins that run a model of the Hugging Face hub, or of a folder in its layout, through ``transformers``.

A spec is ``MODEL?option=value&...``; MODEL is a hub id (``openai/whisper-large-v3``) or a folder. Options:

* ``device``: ``cuda:0``, ``cpu``, ...; by default the first GPU if there is one. Not part of the identity;
* ``dtype`` (``float32``): ``float16`` and ``bfloat16`` halve the memory;
* ``revision`` (``main``): of a hub id.

The code in a model's own repository is never run: models that need it are asked through an endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.evaluation.plugins.base import PluginError, digest, number_option, split_options, unit_length

_OPTIONS = {"device": "", "dtype": "float32", "revision": "main"}
_LEAST_SECONDS = 0.5  # x-vector networks need some frames of context
_WHISPER_SECONDS = 30.0


def _packages(spec: str) -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"transformers:{spec} needs the packages torch and transformers ({error}): pip install torch transformers"
        ) from None
    return torch, transformers


class HubModel:
    """Base of the plug-ins below: options, device, identity.

    Raises:
      UserError: packages or options that do not exist.
    """

    def __init__(self, kind: str, spec: str, options: Mapping[str, str] | None = None):
        self._torch, self._transformers = _packages(spec)
        self.spec = spec
        self.model, self._given = split_options(spec, {**_OPTIONS, **(options or {})})
        if not self.model:
            raise UserError("transformers: expected transformers:MODEL, a hub id or a folder")
        self.device = self._given["device"] or ("cuda:0" if self._torch.cuda.is_available() else "cpu")
        dtypes = ("float32", "float16", "bfloat16")
        if self._given["dtype"] not in dtypes:
            raise UserError(f"transformers:{spec}: dtype={self._given['dtype']} must be one of {', '.join(dtypes)}")
        self.dtype = getattr(self._torch, self._given["dtype"])
        settings = "".join(f" {name}={self._given[name]}" for name in ("dtype", *(options or {})))
        self._named = f"transformers {kind} {self.model}"
        self._settings = f"{settings} transformers={self._transformers.__version__}"

    def load(self, loader: Any, **arguments: Any) -> Any:
        """``loader.from_pretrained`` of this model.

        Raises:
          UserError: there is no such model, or it is of another kind.
        """
        if not Path(self.model).is_dir():
            arguments["revision"] = self._given["revision"]
        try:
            return loader.from_pretrained(self.model, trust_remote_code=False, **arguments)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"transformers:{self.spec}: cannot be loaded as {loader.__name__}: {error}") from error

    def prepare(self, model: Any) -> Any:
        """The model in evaluation mode on its device; sets the identity."""
        if Path(self.model).is_dir():
            files = sorted(
                p for p in Path(self.model).iterdir() if p.suffix in (".json", ".safetensors", ".bin", ".txt")
            )
            version = digest(*files)
        else:
            version = getattr(model.config, "_commit_hash", None) or self._given["revision"]
        self.identity = f"{self._named}@{version}{self._settings}"
        try:
            return model.to(self.device).eval()
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"transformers:{self.spec}: device {self.device}: {error}") from error

    def guarded(self, call: Any, *arguments: Any, **named: Any) -> Any:
        """``call`` without gradients; a failure of the device is a `PluginError`."""
        try:
            with self._torch.inference_mode():
                return call(*arguments, **named)
        except RuntimeError as error:  # also torch.OutOfMemoryError
            raise PluginError(f"{self._named}: {type(error).__name__}: {error}") from error


class HubTranscriber(HubModel):
    """``pipeline("automatic-speech-recognition")``, greedy, one recording at a time: none changes another's text.

    Whisper gets the language; longer recordings than 30 s are decoded by its sequential long-form algorithm. Other
    models with attention over the whole recording need memory for it: ``chunk`` (0 = off) is the length in seconds
    of the pieces that models of the CTC kind are given then.
    """

    def __init__(self, spec: str):
        super().__init__("transcriber", spec, {"chunk": "0"})
        config = self.load(self._transformers.AutoConfig)
        self._seq2seq = type(config) in self._transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
        auto = self._transformers.AutoModelForSpeechSeq2Seq if self._seq2seq else self._transformers.AutoModelForCTC
        model = self.prepare(self.load(auto, dtype=self.dtype))
        extractor = self.load(self._transformers.AutoFeatureExtractor)
        chunk = number_option(spec, self._given, "chunk", 0)
        self._rate = int(extractor.sampling_rate)
        self._pipeline = self._transformers.pipeline(
            "automatic-speech-recognition",
            model=model,
            tokenizer=self.load(self._transformers.AutoTokenizer),
            feature_extractor=extractor,
            device=self.device,
            **({"chunk_length_s": chunk} if chunk else {}),
        )
        self._whisper = config.model_type == "whisper"

    def transcribe(self, waves: Sequence[np.ndarray], sample_rate: int, language: str) -> list[str]:
        """See `base.Transcriber`."""
        from mimo_jax.data.audio import resample

        return [
            self._one(resample(np.asarray(wave, np.float32), sample_rate, self._rate), language) if len(wave) else ""
            for wave in waves
        ]

    def _one(self, wave: np.ndarray, language: str) -> str:
        generate: dict[str, Any] = {"num_beams": 1, "do_sample": False} if self._seq2seq else {}
        arguments: dict[str, Any] = {}
        if self._whisper:
            if getattr(self._pipeline.model.generation_config, "is_multilingual", False):
                generate |= {"task": "transcribe"} | ({"language": language} if language else {})
            if len(wave) > _WHISPER_SECONDS * self._rate:
                arguments["return_timestamps"] = True
        if generate:
            arguments["generate_kwargs"] = generate
        result = self.guarded(self._pipeline, {"raw": wave, "sampling_rate": self._rate}, **arguments)
        return str(result["text"]).strip()


class HubTextEmbedder(HubModel):
    """``AutoModel`` with pooling over its last hidden states.

    Options that decide vectors: ``pooling``: ``mean`` over the tokens, ``cls`` (the first) or ``last``, as the
    model's card says; ``prefix`` (empty), put before every text; ``max_tokens`` (512), to which texts are cut.
    """

    _BATCH = 32

    def __init__(self, spec: str):
        super().__init__("text_embedder", spec, {"pooling": "mean", "prefix": "", "max_tokens": "512"})
        if self._given["pooling"] not in ("mean", "cls", "last"):
            raise UserError(f"transformers:{spec}: pooling must be mean, cls or last, not {self._given['pooling']}")
        self._limit = int(number_option(spec, self._given, "max_tokens", 1))
        self._tokenizer = self.load(self._transformers.AutoTokenizer)
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = self.prepare(self.load(self._transformers.AutoModel, dtype=self.dtype))

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """See `base.TextEmbedder`."""
        size = getattr(self._model.config, "hidden_size", 1)
        parts = [self._embed(texts[i : i + self._BATCH]) for i in range(0, len(texts), self._BATCH)]
        return unit_length(np.concatenate(parts)) if parts else np.zeros((0, size), np.float32)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        prefixed = [self._given["prefix"] + text for text in texts]
        tokens = self._tokenizer(
            prefixed, padding=True, truncation=True, max_length=self._limit, return_tensors="pt"
        ).to(self.device)
        states = self.guarded(self._model, **tokens).last_hidden_state.float()
        mask = tokens["attention_mask"]
        if self._given["pooling"] == "cls":
            pooled = states[:, 0]
        elif self._given["pooling"] == "last":
            pooled = states[self._torch.arange(len(states)), (mask.sum(1) - 1).clamp(min=0)]
        else:
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return pooled.cpu().numpy()


class HubSpeakerEmbedder(HubModel):
    """``AutoModelForAudioXVector``, for instance ``microsoft/wavlm-base-plus-sv``; one recording at a time.

    Recordings below half a second are filled up with silence.
    """

    def __init__(self, spec: str):
        super().__init__("speaker_embedder", spec)
        self._extractor = self.load(self._transformers.AutoFeatureExtractor)
        self._model = self.prepare(self.load(self._transformers.AutoModelForAudioXVector, dtype=self.dtype))

    def embed(self, waves: Sequence[np.ndarray], sample_rate: int) -> np.ndarray:
        """See `base.SpeakerEmbedder`."""
        size = self._model.config.xvector_output_dim
        return unit_length(np.array([self._one(wave, sample_rate) for wave in waves]).reshape(len(waves), size))

    def _one(self, wave: np.ndarray, sample_rate: int) -> np.ndarray:
        from mimo_jax.data.audio import resample

        if not np.any(wave):
            return np.zeros(self._model.config.xvector_output_dim, np.float32)
        rate = int(self._extractor.sampling_rate)
        wave = resample(np.asarray(wave, np.float32), sample_rate, rate)
        wave = np.pad(wave, (0, max(0, int(_LEAST_SECONDS * rate) - len(wave))))
        features = self._extractor(wave, sampling_rate=rate, return_tensors="pt")
        inputs = features["input_values"].to(self.device, self.dtype)
        return self.guarded(self._model, inputs).embeddings[0].float().cpu().numpy()
