"""Who made a bundle: signatures of its manifest and seal with a key, in OpenSSF's model-signing format.

The signature names the manifest's sha256, which is the bundle's identity, and the manifest names every other file.
So a slim copy and a packed one carry the signature of the whole, and a file that was added or changed is found as
in any bundle. Nothing here talks to a network.

Make a pair of keys with

    openssl ecparam -name prime256v1 -genkey -noout -out private.pem
    openssl ec -in private.pem -pubout -out public.pem
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import OutputError, SignatureError, UsageError, require

# What model-signing's key signer takes, by cryptography's names.
_CURVES: Final = ("secp256r1", "secp384r1", "secp521r1")
_SIGNATURE: Final = "signature"


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature that a bundle carries.

    Attributes:
        checked_by: sha256 of the public key's PEM form that it was found to be valid for; None: not checked.
    """

    checked_by: str | None


class Signer:
    """A private key, ready to sign. Build it with `Signer.load`."""

    def __init__(self, config: Any) -> None:
        self._config = config

    @classmethod
    def load(cls, key: str | os.PathLike[str]) -> Signer:
        """Reads a private key.

        Args:
            key: a PEM file with an elliptic curve key (P-256, P-384 or P-521), not encrypted.

        Raises:
            UsageError: the file cannot be read, or holds something else.
            MissingExtraError: model-signing is not installed.
        """
        path, serialization = Path(key), _serialization()
        data = _read_key(path)
        make = "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem"
        try:
            private = serialization.load_pem_private_key(data, None)
        except TypeError as error:
            raise UsageError(
                f"{path}: the key is encrypted: take its password off with  openssl ec -in {path} -out PLAIN.pem"
            ) from error
        except ValueError as error:
            raise UsageError(f"{path}: is no private key in PEM form: make one with  {make}") from error
        _refuse_other_curves(path, private, f"make a key with  {make}")
        signing = _library("signing")
        return cls(signing.Config().use_elliptic_key_signer(private_key=path))

    def sign(self, files: Mapping[str, bytes], *, name: str) -> bytes:
        """Signs files.

        Args:
            files: name and bytes of each.
            name: of what they make up, for readers of the signature.

        Returns:
            A Sigstore bundle, JSON, as any implementation of model-signing reads it.

        Raises:
            OutputError: no temporary folder can be written.
        """
        hashing = _library("hashing")
        everything = hashing.Config().set_ignored_paths(paths=(), ignore_git_paths=False)
        try:
            with _laid_out(files, name=name) as folder:
                out = folder.with_name(_SIGNATURE)
                self._config.set_hashing_config(everything).sign(folder, out)
                return out.read_bytes()
        except OSError as error:
            raise OutputError(f"cannot sign: no temporary folder can be written: {error}") from error


def check_signature(
    signature: bytes | None,
    files: Mapping[str, bytes],
    *,
    public_key: str | os.PathLike[str] | None,
    where: Path,
) -> Signature | None:
    """Whether a signature is the key owner's, over exactly these files.

    Args:
        signature: as `Signer.sign` gave it; None: there is none.
        files: name and bytes of each.
        public_key: a PEM file; None: nothing is checked.
        where: the bundle, for messages.

    Returns:
        What is known of the signature; None: there is none, and none was asked for.

    Raises:
        SignatureError: there is none, or it is damaged, another key's, or of something else.
        UsageError: the key cannot be read.
        MissingExtraError: model-signing is not installed.
    """
    if public_key is None:
        return None if signature is None else Signature(checked_by=None)
    path = Path(public_key)
    fingerprint = _fingerprint(path)
    if signature is None:
        raise SignatureError(
            f"{where}: is not signed, and a signature by {path} was asked for: fetch a signed copy, "
            "or sign it with  shipnet sign"
        )
    if refusal := _by_another_key(signature, fingerprint, path):
        raise SignatureError(f"{where}: {refusal}")
    covered = _ExactlyThese()
    config = _library("verifying").Config().use_elliptic_key_verifier(public_key=path)
    try:
        with _laid_out(files, name="bundle") as folder:
            copy = folder.with_name(_SIGNATURE)
            copy.write_bytes(signature)
            config.set_hashing_config(covered).verify(folder, copy)
    except OSError as error:
        raise SignatureError(
            f"{where}: its signature cannot be checked: no temporary folder can be written: {error}"
        ) from error
    except Exception as error:  # the library lets what its parsers raise come through
        raise SignatureError(f"{where}: {_reason(path, was_genuine=covered.asked)}") from error
    return Signature(checked_by=fingerprint)


