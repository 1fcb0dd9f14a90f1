"""The tools' verdict on the code, so that pytest is the one gate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")


@pytest.fixture
def link_tree(tmp_path: Path) -> Path:
    """The package as it is installed, as links: type checkers do not read mapped folders."""
    package = tmp_path / "shipnet"
    package.mkdir()
    for path in (ROOT / "pipeline").iterdir():
        if path.suffix in (".py", ".typed"):
            (package / path.name).symlink_to(path)
    for stage in ("train", "export", "runtime"):
        (package / stage).symlink_to(ROOT / stage)
    return tmp_path


def test_mypy_finds_nothing(link_tree: Path) -> None:
    env = {**os.environ, "MYPYPATH": str(link_tree)}
    run("mypy", "--config-file", "pyproject.toml", "--cache-dir", ".mypy_cache", "-p", "shipnet", env=env)
