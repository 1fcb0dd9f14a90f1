"""A network that was not trained here meets its validation images, and becomes a `Source`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
from torch import nn

from shipnet.runtime import PreprocessSpec, preprocess
from shipnet.runtime.accuracy import accuracy
from shipnet.runtime.errors import DataError, ImageError, UsageError
from shipnet.runtime.manifest import Normalization, Provenance
from shipnet.runtime.plan import installed_versions
from shipnet.train import ImageSet, pixels
from shipnet.train.folders import TEST_NAMES, TRAIN_NAMES, VALID_NAMES, LabelledImages, load_labelled
from shipnet.train.images import READING_THREADS, fingerprint
from shipnet.train.splits import HALVES_SEED
from shipnet.train.temperature import fit_temperature

from .foreign_config import ForeignConfig
from .label_order import suspicion
from .parity import Images, Logits
from .parity import Run as RunFunction
from .source import LIBRARIES, Indices, OnProgress, Source, halves

logger = logging.getLogger(__name__)

OnNote = Callable[[str], None]
_CHUNK: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A network that was not trained here, before it met images.

    Attributes:
        kind, arch, parameters: as in `Provenance`.
        where: its file, for messages.
        sha256: of that file.
        spec, normalization, reference, network, to_onnx, weights: as in `Source`.
    """

    kind: Literal["weights", "onnx"]
    where: str
    sha256: str
    arch: str
    parameters: int
    spec: PreprocessSpec
    normalization: Normalization | None
    reference: RunFunction
    network: nn.Module | None
    to_onnx: Callable[[Images, Mapping[str, str]], bytes]
    weights: bytes | None


@dataclass(frozen=True, slots=True)
class Told:
    """Whom an export tells what it does.

    Attributes:
        note: called with what was found or chosen, a sentence each.
        progress: called with what is done (a word), how much of it, and how much there is.
    """

    note: OnNote
    progress: OnProgress

    @classmethod
    def of(cls, note: OnNote | None, progress: OnProgress | None) -> Told:
        """The callbacks, or the log and nobody."""
        return cls(note or logger.info, progress or _nobody)


def default_out(name: str) -> Path:
    """Where the bundle of that name stands unless something else is said.

    Raises:
        UsageError: the name is no name of a folder.
    """
    if name in ("", ".", "..") or Path(name).name != name:
        raise UsageError(f"name is {name!r}, which names no folder below artifacts: give --out")
    return Path("artifacts") / name / "bundle"


def source_of(network: Network, config: ForeignConfig, *, name: str, told: Told) -> Source:
    """Reads the validation images, fits the temperature on one half of them, and doubts the labels.

    Raises:
        DataError: images that do not go with the labels, or logits that speak against the network as described.
        ImageError: a damaged image, where `config.strict`.
        UsageError: no such folder.
    """
    found = _list_images(config.val, config, told)
    root = Path(config.val)
    valid, damaged = _leave_out_damaged(
        found.images, network.spec, folder=root, strict=config.strict, told=told
    )
    data = _data_name(root)
    selection, evidence = halves(valid, HALVES_SEED, name=data)
    logits = _run(network.reference, valid, network.spec, indices=selection, told=told)
    doubts = _doubts(network, config, logits=logits, truths=valid.labels[selection], note=told.note)
    entries = (
        (name, int(label), found.headers[name].digest)
        for name, label in zip(found.images.names, found.images.labels, strict=True)
    )
    return Source(
        name=name,
        labels=config.labels,
        spec=network.spec,
        normalization=network.normalization,
        valid=valid,
        selection=selection,
        evidence=evidence,
        calibration=_calibration(
            config, network.spec, told=told, valid=found, selection=valid.subset(selection)
        ),
        reference=network.reference,
        network=network.network,
        to_onnx=network.to_onnx,
        weights=network.weights,
        temperature=fit_temperature(logits, valid.labels[selection]),
        provenance=Provenance(
            source=network.kind,
            source_sha256=network.sha256,
            arch=network.arch,
            parameters=network.parameters,
            data=data,
            data_fingerprint=fingerprint(entries),
            train_images=None,
            validation_images=len(valid),
            unreadable_images=len(found.unreadable) + damaged,
            doubts=doubts,
            recipe=None,
            seed=None,
            split_seed=HALVES_SEED,
            epochs=None,
            versions=installed_versions(LIBRARIES),
            git_commit=None,
        ),
    )