class _ExactlyThese:
    """Hashes every file, whatever a signature says that it leaves out. Stands where a hashing configuration does."""

    def __init__(self) -> None:
        self.asked = False

    def add_ignored_paths(self, *, model_path: Path, paths: Any) -> None:
        """Leaves nothing out."""
        del model_path, paths

    def hash(self, model_path: Path, *, files_to_hash: Any = None) -> Any:
        """Called when the signature was found to be the key's."""
        del files_to_hash
        self.asked = True
        config = _library("hashing").Config()
        return config.set_ignored_paths(paths=(), ignore_git_paths=False).hash(model_path)


def _by_another_key(signature: bytes, fingerprint: str, key: Path) -> str | None:
    """What a signature says of its key, where that is not the one asked for. That it is proves nothing yet.

    One that names none is refused too: the library would go on, and print a warning.
    """
    try:
        hint = json.loads(signature)["verificationMaterial"]["publicKey"]["hint"]
    except (ValueError, KeyError, TypeError, RecursionError):
        hint = None
    if not isinstance(hint, str) or not hint:
        return "its signature cannot be read, or names no key: fetch an unchanged copy"
    if hint != fingerprint:
        return f"is signed by another key (sha256 {ascii(hint[:64])[1:-1]}) than {key} (sha256 {fingerprint})"
    return None


def _reason(key: Path, *, was_genuine: bool) -> str:
    """Why a signature that names the right key does not hold."""
    if was_genuine:
        return (
            f"carries a signature by {key}, but for another manifest: the bundle was changed and sealed again, or "
            "the signature is another bundle's: fetch both from one place"
        )
    return f"its signature does not hold for {key}: it was changed after it was made: fetch an unchanged copy"


@contextmanager
def _laid_out(files: Mapping[str, bytes], *, name: str) -> Iterator[Path]:
    """The files in a temporary folder, since the library reads folders."""
    with tempfile.TemporaryDirectory(prefix="shipnet-") as temporary:
        folder = Path(temporary) / name
        folder.mkdir()
        for file, data in files.items():
            (folder / file).write_bytes(data)
        yield folder


def _fingerprint(path: Path) -> str:
    """Sha256 of a public key's PEM form, which names it in signatures."""
    serialization = _serialization()
    hint = "openssl ec -in PRIVATE.pem -pubout -out PUBLIC.pem"
    try:
        public = serialization.load_pem_public_key(_read_key(path))
    except ValueError as error:
        raise UsageError(f"{path}: is no public key in PEM form: write one with  {hint}") from error
    _refuse_other_curves(path, public, "give the public key of the pair that signed")
    pem: bytes = public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(pem).hexdigest()


def _refuse_other_curves(path: Path, key: Any, mend: str) -> None:
    curve = getattr(getattr(key, "curve", None), "name", None)
    if curve not in _CURVES:
        found = type(key).__name__ if curve is None else f"a key on the curve {curve}"
        raise UsageError(
            f"{path}: holds {found}, expected an elliptic curve key on P-256, P-384 or P-521: {mend}"
        )


def _read_key(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: the key cannot be read: {error.strerror or error}") from error


def _serialization() -> Any:
    return require("cryptography.hazmat.primitives.serialization")


def _library(module: str) -> Any:
    """A module of model-signing, which imports pyOpenSSL without saying that it needs it."""
    require("OpenSSL")
    return require(f"model_signing.{module}")
