"""COMET (Rei et al. 2022) in a Python of its own: its package needs numpy below 2 and cannot live beside this one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mimo_jax.cli import UserError
from mimo_jax.evaluation.plugins.base import PluginError, split_options

_NO_PACKAGE = 3
_PROGRAM = f"""
import json, sys
try:
    import comet
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit({_NO_PACKAGE})
request = json.load(open(sys.argv[1], encoding="utf-8"))
model = comet.load_from_checkpoint(comet.download_model(request["model"]))
scores = model.predict(request["items"], batch_size=16, gpus=int(request["gpus"]), progress_bar=False).scores
json.dump([float(score) for score in scores], open(sys.argv[2], "w", encoding="utf-8"))
"""


class CometScorer:
    """``unbabel-comet`` in another environment.

    Spec: ``MODEL?python=/path/to/venv/bin/python&gpus=1``; MODEL as ``Unbabel/wmt22-comet-da``. Made once by
    ``python3.11 -m venv comet; comet/bin/pip install unbabel-comet``.
    """

    def __init__(self, spec: str):
        self._model, options = split_options(spec, {"python": sys.executable, "gpus": "0"})
        if not self._model or not options["gpus"].isdecimal():
            raise UserError(f"comet:{spec}: expected comet:MODEL?python=PATH&gpus=NUMBER")
        self._python, self._gpus = options["python"], options["gpus"]
        self.identity = f"comet {self._model}"

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """See `base.TranslationScorer`.

        Raises:
          UserError: that Python does not exist or lacks the package.
        """
        items = [
            {"src": source, "mt": hypothesis, "ref": reference}
            for source, hypothesis, reference in zip(sources, hypotheses, references, strict=True)
        ]
        if not items:
            return np.zeros(0)
        with tempfile.TemporaryDirectory() as folder:
            request, reply = Path(folder, "request.json"), Path(folder, "reply.json")
            request.write_text(json.dumps({"model": self._model, "gpus": self._gpus, "items": items}), encoding="utf-8")
            command = [self._python, "-c", _PROGRAM, str(request), str(reply)]
            try:
                done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
            except OSError as error:
                raise UserError(f"comet: {self._python} cannot be run: {error}") from None
            messages = done.stderr.decode(errors="replace").strip()
            if done.returncode == _NO_PACKAGE:
                raise UserError(
                    f"comet: {self._python} has no package unbabel-comet ({messages}). It needs an environment of its "
                    "own: python3.11 -m venv comet && comet/bin/pip install unbabel-comet; then name its Python: "
                    f"comet:{self._model}?python=comet/bin/python"
                )
            if done.returncode:
                raise _failed(f"comet {self._model} failed ({done.returncode}): {messages[-1000:]}", len(items))
            scores = np.array(json.loads(reply.read_text(encoding="utf-8")), np.float64)
        if scores.shape != (len(items),):
            raise _failed(f"comet {self._model}: {scores.shape} scores for {len(items)} texts", len(items))
        return scores


def _failed(message: str, count: int) -> PluginError:
    """The model failed, not one of the texts: nobody needs to try each of them."""
    return PluginError(message, failures=dict.fromkeys(range(count), PluginError(message)))
