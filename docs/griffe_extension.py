"""For the API reference: "a, b: what both are" under Args or Attributes is read as one entry for each name."""

import re
from typing import Any

import griffe

_SECTION = re.compile(r"^(Args|Attributes):$")
_NAMES = re.compile(r"^(\s+)(\*{0,2}\w+(?:, \*{0,2}\w+)+): ")


class SharedDescriptions(griffe.Extension):
    """Gives every name a line of its own, so that griffe finds its type and warns if there is no such parameter."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = "\n".join(_split(obj.docstring.value.split("\n")))


def _split(lines: list[str]) -> list[str]:
    out: list[str] = []
    inside = False
    at = 0
    while at < len(lines):
        line = lines[at]
        inside = bool(_SECTION.match(line)) or (inside and (not line or line[0] == " "))
        match = _NAMES.match(line) if inside else None
        end = at + 1
        if match is None:
            out.append(line)
        else:
            while end < len(lines) and re.match(match[1] + r"\s", lines[end]):
                end += 1
            for name in match[2].split(", "):
                out += [f"{match[1]}{name}: {line[match.end() :]}", *lines[at + 1 : end]]
        at = end
    return out
