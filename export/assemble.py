"""Puts a bundle together: files, manifest, seal."""

from __future__ import annotations

import hashlib
from pathlib import Path

from shipnet.runtime.bundle import MANIFEST, SEAL, hash_file
from shipnet.runtime.manifest import FileEntry, Manifest, encode


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below a folder with its size and sha256, sorted by path; manifest and seal left out."""
    entries = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative not in (MANIFEST, SEAL):
            entries.append(FileEntry(path=relative, size_bytes=path.stat().st_size, sha256=hash_file(path)))
    return tuple(entries)


def seal(folder: Path, manifest: Manifest) -> str:
    """Writes `manifest.json` and `manifest.sha256`; nothing is added to the bundle after this.

    Args:
        folder: with every other file in it.
        manifest: with `files` as `list_files` gives them.

    Returns:
        The bundle's identity: sha256 of `manifest.json`.
    """
    data = encode(manifest)
    identity = hashlib.sha256(data).hexdigest()
    (folder / MANIFEST).write_bytes(data)
    (folder / SEAL).write_text(f"{identity}  {MANIFEST}\n", encoding="ascii")
    return identity
