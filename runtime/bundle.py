"""A bundle on disk: opened whole and checked against its manifest, or refused with everything that is wrong."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import BundleError
from .manifest import FileEntry, Manifest, decode_manifest

MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"
# Folders that a copy may leave out, each whole or not at all.
OPTIONAL_FOLDERS: Final = ("interop/", "evidence/")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder that was found to be exactly what its manifest says.

    Attributes:
        path: the folder.
        manifest: what the bundle says of itself.
        identity: sha256 of `manifest.json`, which names the bundle in every result.
    """

    path: Path
    manifest: Manifest
    identity: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Reads and checks a bundle: format, every file's presence, size and sha256.

        Args:
            path: the bundle's folder. A copy without `interop/` or `evidence/` is whole.

        Raises:
            BundleError: no bundle, or one that was changed; all files that are missing, extra or
                different are named at once.

        Example:
            >>> bundle = Bundle.open("artifacts/digits/bundle")
            >>> bundle.manifest.labels[:3]
            ('0', '1', '2')
        """
        folder = Path(path)
        manifest_bytes = _read_manifest(folder)
        identity = hashlib.sha256(manifest_bytes).hexdigest()
        sealed = _read_file(folder / SEAL, folder).decode("ascii", "replace").split()
        if sealed != [identity, MANIFEST]:
            raise BundleError(
                f"{folder / MANIFEST}: was changed after it was sealed (its sha256 is {identity}, "
                f"{SEAL} says {sealed[0] if sealed else 'nothing'}): export the bundle again or fetch an unchanged copy"
            )
        manifest = decode_manifest(manifest_bytes, where=str(folder / MANIFEST))
        problems = _compare(folder, manifest)
        if problems:
            raise BundleError(
                f"{folder}: is not the bundle that was sealed: {'; '.join(problems)}: "
                "export the bundle again or fetch an unchanged copy"
            )
        return cls(path=folder, manifest=manifest, identity=identity)

    def read(self, path: str) -> bytes:
        """One file's bytes, checked again: what is returned is what was sealed.

        Args:
            path: as the manifest lists it, such as ``"model/fp32.onnx"``.

        Raises:
            BundleError: the manifest does not list it, or it changed since the bundle was opened.
        """
        entry = next((entry for entry in self.manifest.files if entry.path == path), None)
        if entry is None:
            raise BundleError(f"{self.path}: has no file {path!r}")
        data = _read_file(self.path / path, self.path)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{self.path / path}: was changed while the bundle was in use: load it again")
        return data

    @property
    def size_bytes(self) -> int:
        """Of all files that the manifest lists, whether or not this copy has them."""
        return sum(entry.size_bytes for entry in self.manifest.files)


def hash_file(path: Path) -> str:
    """Sha256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> bytes:
    if not folder.exists():
        raise BundleError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise BundleError(f"{folder}: is a file, expected a bundle's folder")
    if not (folder / MANIFEST).is_file():
        inside = folder / "bundle"
        hint = f": did you mean {inside}?" if (inside / MANIFEST).is_file() else ""
        raise BundleError(f"{folder}: is no bundle, it has no {MANIFEST}{hint}")
    return _read_file(folder / MANIFEST, folder)


def _read_file(path: Path, folder: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        name = path.relative_to(folder).as_posix()
        raise BundleError(f"{folder}: cannot read {name}: {error.strerror or error}") from error


def _compare(folder: Path, manifest: Manifest) -> list[str]:
    """Everything in which a folder differs from its manifest, a phrase each."""
    try:
        present, problems = _walk(folder)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be listed: {error.strerror or error}") from error
    listed = {entry.path for entry in manifest.files}
    problems += [f"extra file {path}" for path in sorted(present - listed - {MANIFEST, SEAL})]
    left_out = tuple(
        prefix for prefix in OPTIONAL_FOLDERS if not any(path.startswith(prefix) for path in present)
    )
    for entry in manifest.files:
        if entry.path in present:
            problems += _compare_file(folder, entry)
        elif not (left_out and entry.path.startswith(left_out)):
            problems.append(f"missing file {entry.path}")
    return problems


def _walk(folder: Path) -> tuple[set[str], list[str]]:
    """The plain files below a folder, and a phrase for everything else found there."""
    present: set[str] = set()
    problems: list[str] = []
    for root, folders, files in os.walk(folder, onerror=_raise):
        for name in (*folders, *files):
            path = Path(root) / name
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                problems.append(f"{relative} is a link")
            elif path.is_file():
                present.add(relative)
            elif not path.is_dir():
                problems.append(f"{relative} is neither file nor folder")
    return present, problems


def _raise(error: OSError) -> None:
    raise error


def _compare_file(folder: Path, entry: FileEntry) -> list[str]:
    path = folder / entry.path
    try:
        size = path.stat().st_size
        if size != entry.size_bytes:
            return [f"{entry.path} has {size} bytes, expected {entry.size_bytes}"]
        if hash_file(path) != entry.sha256:
            return [f"{entry.path} was changed (its sha256 differs)"]
    except OSError as error:
        return [f"{entry.path} cannot be read: {error.strerror or error}"]
    return []
