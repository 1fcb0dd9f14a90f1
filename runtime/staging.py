"""Folders and files that appear whole or not at all, from one writer at a time: written aside, then swapped in."""

from __future__ import annotations

import datetime as dt
import errno
import logging
import os
import platform
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Final

from .errors import OutputError

logger = logging.getLogger(__name__)

# Of a write that found no room; EFBIG: the system's limit on a file's size.
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_LOCKS: Final = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
_LONGEST_NOTE: Final = 200
_PARTIAL: Final = ".partial"
_OLD: Final = ".old"
# Windows keeps others from reading a byte that is locked, so it is one behind the note.
_LOCKED_BYTE: Final = 1 << 30


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Holds a place for one writer: whoever asks for it meanwhile is refused at once.

    The lock is on a file beside `target` and is the system's, so it goes with the process, however that ends.
    Threads of one process exclude each other too; it cannot be taken twice. What a killed writer left beside
    `target` is cleared away, and what it had not yet replaced comes back.

    Args:
        target: the file or folder that will be written; its parents are made.

    Raises:
        OutputError: it is being written by another; the message names the process. Or its place cannot be written.
    """
    with _translated(target):
        place = target.resolve()
        if not place.name:
            raise OutputError(f"{target}: is the root of a disk, expected a place below it")
        place.parent.mkdir(parents=True, exist_ok=True)
        file, path = _acquire(place, target)
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == owner:
            _release(file, path)


def refuse_busy(target: Path) -> None:
    """Says at once, before long work begins, that another holds `locked(target)`.

    Raises:
        OutputError: another does, or the place cannot be written.
    """
    if target.resolve().parent.is_dir():
        with locked(target):
            pass


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its place when the block ends well.

    When the block raises, Ctrl-C among others, the new folder is removed and `target` stays as it was.

    Args:
        target: where the folder will stand; its parents are made. A folder already there is replaced.

    Raises:
        OutputError: the place cannot be written, or the block found the disk full.
    """
    with _translated(target):
        place = target.resolve()  # a link stays, and what it names is replaced
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists() and not place.is_dir():
            raise OutputError(f"{target}: is a file, expected a folder's path: choose another place")
        staged = Path(tempfile.mkdtemp(prefix=f".{place.name}.", suffix=_PARTIAL, dir=place.parent))
    try:
        with _full_disk(target, staged):
            staged.chmod(0o755)
            yield staged
        with _translated(target):
            _swap(staged, place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def staged_file(target: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """The path of a new file that takes the place of `target` when the block ends well.

    Args:
        target: where the file will stand; its parents are made. A file already there is replaced.
        aside: the folder on the same disk in which it is written; None: the target's own.

    Raises:
        OutputError: the place cannot be written, or the block found the disk full.
    """
    with _translated(target):
        place = target.resolve()
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_dir():
            raise OutputError(f"{target}: is a folder, expected a file's path")
        if place.exists() and not place.is_file():
            raise OutputError(
                f"{target}: is no plain file, so nothing can take its place: choose another path"
            )
        folder = aside or place.parent
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", suffix=_PARTIAL, dir=folder)
        os.close(handle)
    staged = Path(name)
    try:
        with _full_disk(target, staged):
            staged.chmod(0o644)
            yield staged
        with _translated(target):
            _sync(staged)
            staged.replace(place)
    finally:
        staged.unlink(missing_ok=True)


def write_file(target: Path, data: bytes, *, aside: Path | None = None) -> None:
    """Writes a file whole or not at all.

    Raises:
        OutputError: the place cannot be written.
    """
    with staged_file(target, aside=aside) as staged, _translated(target):
        staged.write_bytes(data)


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{target}: cannot be written: {error.strerror or error}: choose another place or free this one"
        ) from error


@contextmanager
def _full_disk(target: Path, staged: Path) -> Iterator[None]:
    """Errors of writing in a block that may read other files too: no room, or a path below `staged`."""
    try:
        yield
    except OSError as error:
        name = error.filename
        below = isinstance(name, str | os.PathLike) and Path(name).is_relative_to(staged)
        if error.errno not in _NO_ROOM and not below:
            raise
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
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=_OLD, dir=target.parent))
    target.rename(aside / target.name)
    try:
        staged.rename(target)
    except OSError:
        (aside / target.name).rename(target)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(place: Path) -> None:
    """Of writers that were killed; only whoever holds the lock may. What cannot be cleared stays."""
    pattern = re.compile(
        re.escape(f".{place.name}.") + f"[a-z0-9_]{{8}}({re.escape(_PARTIAL)}|{re.escape(_OLD)})"
    )
    with suppress(OSError):
        for path in [path for path in place.parent.iterdir() if pattern.fullmatch(path.name)]:
            if path.suffix == _OLD and (path / place.name).exists() and not place.exists():
                (path / place.name).rename(place)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _acquire(place: Path, target: Path) -> tuple[FileIO, Path]:
    """The open lock file, held, with a note of who holds it; and its path."""
    path = place.with_name(f".{place.name}.lock")
    while True:
        file = _open_lock(path)
        try:
            exclusive = _lock(file, target)
        except BaseException:
            file.close()
            raise
        if not _is_at(file, path):
            file.close()  # its last holder removed it just now
            continue
        try:
            if not file.writable():
                _release(file, path)
                continue
            if exclusive:
                _clear_leftovers(place)
            file.truncate(0)
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            file.write(f"process {os.getpid()} on {platform.node()}, since {now}".encode())
            _close_in_children(file)
        except BaseException:
            _release(file, path)
            raise
        return file, path


def _open_lock(path: Path) -> FileIO:
    """The lock file, new or left behind; one that another user left can only be read, which is enough to lock it."""
    try:
        return FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")
    except PermissionError:
        if not path.is_file() or not os.access(path.parent, os.W_OK):
            raise
        return FileIO(os.open(path, os.O_RDONLY), "r")


def _lock(file: FileIO, target: Path) -> bool:
    """Locks a file, or refuses; False where the file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(_LOCKED_BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            file.seek(0)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        note = file.read(_LONGEST_NOTE).decode("ascii", "replace")
        holder = "".join(letter for letter in note if letter.isprintable()) or "a process that just began"
        raise OutputError(
            f"{target}: is being written by another ({holder}): wait until that is done, or choose another place"
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s: this file system has no locks, so nothing keeps another process from writing there too",
            target,
        )
        return False
    return True


def _is_at(file: FileIO, path: Path) -> bool:
    """Whether an open file is the one that stands at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _close_in_children(file: FileIO) -> None:
    """A forked worker that outlives its parent must not keep the lock."""
    held = weakref.ref(file)

    def close() -> None:
        if (inherited := held()) is not None:
            inherited.close()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=close)


def _release(file: FileIO, path: Path) -> None:
    """Removes the lock file, while it is held: nobody can take a file that is about to go."""
    if sys.platform != "win32":
        with suppress(OSError):
            path.unlink()
    file.close()
    if sys.platform == "win32":
        with suppress(OSError):  # there a file that another opened cannot be removed
            path.unlink()
