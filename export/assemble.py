"""Puts a bundle together: manifest, files, seal."""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Any, Final

from shipnet.runtime.bundle import MANIFEST, SEAL
from shipnet.runtime.encoding import encode
from shipnet.runtime.manifest import (
    FORMAT_VERSION,
    FileEntry,
    InputSpec,
    Interop,
    LeftOut,
    Manifest,
    OutputSpec,
    Variant,
)
from shipnet.runtime.proofs import Budget
from shipnet.runtime.storage import hash_file

from .onnx_graph import INPUT, OUTPUT
from .source import Source
from .variants import Candidate


def write_into(folder: Path, relative: str, data: bytes) -> None:
    """Writes one of a bundle's files, and its folder."""
    path = folder / relative
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


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


def make_manifest(
    folder: Path,
    source: Source,
    *,
    variants: tuple[Variant, ...],
    left_out: tuple[LeftOut, ...] = (),
    interop: tuple[Interop, ...] = (),
) -> Manifest:
    """The manifest of what lies in a folder."""
    spec = source.spec
    return Manifest(
        format_version=FORMAT_VERSION,
        name=source.name,
        created_utc=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        labels=source.labels,
        input=InputSpec(name=INPUT, height=spec.height, width=spec.width, channels=spec.channels),
        preprocess=spec,
        normalization=source.normalization,
        output=OutputSpec(name=OUTPUT, num_classes=len(source.labels)),
        variants=variants,
        left_out=left_out,
        interop=interop,
        provenance=source.provenance,
        files=list_files(folder),
    )


_UNPROVED: Final[Any] = ()  # stands where a draft has no evidence yet; a reader refuses it


def draft_manifest(folder: Path, source: Source, candidate: Candidate) -> Manifest:
    """A manifest to prove a candidate by: it claims nothing, opens on every device, and is never written."""
    variant = Variant(
        precision=candidate.precision,
        file=candidate.file,
        targets=("cpu", "cuda", "tensorrt"),
        needs=candidate.needs,
        opset=1,
        ir_version=1,
        temperature=candidate.temperature,
        status="certified",  # so that it runs without answering probes, which do not exist yet
        status_reasons=(),
        replay_tolerance=1.0,
        budget=Budget(max_relative_difference=None, max_flip_rate=1.0, max_top1_drop=1.0),
        parities=_UNPROVED,
        quantization=candidate.quantization,
    )
    return make_manifest(folder, source, variants=(variant,))