def _list_images(folder: str | os.PathLike[str], config: ForeignConfig, told: Told) -> LabelledImages:
    root = Path(folder)
    if not root.is_dir():
        state = "is a file, not a folder" if root.exists() else "no such folder"
        raise UsageError(f"{root}: {state}; expected a sub-folder for each class, named as its label")
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and path.name not in config.labels]
    divided = {path.name.lower(): path for path in inner}
    if any(name in divided for name in TRAIN_NAMES):
        part = next((divided[name] for name in (*VALID_NAMES, *TEST_NAMES) if name in divided), None)
        advice = f": name {part}" if part else ": name the part of it that validates"
        raise DataError(f"{root}: holds {inner[0].name}/, not classes{advice}")
    told.progress("images", 0, 1)
    found = load_labelled(root, config.labels, owner="the list of labels", strict=config.strict)
    told.progress("images", 1, 1)
    for warning in found.warnings:
        told.note(f"{_data_name(root)}: {warning}")
    return found


def _leave_out_damaged(
    images: ImageSet, spec: PreprocessSpec, *, folder: Path, strict: bool, told: Told
) -> tuple[ImageSet, int]:
    """The images that can be decoded, and how many cannot: a header may be whole where the pixels are not."""

    def try_out(index: int) -> ImageError | None:
        try:
            preprocess(images[index], spec)
        except ImageError as error:
            return error
        return None

    kept = np.ones(len(images), bool)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        for index, error in enumerate(pool.map(try_out, range(len(images)))):
            told.progress("decode", index + 1, len(images))
            if error is None:
                continue
            if strict:
                pool.shutdown(cancel_futures=True)
                raise error
            told.note(f"left out: {error}")
            kept[index] = False
    if not kept.any():
        raise DataError(f"{folder}: none of {len(images)} images can be read: replace them")
    return images.subset(np.flatnonzero(kept)), int((~kept).sum())


def _run(
    reference: RunFunction, images: ImageSet, spec: PreprocessSpec, *, indices: Indices, told: Told
) -> Logits:
    """The network's logits of some images, a chunk at a time: float32 (len(indices), K)."""
    rows = []
    for first in range(0, len(indices), _CHUNK):
        told.progress("reference", first, len(indices))
        rows.append(reference(pixels(images, spec, indices[first : first + _CHUNK])))
    told.progress("reference", len(indices), len(indices))
    return np.concatenate(rows)


def _doubts(
    network: Network, config: ForeignConfig, *, logits: Logits, truths: Indices, note: OnNote
) -> tuple[str, ...]:
    """What logits say against the network as it was described: refused, unless it is accepted."""
    if not np.isfinite(logits).all():
        raise DataError(
            f"{network.where}: gives NaN or infinite logits on validation images: "
            "are --mean and --std those that it was validated with?"
        )
    given = logits.argmax(1)
    doubt = suspicion(given, truths, config.labels)
    if doubt is not None and not config.accept_accuracy:
        raise DataError(f"{network.where}: {doubt} To ship it all the same, give --accept-accuracy")
    if doubt is not None:
        note(f"WARNING, accepted by --accept-accuracy: {doubt}")
    found = accuracy(int((given == truths).sum()), len(truths))
    note(
        f"the network as it was given: accuracy {found.accuracy:.2%} ({found.low:.2%} to {found.high:.2%}) on the "
        f"{found.images} images that may select; compare it with what you know of it"
    )
    return () if doubt is None else (doubt,)


def _calibration(
    config: ForeignConfig, spec: PreprocessSpec, *, told: Told, valid: LabelledImages, selection: ImageSet
) -> ImageSet:
    """The images of the folder that was given for it, without those that also validate; else those that may select."""
    if config.calibration is None:
        return selection
    folder = Path(config.calibration)
    found = _list_images(folder, config, told)
    measured = {header.digest for header in valid.headers.values()}
    fresh = [found.headers[name].digest not in measured for name in found.images.names]
    if not all(fresh):
        told.note(f"{_data_name(folder)}: {fresh.count(False)} image(s) also validate: left out")
    if not any(fresh):
        raise DataError(f"{folder}: every image also validates: give others, or leave --calibration out")
    images = found.images.subset(np.flatnonzero(fresh))
    return _leave_out_damaged(images, spec, folder=folder, strict=config.strict, told=told)[0]


def _data_name(root: Path) -> str:
    """The folder's own name; with its parent's where it says no more than "val"."""
    resolved = root.resolve()
    parts = (*TRAIN_NAMES, *VALID_NAMES, *TEST_NAMES)
    names = resolved.parts[-2:] if resolved.name.lower() in parts else resolved.parts[-1:]
    return "/".join(name for name in names if name != resolved.anchor) or "data"


def _nobody(what: str, done: int, total: int) -> None:
    del what, done, total
