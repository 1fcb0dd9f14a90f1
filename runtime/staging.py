"""Folders and files that appear whole or not at all: written aside, then swapped into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well.

    When the block raises, Ctrl-C among others, the new folder is removed and `target` stays as it was.

    Args:
        target: where the folder will stand; its parents are made. A folder already there is replaced.

    Raises:
        OutputError: the place cannot be written.
    """
    with _translated(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        staged.chmod(0o755)
        yield staged
        with _translated(target):
            _swap(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """The path of a new file beside `target` that takes its place when the block ends well.

    Raises:
        OutputError: the place cannot be written.
    """
    with _translated(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise OutputError(f"{target}: is a folder, expected a file's path")
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        os.close(handle)
    staged = Path(name)
    try:
        staged.chmod(0o644)
        yield staged
        with _translated(target):
            _sync(staged)
            staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


def write_file(target: Path, data: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    with staged_file(target) as staged, _translated(target):
        staged.write_bytes(data)


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written: {error.strerror or error}: choose another place or free this one"
        ) from error


def _swap(staged: Path, target: Path) -> None:
    """A rename cannot replace a folder that is not empty, so the old one steps aside first."""
    for root, _, files in os.walk(staged):
        for name in files:
            _sync(Path(root) / name)
    if not target.exists():
        staged.rename(target)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(aside / target.name)
    try:
        staged.rename(target)
    except OSError:
        (aside / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
