"""mkdocs.yml and docs/hooks.py: what the site holds beyond the pages, and what ends a build.

The real site is built by launch/test.sh; here is a small one with the same settings, without docstrings.
"""

import logging
import runpy
import shutil
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import ROOT

mkdocs = pytest.importorskip("mkdocs")
from mkdocs.commands.build import build  # noqa: E402
from mkdocs.config import load_config  # noqa: E402
from mkdocs.exceptions import Abort  # noqa: E402

FILES = {
    "README.md": "# Home\n\n[a page](docs/page.md#part) [a file](gin/a.gin) [elsewhere](https://example.org)\n",
    "docs/page.md": "# Page\n\n## Part\n\n[file](../gin/a.gin) [home](../README.md#home) "
    "[figures](../benchmarks/RESULTS.md#first)\n\n"
    "<!-- not run: why -->\n```text\n](../gin/a.gin)\n```\n",
    "gin/a.gin": "A = 1\n",
    "benchmarks/RESULTS.md": "# Measured\n\n## First\n\n[broken for others](../docs/page.md)\n",
    "CHANGELOG.md": "# Changes\n",
    "CONTRIBUTING.md": "# Contributing\n",
    "mimo_jax/__init__.py": "",
    "mimo_jax/train.py": "",
    "mimo_jax/room/__init__.py": '"""Nothing but a docstring."""\n',
    "mimo_jax/room/things.py": "",
    "mimo_jax/room/_private.py": "",
}
NAV = [
    {"A": ["index.md", "page.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/RESULTS.md"]},
    {"Reference": "reference/"},
]


@pytest.fixture
def site(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Builds the small site with changed files; returns its folder, or what the build complains of."""
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    settings |= {"nav": NAV, "plugins": [], "theme": {"name": "mkdocs"}, "site_dir": str(tmp_path / "site")}

    def make(**changed: str):
        (tmp_path / "docs").mkdir(exist_ok=True)
        shutil.copy(ROOT / "docs" / "hooks.py", tmp_path / "docs")
        for name, text in (FILES | changed).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(settings))
        config = load_config(str(tmp_path / "mkdocs.yml"), strict=True)
        with caplog.at_level(logging.WARNING):
            try:
                build(config)
            except Abort:
                return "\n".join(record.getMessage() for record in caplog.records)
        return tmp_path / "site"

    return make


def test_the_home_page_is_the_readme_and_files_outside_are_taken_in(site):
    built = site()
    assert isinstance(built, Path), built
    home = (built / "index.html").read_text()
    assert 'href="page.html#part"' in home and 'href="gin/a.gin"' in home and 'href="https://example.org"' in home
    page = (built / "page.html").read_text()
    assert 'href="gin/a.gin"' in page and 'href="index.html#home"' in page
    assert 'href="benchmarks/RESULTS.html#first"' in page
    assert "](../gin/a.gin)" in page and "not run" not in page  # code stays, markers go
    assert (built / "gin" / "a.gin").read_text() == "A = 1\n"
    assert "broken for others" in (built / "benchmarks" / "RESULTS.html").read_text()
    assert not (built / "hooks.py").exists()


def test_every_public_module_is_in_the_reference(site):
    built = site()
    assert sorted(path.name for path in (built / "reference").iterdir()) == ["commands.html", "room.html"]
    assert "::: mimo_jax.room.things" in (built / "reference" / "room.html").read_text()
    assert "private" not in (built / "reference" / "room.html").read_text()
    assert "::: mimo_jax.train" in (built / "reference" / "commands.html").read_text()


def test_pictures_are_what_their_script_draws():
    pictures = runpy.run_path(str(ROOT / "docs" / "images" / "draw.py"))["PICTURES"]
    assert len(pictures) == 4
    for name, draw in pictures.items():
        drawn = draw().svg()
        assert (ROOT / "docs" / "images" / f"{name}.svg").read_text(encoding="utf-8") == drawn, (
            "run docs/images/draw.py"
        )
        assert "prefers-color-scheme: dark" in drawn and "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    "name, text, complaint",
    [
        ("docs/page.md", "# Page\n\n## Part\n\n[x](nowhere.md)\n", "nowhere.md"),
        ("docs/page.md", "# Page\n\n## Part\n\n[x](page.md#nowhere)\n", "nowhere"),
        ("docs/page.md", "# Page\n\n## Part\n\n[x](../gin/nowhere.gin)\n", "../gin/nowhere.gin"),
        ("docs/page.md", "# Page\n\n## Part\n\n[x](/page.md)\n", "/page.md"),
        ("README.md", "# Home\n\n[x](docs/page.md#nowhere)\n", "nowhere"),
        ("docs/forgotten.md", "# Not in the navigation\n", "forgotten.md"),
    ],
)
def test_what_is_broken_ends_the_build(site, name, text, complaint):
    complaints = site(**{name: text})
    assert isinstance(complaints, str) and complaint in complaints
