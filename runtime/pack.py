"""One file instead of a folder: a bundle in a zip, whole or without what only its makers need; and its signature."""

from __future__ import annotations

import os
from pathlib import Path

from .archive import Archive, write_archive
from .bundle import MANIFEST, OPTIONAL_FOLDERS, SEAL, SIGNATURE, Bundle, read_unlisted
from .errors import BundleError, OutputError
from .signing import Signer
from .staging import locked, staged_file, write_file
from .storage import storage_at


def pack(path: str | os.PathLike[str], out: str | os.PathLike[str], *, slim: bool = False) -> Bundle:
    """Writes a bundle into one zip, which is a bundle too: manifest and identity stay as they are.

    The same bundle gives the same bytes wherever and whenever it is packed.

    Args:
        path: the bundle's folder, or a packed one.
        out: the zip; a packed bundle there is replaced.
        slim: whether `interop/` and `evidence/` are left out.

    Returns:
        The packed bundle, opened.

    Raises:
        BundleError: no bundle, or a changed one.
        OutputError: `out` cannot be written, holds something else, or would stand inside the bundle.

    Example:
        >>> pack("artifacts/digits/bundle", "digits.zip", slim=True).identity == bundle.identity
        True
    """
    bundle, target = Bundle.open(path), Path(out)
    if bundle.path.is_dir() and target.absolute().resolve().is_relative_to(bundle.path.resolve()):
        raise OutputError(
            f"{target}: lies in the bundle, which nothing may be added to: choose another place"
        )
    _refuse_strangers(target)
    names = _names(bundle)
    if slim:
        names = {name for name in names if not name.startswith(OPTIONAL_FOLDERS)}
    with locked(target), staged_file(target) as staged:
        _write(staged, bundle, names, where=target)
        if Bundle.open(staged).identity != bundle.identity:
            raise BundleError(f"{bundle.path}: was changed while it was packed: pack it again")
    return Bundle.open(target)


def sign(path: str | os.PathLike[str], key: str | os.PathLike[str] | Signer) -> Bundle:
    """Puts a signature onto a finished bundle, a folder or a packed one. Another one there is replaced.

    Args:
        path: the bundle.
        key: a PEM file with a private key (see `Signer.load`), or the key.

    Returns:
        The bundle, opened again.

    Raises:
        BundleError: no bundle, or a changed one.
        OutputError: it cannot be written.
        UsageError: the key cannot be read.
        MissingExtraError: model-signing is not installed.

    Example:
        >>> sign("artifacts/digits/bundle", "private.pem").signature is not None
        True
    """
    signer = key if isinstance(key, Signer) else Signer.load(key)
    storage_at(Path(path))
    with locked(Path(path)):
        bundle = Bundle.open(path)
        signature = signature_of(bundle, signer)
        if isinstance(bundle.storage, Archive):
            with staged_file(bundle.path) as staged:
                names = _names(bundle) | {SIGNATURE}
                _write(staged, bundle, names, where=bundle.path, signature=signature)
        else:
            write_file(bundle.path / SIGNATURE, signature, aside=bundle.path.resolve().parent)
    return Bundle.open(path)


def signature_of(bundle: Bundle, signer: Signer) -> bytes:
    """The bytes of `manifest.sig` for a bundle."""
    files = {name: read_unlisted(bundle, name) for name in (MANIFEST, SEAL)}
    return signer.sign(files, name=bundle.identity)


def _names(bundle: Bundle) -> set[str]:
    """Of the files that this copy of a bundle holds."""
    names = {MANIFEST, SEAL, SIGNATURE, *(entry.path for entry in bundle.manifest.files)}
    return {name for name in names if bundle.contents.has(name)}


def _write(
    zip_path: Path, bundle: Bundle, names: set[str], *, where: Path, signature: bytes | None = None
) -> None:
    def read(name: str) -> bytes:
        if name == SIGNATURE and signature is not None:
            return signature
        return read_unlisted(bundle, name) if name in (MANIFEST, SEAL, SIGNATURE) else bundle.read(name)

    write_archive(zip_path, names, read, where=where)


def _refuse_strangers(target: Path) -> None:
    """Only a packed bundle may be replaced by one."""
    if not target.is_file():
        return
    try:
        ours = storage_at(target).has(MANIFEST)
    except BundleError:
        ours = False
    if not ours:
        raise OutputError(
            f"{target}: something that is no packed bundle stands there: choose another place or remove it"
        )
