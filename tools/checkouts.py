"""Commits as folders, for tools that run the code of two of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextlib.contextmanager
def checkout(commit: str | None) -> Iterator[Path]:
    """The folder of a commit's files, removed at the end; None is the working tree as it is.

    Raises:
      SystemExit: git does not know the commit.
    """
    if commit is None:
        yield ROOT
        return
    with tempfile.TemporaryDirectory(prefix="mimo_jax-") as temporary:
        folder = Path(temporary) / "tree"
        command = ["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(folder), commit]
        made = subprocess.run(command, capture_output=True, text=True)
        if made.returncode != 0:
            sys.exit(f"error: {commit}: {made.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(folder)], check=True)


def run(folder: Path, module: str, arguments: Sequence[str]) -> None:
    """`python -m MODULE` of the code in `folder`; its output goes where this process's goes.

    Raises:
      SystemExit: it ends with another code than 0.
    """
    # The folder is first on the path, before an installed mimo_jax.
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ended = subprocess.run([sys.executable, "-m", module, *arguments], cwd=folder, env=environment)
    if ended.returncode != 0:
        sys.exit(f"error: {folder}: {module} ended with code {ended.returncode} (above)")
