"""The data sets that have a name: found below a root, or downloaded into a cache."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.errors import DataError, require
from shipnet.runtime.staging import staged_folder

from .config import DataConfig
from .idx import find_idx, read_idx
from .images import ImageSet
from .splits import split_train_valid

logger = logging.getLogger(__name__)

LABELS = {
    "digits": tuple("0123456789"),
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
# torchvision's class, and so the folder it downloads into; what lies by hand may be called by our name instead.
_TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
_IDX_STEMS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
_CIFAR_FOLDER = "cifar-10-batches-py"
_Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]


def load_builtin(config: DataConfig) -> tuple[ImageSet, ImageSet]:
    """Training and validation images of a built-in data set, as arrays.

    `digits` is divided by the configuration's seed; the others come divided, and what their
    authors call the test images validates.

    Raises:
        DataError: files that are damaged or missing and cannot be downloaded.
    """
    if config.data == "digits":
        images, labels = _digits()
        both = ImageSet(_names("digits", len(images)), labels, images)
        train, valid = split_train_valid(
            labels, LABELS["digits"], fraction=config.val_fraction, seed=config.seed
        )
        return both.subset(train), both.subset(valid)
    read = _cifar10 if config.data == "cifar10" else _idx_data
    parts = read(config)
    for _, labels in parts:
        if labels.size == 0 or labels.max() >= len(LABELS[config.data]):
            raise DataError(f"{config.data}: no images, or a label above {len(LABELS[config.data]) - 1}")
    train_set, valid_set = (
        ImageSet(_names(part, len(images)), labels, images)
        for part, (images, labels) in zip(("train", "test"), parts, strict=True)
    )
    return train_set, valid_set


def array_digests(images: ImageSet) -> Iterator[tuple[str, int, bytes]]:
    """(name, label, sha256 of the pixels) of images in memory."""
    for name, label, source in zip(images.names, images.labels, np.asarray(images.sources), strict=True):
        yield name, int(label), hashlib.sha256(source.tobytes()).digest()


def _names(part: str, count: int) -> tuple[str, ...]:
    return tuple(f"{part}/{number:05d}" for number in range(count))


def _digits() -> _Arrays:
    """1,797 handwritten digits of 8x8 pixels, which scikit-learn carries; 0..16 scaled to 0..255.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI, CC BY 4.0.
    """
    bunch = require("sklearn.datasets").load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return images[..., None], bunch.target.astype(np.int64)


def _idx_data(config: DataConfig) -> list[_Arrays]:
    folder = _find_idx_folder(config)
    if folder is None:
        dataset_class = getattr(require("torchvision.datasets"), _TORCHVISION[config.data])
        with _download(config.data) as staged:
            dataset_class(staged, download=True)
        folder = _cache() / config.data / _TORCHVISION[config.data] / "raw"
    paths = [find_idx(folder, stem) for stem in _IDX_STEMS]
    missing = [stem for stem, path in zip(_IDX_STEMS, paths, strict=True) if path is None]
    if missing:
        raise DataError(f"{folder}: of {config.data}'s four IDX files, missing: {', '.join(missing)}")
    parts = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        assert images_path is not None and labels_path is not None  # `missing` is empty
        images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
        if len(images) != len(labels):
            raise DataError(
                f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}"
            )
        parts.append((images[..., None], labels.astype(np.int64)))
    return parts


def _find_idx_folder(config: DataConfig) -> Path | None:
    """Where under the root some of the four files lie. A root that holds none falls through to the download."""
    layout = f"{_TORCHVISION[config.data]}/raw"
    own = (config.data, layout, f"{config.data}/{layout}", ".")
    for root in _roots(config):
        for name in own:
            if any(find_idx(root / name, stem) for stem in _IDX_STEMS):
                return root / name
    return None


def _cifar10(config: DataConfig) -> list[_Arrays]:
    """CIFAR-10 by way of torchvision, which checks the files' MD5 before it opens them.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    dataset_class = require("torchvision.datasets").CIFAR10
    homes = [root / name for root in _roots(config) for name in ("cifar10", "CIFAR10", ".")]
    home = next((home for home in homes if (home / _CIFAR_FOLDER).is_dir()), None)
    if home is None:
        with _download(config.data) as staged:
            dataset_class(staged, download=True)
        home = _cache() / config.data
    try:
        halves = [dataset_class(home, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise DataError(f"{home / _CIFAR_FOLDER}: {error}; fetch the files anew") from error
    return [(half.data, np.asarray(half.targets, np.int64)) for half in halves]


def _roots(config: DataConfig) -> Sequence[Path]:
    given = config.data_root or os.environ.get("SHIPNET_DATA")
    if config.data_root and not Path(config.data_root).is_dir():
        raise DataError(f"data_root {config.data_root!r}: no such folder")
    return ([Path(given)] if given else []) + [_cache()]


def _cache() -> Path:
    """Source: XDG Base Directory Specification 0.8, XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shipnet"


@contextmanager
def _download(name: str) -> Iterator[Path]:
    """A folder beside the cache's that becomes `cache/NAME` when the download is whole.

    Raises:
        DataError: it cannot be fetched; says where the files go by hand.
    """
    target = _cache() / name
    logger.info("%s: downloading into %s", name, target)
    with staged_folder(target) as folder:
        try:
            yield folder
        except (
            OSError,
            RuntimeError,
        ) as error:  # urllib's errors are OSErrors; torchvision raises RuntimeError
            what = (
                _CIFAR_FOLDER if name == "cifar10" else "the four IDX files (train-images-idx3-ubyte.gz, ...)"
            )
            raise DataError(
                f"{name} cannot be downloaded: {' '.join(str(error).split())}; put {what} by hand into "
                f"ROOT/{name}/ and give --data-root ROOT, or set SHIPNET_DATA=ROOT"
            ) from error
