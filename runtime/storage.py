"""Where a bundle's files lie: in a folder, or in one zip that `pack` wrote."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from .archive import Archive, shown
from .errors import BundleError

_CHUNK: Final = 1 << 20


class Storage(Protocol):
    """The files of a bundle, read only. Names are `/`-separated paths below the bundle."""

    @property
    def path(self) -> Path:
        """The folder or the zip."""
        ...

    def listing(self) -> tuple[set[str], list[str]]:
        """The plain files that are there, and a phrase for everything that no bundle may hold."""
        ...

    def has(self, name: str) -> bool:
        """Whether a file of that name is there."""
        ...

    def size(self, name: str) -> int:
        """Of a file that is there, in bytes; OSError where it cannot be told."""
        ...

    def read(self, name: str) -> bytes:
        """A file's bytes; OSError where it cannot be read."""
        ...

    def sha256(self, name: str) -> str:
        """Of a file's bytes, 64 hexadecimal digits; OSError where it cannot be read."""
        ...


def storage_at(path: Path) -> Storage:
    """What holds the bundle there.

    Raises:
        BundleError: nothing is there, or a file that is no packed bundle.
    """
    try:
        if path.is_dir():
            return Folder(path)
        if path.is_file():
            return Archive.open(path)
        there = path.exists()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise BundleError(
        f"{path}: {'is neither a folder nor a plain file' if there else 'no such folder or file'}"
    )


@dataclass(frozen=True, slots=True)
class Folder:
    """A bundle as a folder."""

    path: Path

    def listing(self) -> tuple[set[str], list[str]]:
        """As in `Storage`."""
        present: set[str] = set()
        problems: list[str] = []
        for root, folders, files in os.walk(self.path, onerror=_raise):
            for name in (*folders, *files):
                path = Path(root) / name
                relative = path.relative_to(self.path).as_posix()
                if path.is_symlink():
                    problems.append(f"{shown(relative)} is a link")
                elif path.is_file():
                    present.add(relative)
                elif not path.is_dir():
                    problems.append(f"{shown(relative)} is neither file nor folder")
        return present, problems

    def has(self, name: str) -> bool:
        """As in `Storage`."""
        return (self.path / name).is_file()

    def size(self, name: str) -> int:
        """As in `Storage`."""
        return (self.path / name).stat().st_size

    def read(self, name: str) -> bytes:
        """As in `Storage`."""
        return (self.path / name).read_bytes()

    def sha256(self, name: str) -> str:
        """As in `Storage`."""
        return hash_file(self.path / name)


def hash_file(path: Path) -> str:
    """Sha256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _raise(error: OSError) -> None:
    raise error
