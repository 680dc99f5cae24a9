"""The fields of a JSON object (or form), taken out one by one with their types checked."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mimo_jax.serving.errors import ApiError, bad

_KINDS = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}


def kind_of(value: object) -> str:
    """JSON's name of a value's type."""
    return _KINDS.get(type(value), "a number")


def shown(value: object) -> str:
    """A value in a message: not longer than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


class Fields:
    """Fields that are still to be read; `null` counts as left out.

    Args:
      values: the object.
      where: its own name, such as "messages[0]"; empty at the top.

    All methods raise ApiError 400 that names the field.
    """

    def __init__(self, values: object, where: str = "") -> None:
        if not isinstance(values, Mapping):
            raise bad(f"{where or 'the body'} is {kind_of(values)}; it must be an object", where or None)
        self._values, self.where = dict(values), where

    def name(self, key: str) -> str:
        """The field's full name."""
        return f"{self.where}.{key}" if self.where else key

    def error(self, key: str, message: str, code: str | None = None) -> ApiError:
        """An error about a field; the message goes on after its name."""
        return bad(f"{self.name(key)} {message}", self.name(key), code)

    def take(self, key: str) -> Any:
        """Whatever is there, or None."""
        return self._values.pop(key, None)

    def _typed(self, key: str, kind: type, required: bool) -> Any:
        value = self.take(key)
        if value is None:
            if required:
                raise self.error(key, "is missing", "missing_required_parameter")
            return None
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise self.error(key, f"is {kind_of(value)}; it must be {_KINDS.get(kind, 'a number')}", "invalid_type")
        return value

    def text(self, key: str, required: bool = False) -> str | None:
        """A string, of characters that UTF-8 has."""
        value = self._typed(key, str, required)
        if value is not None and any("\ud800" <= character <= "\udfff" for character in value):
            raise self.error(key, "holds half of a surrogate pair, which is no character")
        return value

    def choice(self, key: str, options: Collection[str]) -> str | None:
        """One of some strings."""
        value = self.text(key)
        if value is not None and value not in options:
            raise self.error(key, f"is {shown(value)}; choose one of {', '.join(options)}", "invalid_value")
        return value

    def flag(self, key: str) -> bool | None:
        """True or false; a form spells it."""
        value = self.take(key)
        if isinstance(value, str):
            value = {"true": True, "false": False, "1": True, "0": False, "": None}.get(value.lower(), value)
        if value is None or isinstance(value, bool):
            return value
        raise self.error(key, f"is {shown(value)}; it must be true or false", "invalid_type")

    def number(self, key: str, low: float, high: float) -> float | None:
        """A number within bounds; a form spells it."""
        value = self.take(key)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                pass
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"is {shown(value)}; it must be a number", "invalid_type")
        if not low <= value <= high:  # as NaN is not
            raise self.error(key, f"is {shown(value)}; it must be from {low:g} to {high:g}", "invalid_value")
        return float(value)

    def integer(self, key: str, low: int, high: int) -> int | None:
        """A whole number within bounds; a form spells it."""
        value = self.take(key)
        if isinstance(value, str):
            try:
                value = int(value[:30])
            except ValueError:
                pass
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"is {shown(value)}; it must be a whole number", "invalid_type")
        if not low <= value <= high:
            raise self.error(key, f"is {shown(value)}; it must be from {low} to {high}", "invalid_value")
        return value

    def objects(self, key: str) -> list[Any]:
        """A list that must be there."""
        return self._typed(key, list, True)

    def inner(self, key: str) -> Fields | None:
        """An object."""
        value = self.take(key)
        return None if value is None else Fields(value, self.name(key))

    def refuse(self, key: str, *same_as_none: object) -> None:
        """A field that only its neutral values are taken of."""
        value = self.take(key)
        if value is not None and not any(type(value) is type(n) and value == n for n in same_as_none):
            raise self.error(key, f"is {shown(value)}, which is not supported; leave it out", "unsupported_parameter")

    def done(self, ignored: Collection[str] = ()) -> None:
        """All that is left must be one of `ignored`."""
        for key, value in self._values.items():
            if key not in ignored and value is not None:
                name = self.name(key[:60])
                raise bad(f"{name} is no field that is known here; leave it out", name, "unknown_parameter")
