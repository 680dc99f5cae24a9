"""What mkdocs builds beyond the pages of docs/: mkdocs.yml names this file under `hooks`.

- index.md, the home page, is README.md with its links turned round.
- reference/ROOM.md holds the docstrings of the public modules of mimo_jax/ROOM, in the order of their names.
- Pages link to files outside docs/ as they lie on disk (`../gin/hardware/local.gin`), so that the links work where the
  pages are read as files. Each such file is copied into the site, Markdown as a page, and the links point there. Links
  on those pages are reduced to their text.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mimo_jax"
IN_NAV = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md")  # of the files outside docs/
# `[text](../path)` and `![text](../path)`, with or without an anchor.
_OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"^( *)```.*?^\1``` *$", re.MULTILINE | re.DOTALL)
_MARKER = re.compile(r"^<!-- (?:not run|gin): .*? -->\n", re.MULTILINE)  # for tests/docs, no part of a page


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts a page for each room where the nav says `reference/`."""
    for entry in config.nav or []:
        if isinstance(entry, dict) and entry.get("Reference") == "reference/":
            entry["Reference"] = [{title: f"reference/{name}.md"} for name, title in _rooms()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the home page, the reference, and the files outside docs/ that are linked to."""
    files.append(File.generated(config, "index.md", content=_home()))
    for name, title in _rooms():
        files.append(File.generated(config, f"reference/{name}.md", content=_reference(name, title)))
    linked = {path for file in files.documentation_pages() for path in _outside(file.content_string)}
    for path in sorted({*linked, *IN_NAV} - {"README.md"}):
        if (ROOT / path).is_file():  # one that is not there stays a broken link, which the build reports
            file = File.generated(config, path, abs_src_path=str(ROOT / path))
            file.inclusion = InclusionLevel.INCLUDED if path in IN_NAV else InclusionLevel.NOT_IN_NAV
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files outside docs/ lead to their copies; markers for tests go."""
    markdown = _MARKER.sub("", markdown)
    if page.file.src_uri in IN_NAV:
        return _without_links(markdown)
    parts: list[str] = []
    end = 0
    for fence in _FENCE.finditer(markdown):
        parts += [_inside(markdown[end : fence.start()], files), fence.group()]
        end = fence.end()
    return "".join([*parts, _inside(markdown[end:], files)])


def _inside(markdown: str, files: Files) -> str:
    def target(match: re.Match[str]) -> str:
        path = "index.md" if match[1] == "README.md" else match[1]
        return f"]({path}{match[2] or ''})" if files.get_file_from_path(path) else match[0]

    return _OUTSIDE.sub(target, markdown)


def _outside(markdown: str) -> Iterator[str]:
    for match in _OUTSIDE.finditer(_FENCE.sub("", markdown)):
        yield match[1]


def _home() -> str:
    """README.md as it reads from docs/: `docs/x.md` is `x.md`, `x` is `../x`."""

    def target(match: re.Match[str]) -> str:
        link = match[1]
        if re.match(r"[a-z]+:|#", link):
            return match[0]
        return f"]({link.removeprefix('docs/')})" if link.startswith("docs/") else f"](../{link})"

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\]\(([^)\s]+)\)", target, text)


def _without_links(markdown: str) -> str:
    """Relative links of a copied page name files that were not copied: only their text is kept."""
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:)[^)\s]+\)", r"\1", markdown)


def _rooms() -> list[tuple[str, str]]:
    """(name of the page, title): the commands first, then the rooms."""
    rooms = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    return [("commands", "Commands"), *((room, f"mimo_jax.{room}") for room in rooms)]


def _reference(name: str, title: str) -> str:
    folder = PACKAGE if name == "commands" else PACKAGE / name
    paths = folder.glob("*.py") if name == "commands" else folder.rglob("*.py")
    modules = sorted(_module(path) for path in paths if _is_public(path))
    blocks = [f"::: {module}" for module in modules if module != "mimo_jax"]
    return "\n\n".join([f"# {title}", *blocks]) + "\n"


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_public(path: Path) -> bool:
    """Modules without a leading underscore; packages only where they hold more than a docstring."""
    if path.name != "__init__.py":
        return not path.name.startswith("_")
    return len(ast.parse(path.read_text(encoding="utf-8")).body) > 1
