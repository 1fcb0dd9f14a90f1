"""A bundle on disk: opened whole and checked against its manifest, or refused with everything that is wrong."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .archive import shown
from .errors import BundleError
from .manifest import FileEntry, Manifest, decode_manifest
from .signing import Signature, check_signature
from .storage import Folder, Storage, storage_at

MANIFEST: Final = "manifest.json"
SEAL: Final = "manifest.sha256"
# May stand beside them and is in no list of files: it signs the two, and so the list.
SIGNATURE: Final = "manifest.sig"
# Folders that a copy may leave out, each whole or not at all.
OPTIONAL_FOLDERS: Final = ("interop/", "evidence/")
_MAX_SIZES: Final = {MANIFEST: 1 << 26, SEAL: 1 << 10, SIGNATURE: 1 << 16}


@dataclass(frozen=True, slots=True)
class Bundle:
    """A folder, or a zip of it, that was found to be exactly what its manifest says.

    Attributes:
        path: the folder, or the zip.
        manifest: what the bundle says of itself.
        identity: sha256 of `manifest.json`, which names the bundle in every result.
        signature: None where it is not signed.
        storage: reads the files; None reads from the folder `path`.
    """

    path: Path
    manifest: Manifest
    identity: str
    signature: Signature | None = None
    storage: Storage | None = field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, public_key: str | os.PathLike[str] | None = None
    ) -> Bundle:
        """Reads and checks a bundle: format, every file's presence, size and sha256.

        Args:
            path: the bundle's folder, or a zip of it that `pack` wrote. A copy without `interop/` or
                `evidence/` is whole.
            public_key: a PEM file; the bundle must carry a signature by that key's owner. None: a
                signature that is there is not checked.

        Raises:
            BundleError: no bundle, or one that was changed; all files that are missing, extra or
                different are named at once.
            SignatureError: it is not signed by that key.
            UsageError: the key cannot be read.
            MissingExtraError: a key was given and model-signing is not installed.

        Example:
            >>> bundle = Bundle.open("artifacts/digits/bundle")
            >>> bundle.manifest.labels[:3]
            ('0', '1', '2')
        """
        storage = storage_at(Path(path))
        manifest_bytes, seal = _read_manifest(storage), _read(storage, SEAL)
        identity = hashlib.sha256(manifest_bytes).hexdigest()
        if seal != f"{identity}  {MANIFEST}\n".encode("ascii"):
            raise BundleError(
                f"{storage.path / MANIFEST}: was changed after it was sealed, or {SEAL} was: the manifest's sha256 is "
                f"{identity}, the seal says {seal.decode('latin-1')!a}: export the bundle again or fetch an "
                "unchanged copy"
            )
        signature = _read(storage, SIGNATURE) if storage.has(SIGNATURE) else None
        found = check_signature(
            signature, {MANIFEST: manifest_bytes, SEAL: seal}, public_key=public_key, where=storage.path
        )
        manifest = decode_manifest(manifest_bytes, where=str(storage.path / MANIFEST))
        problems = _compare(storage, manifest)
        if problems:
            raise BundleError(
                f"{storage.path}: is not the bundle that was sealed: {'; '.join(problems)}: "
                "export the bundle again or fetch an unchanged copy"
            )
        return cls(path=storage.path, manifest=manifest, identity=identity, signature=found, storage=storage)

    def read(self, path: str) -> bytes:
        """One file's bytes, checked again: what is returned is what was sealed.

        Args:
            path: as the manifest lists it, such as ``"model/fp32.onnx"``.

        Raises:
            BundleError: the manifest does not list it, this copy left it out, or it changed since the
                bundle was opened.
        """
        entry = next((entry for entry in self.manifest.files if entry.path == path), None)
        if entry is None:
            raise BundleError(f"{self.path}: has no file {path!r}")
        data = _read(self.contents, path)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{self.path / path}: was changed while the bundle was in use: load it again")
        return data

    def has(self, path: str) -> bool:
        """Whether this copy holds a file of the manifest: `interop/` and `evidence/` may be left out."""
        return any(entry.path == path for entry in self.manifest.files) and self.contents.has(path)

    @property
    def size_bytes(self) -> int:
        """Of all files that the manifest lists, whether or not this copy has them."""
        return sum(entry.size_bytes for entry in self.manifest.files)

    @property
    def contents(self) -> Storage:
        """What reads the files."""
        return self.storage or Folder(self.path)


def read_unlisted(bundle: Bundle, name: str) -> bytes:
    """The bytes of the manifest, its seal or its signature, which the manifest cannot list.

    Raises:
        BundleError: it cannot be read.
    """
    return _read(bundle.contents, name)


def _read_manifest(storage: Storage) -> bytes:
    if not storage.has(MANIFEST):
        inside = storage.path / "bundle"
        hint = f": did you mean {inside}?" if (inside / MANIFEST).is_file() else ""
        raise BundleError(f"{storage.path}: is no bundle, it has no {MANIFEST}{hint}")
    return _read(storage, MANIFEST)


def _read(storage: Storage, name: str) -> bytes:
    try:
        size, limit = storage.size(name), _MAX_SIZES.get(name)
        if limit is not None and size > limit:
            raise BundleError(f"{storage.path / name}: has {size:,} bytes, expected at most {limit:,}")
        return storage.read(name)
    except OSError as error:
        raise BundleError(f"{storage.path}: cannot read {name}: {error.strerror or error}") from error


def _compare(storage: Storage, manifest: Manifest) -> list[str]:
    """Everything in which a bundle's files differ from its manifest, a phrase each."""
    try:
        present, problems = storage.listing()
    except OSError as error:
        raise BundleError(f"{storage.path}: cannot be listed: {error.strerror or error}") from error
    listed = {entry.path for entry in manifest.files}
    extra = present - listed - {MANIFEST, SEAL, SIGNATURE}
    problems += [f"extra file {shown(path)}" for path in sorted(extra)]
    left_out = tuple(
        prefix for prefix in OPTIONAL_FOLDERS if not any(path.startswith(prefix) for path in present)
    )
    for entry in manifest.files:
        if entry.path in present:
            problems += _compare_file(storage, entry)
        elif not (left_out and entry.path.startswith(left_out)):
            problems.append(f"missing file {entry.path}")
    return problems


def _compare_file(storage: Storage, entry: FileEntry) -> list[str]:
    try:
        size = storage.size(entry.path)
        if size != entry.size_bytes:
            return [f"{entry.path} has {size} bytes, expected {entry.size_bytes}"]
        if storage.sha256(entry.path) != entry.sha256:
            return [f"{entry.path} was changed (its sha256 differs)"]
    except OSError as error:
        return [f"{entry.path} cannot be read: {error.strerror or error}"]
    return []
