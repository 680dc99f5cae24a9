"""Resumable parts of an evaluation: each is one JSON file, written atomically, redone when its settings changed."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mimo_jax.evaluation.metrics import Estimate
from mimo_jax.files import write_text

Part = dict[str, Any]
logger = logging.getLogger(__name__)


def rows_of(**columns: Sequence[Any]) -> list[dict[str, Any]]:
    """Columns of one length as a list of items."""
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def figures_of(**estimates: Estimate | None) -> dict[str, Any]:
    """JSON forms by name, without those that are undefined."""
    return {name: estimate.as_dict() for name, estimate in estimates.items() if estimate is not None}


def nothing() -> Part:
    """A part without material, for instance because its recordings cannot be read."""
    return {"figures": {}, "items": []}


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON atomically; NaN and infinities become null, as JSON has neither."""
    write_text(path, json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class PartStore:
    """Parts under a folder. ``settings`` decides the results: a stored part with others is computed again."""

    def __init__(self, folder: str | os.PathLike[str], settings: dict[str, Any]):
        self._folder = Path(folder)
        self._settings = json.loads(json.dumps(settings))

    def get(self, name: str, compute: Callable[[], Part]) -> Part:
        """The stored part ``name``, or what ``compute`` returns, which is then stored."""
        path = self._folder / f"{name}.json"
        if path.is_file():
            try:
                stored = json.loads(path.read_text())
            except ValueError:
                logger.warning("%s is damaged and computed again", path)
            else:
                if stored.get("settings") == self._settings:
                    return stored["result"]
                logger.info("%s was made with other settings and is computed again", path)
        write_json(path, {"settings": self._settings, "result": compute()})
        # Read back, so that a resumed run and an uninterrupted one return the very same values.
        return json.loads(path.read_text())["result"]
