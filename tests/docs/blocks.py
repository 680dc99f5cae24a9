"""The fenced code blocks of README.md, CONTRIBUTING.md and docs/, with what the page says about testing them.

A comment on the line before a block says how it is treated:

    <!-- not run: why -->        it cannot be run here
    <!-- file: mine/stage.py --> it is saved under this name and imported
    <!-- gin: gin/runs/A.gin --> it is bound behind this run file (gin/runs/quickstart/joint.gin where nothing is said)
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)(`{3,})(.*)$")
_MARKER = re.compile(r"^ *<!-- ([a-z ]+): (.+) -->$")
_MARKERS = ("not run", "file", "gin")


@dataclass(frozen=True)
class Block:
    """One block: where it is, its language, its lines without the indentation of the fence, its markers."""

    page: Path
    line: int
    language: str
    text: str
    markers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"

    @property
    def not_run(self) -> str:
        """Why it is not run; empty where it is."""
        return self.markers.get("not run", "")


def of(page: Path) -> list[Block]:
    """The blocks of a page in order.

    Raises:
      ValueError: a marker nobody knows or that no block follows, a fence that does not end.
    """
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    markers: dict[str, str] = {}
    at = 0
    while at < len(lines):
        marker, fence = _MARKER.match(lines[at]), _FENCE.match(lines[at])
        if marker:
            if marker[1] not in _MARKERS:
                raise ValueError(f"{page}:{at + 1}: unknown marker {marker[1]!r}; there are {', '.join(_MARKERS)}")
            markers[marker[1]] = marker[2]
        elif fence:
            indent, ticks, language = fence.groups()
            end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == ticks), None)
            if end is None:
                raise ValueError(f"{page}:{at + 1}: the block does not end")
            text = "\n".join(line.removeprefix(indent) for line in lines[at + 1 : end])
            found.append(Block(page, at + 1, language.strip(), text + "\n", markers))
            markers = {}
            at = end
        elif markers:
            raise ValueError(f"{page}:{at + 1}: a marker stands on the line before its block")
        at += 1
    return found


def prose(page: Path) -> str:
    """A page without its blocks."""
    out: list[str] = []
    ticks = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        fence = _FENCE.match(line)
        if ticks:
            ticks = "" if line.strip() == ticks else ticks
        elif fence:
            ticks = fence[2]
        else:
            out.append(line)
    return "\n".join(out)
