"""From a name or a folder to a `Dataset`."""

from __future__ import annotations

import logging
from itertools import chain
from pathlib import Path

from shipnet.runtime.errors import UsageError
from shipnet.runtime.preprocess import PreprocessSpec

from .builtin import LABELS, array_digests, load_builtin
from .config import BUILT_IN, DataConfig, did_you_mean
from .folders import FolderImages, load_folder
from .images import IN_MEMORY_SIDE, Dataset, fingerprint

logger = logging.getLogger(__name__)

PHOTO_SIZE = 224
# Of validation photographs the shorter side becomes 256/224 of the crop's, the ImageNet convention.
# Source: torchvision's classification reference, `--val-resize-size 256 --val-crop-size 224`.
CROP_MARGIN = 256 / 224


def load_data(config: DataConfig) -> Dataset:
    """Finds, checks and divides the images that a configuration names.

    Every file is read once, for the fingerprint; pixels are decoded later.

    Raises:
        UsageError: neither a built-in name nor a folder.
        DataError: a data set that cannot be trained on; the message names file or folder.
        ImageError: a file that is no image.
    """
    if config.data in BUILT_IN:
        return _builtin_dataset(config)
    root = Path(config.data)
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "no such folder"
        names = ", ".join(BUILT_IN)
        raise UsageError(
            f"data {config.data!r}: {kind}{did_you_mean(config.data, BUILT_IN)}; expected a folder or one of: {names}"
        )
    dataset = _folder_dataset(root, config)
    for warning in dataset.warnings:
        logger.warning("%s: %s", dataset.name, warning)
    return dataset


def _builtin_dataset(config: DataConfig) -> Dataset:
    train, valid = load_builtin(config)
    _, side, _, channels = train.sources.shape  # type: ignore[union-attr]
    size = config.image_size or side
    spec = PreprocessSpec(height=size, width=size, channels=channels)
    digest = fingerprint(chain(array_digests(train), array_digests(valid)))
    return Dataset(config.data, LABELS[config.data], spec, train, valid, None, digest)


def _folder_dataset(root: Path, config: DataConfig) -> Dataset:
    images = load_folder(root, config)
    sets = [part for part in (images.train, images.valid, images.test) if part is not None]
    entries = (
        (name, int(label), images.headers[name].digest)
        for part in sets
        for name, label in zip(part.names, part.labels, strict=True)
    )
    return Dataset(
        name=root.resolve().name or "data",
        labels=images.labels,
        spec=_folder_spec(images, config.image_size),
        train=images.train,
        valid=images.valid,
        test=images.test,
        fingerprint=fingerprint(entries),
        warnings=images.warnings,
        unreadable=images.unreadable,
    )


def _folder_spec(images: FolderImages, image_size: int | None) -> PreprocessSpec:
    """Images that are small throughout keep their size; others are photographs. Grey only where all are."""
    headers = images.headers.values()
    largest = max(max(header.size) for header in headers)
    size = image_size or (max(largest, 8) if largest <= IN_MEMORY_SIDE else PHOTO_SIZE)
    square = all(header.size[0] == header.size[1] for header in headers)
    return _spec(size, 1 if all(header.grey for header in headers) else 3, square=square)


def _spec(size: int, channels: int, *, square: bool) -> PreprocessSpec:
    if size <= IN_MEMORY_SIDE and square:
        return PreprocessSpec(height=size, width=size, channels=channels)  # type: ignore[arg-type]
    resize_size = size if size <= IN_MEMORY_SIDE else round(size * CROP_MARGIN)
    return PreprocessSpec(
        height=size,
        width=size,
        channels=channels,  # type: ignore[arg-type]
        resize="shorter_side_crop",
        resize_size=resize_size,
    )
