"""Labelled images as values: an `ImageSet`, the `Dataset` of them, and their pixels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.errors import DataError
from shipnet.runtime.preprocess import PreprocessSpec, preprocess

# Up to this side, images are kept in memory as pixels and augmented in whole batches.
IN_MEMORY_SIDE = 63
# Pillow releases the GIL while it decodes, so threads scale; files come from one disk.
READING_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images with their labels, in a stable order.

    Attributes:
        names: of each image, `/`-separated, the same on every machine.
        labels: int64 (N,), an index into the data set's labels.
        sources: uint8 (N, H, W, C), or the files.
    """

    names: tuple[str, ...]
    labels: NDArray[np.int64]
    sources: NDArray[np.uint8] | tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> NDArray[np.uint8] | Path:
        """What `preprocess` takes: a path, or uint8 (H, W, C)."""
        return self.sources[index]

    def subset(self, indices: NDArray[np.int64]) -> ImageSet:
        """The images at `indices`, in that order."""
        if isinstance(self.sources, np.ndarray):
            sources: NDArray[np.uint8] | tuple[Path, ...] = self.sources[indices]
        else:
            sources = tuple(self.sources[index] for index in indices)
        return ImageSet(tuple(self.names[index] for index in indices), self.labels[indices], sources)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Images divided into training, validation and, where the data has one, a held-out test set.

    Attributes:
        name: of the built-in data set, or the folder's own name.
        labels: the classes' names; an image's label is an index into them.
        spec: how an image becomes the network's input.
        train, valid: what the weights are fitted to, and what measures them.
        test: held out: training never looks at it. None where the data has none.
        fingerprint: sha256 over every image's name, label and bytes.
        warnings: what was left out or looks wrong, one sentence each.
        unreadable: the names of damaged images, which were left out.
    """

    name: str
    labels: tuple[str, ...]
    spec: PreprocessSpec
    train: ImageSet
    valid: ImageSet
    test: ImageSet | None
    fingerprint: str
    warnings: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def in_memory(self) -> bool:
        """Whether training keeps the pixels in memory; otherwise files are decoded as they are needed."""
        return max(self.spec.height, self.spec.width) <= IN_MEMORY_SIDE

    def without(self, names: Collection[str]) -> Dataset:
        """The same data set, of the same fingerprint, without some images, which are noted as unreadable.

        Raises:
            DataError: a class has no training image left, or nothing is left to validate.
        """
        if not names:
            return self
        gone = set(names)
        train, valid, test = (
            part and part.subset(np.flatnonzero([name not in gone for name in part.names]).astype(np.int64))
            for part in (self.train, self.valid, self.test)
        )
        assert train is not None and valid is not None
        empty = set(range(len(self.labels))) - set(train.labels.tolist())
        if empty or not len(valid):
            what = f"class {self.labels[min(empty)]!r} has no training" if empty else "there is no validation"
            raise DataError(
                f"{self.name}: {what} image that can be read: {len(gone)} are damaged, such as {min(gone)}"
            )
        unreadable = tuple(sorted({*self.unreadable, *gone}))
        return dataclasses.replace(self, train=train, valid=valid, test=test, unreadable=unreadable)


def pixels(
    images: ImageSet, spec: PreprocessSpec, indices: NDArray[np.int64] | None = None
) -> NDArray[np.uint8]:
    """The network's inputs, by way of `shipnet.runtime.preprocess`.

    Args:
        images: N images.
        spec: how they become pixels.
        indices: which of them, in what order; None means all.

    Returns:
        uint8 (len(indices), H, W, C).

    Raises:
        ImageError: a file that is no image, naming it.
    """
    chosen = np.arange(len(images)) if indices is None else np.asarray(indices)
    if is_identity(images, spec):
        return np.ascontiguousarray(images.sources[chosen])
    out = np.empty((len(chosen), spec.height, spec.width, spec.channels), np.uint8)

    def fill(place: int) -> None:
        out[place] = preprocess(images[int(chosen[place])], spec)

    with ThreadPoolExecutor(READING_THREADS) as pool:
        for _ in pool.map(fill, range(len(chosen))):
            pass
    return out


def is_identity(images: ImageSet, spec: PreprocessSpec) -> bool:
    """Whether `preprocess` would give arrays back as they are: they have the stated shape already."""
    shape = (spec.height, spec.width, spec.channels)
    same_side = spec.resize == "fit" or spec.resize_size == min(spec.height, spec.width)
    return isinstance(images.sources, np.ndarray) and images.sources.shape[1:] == shape and same_side


def fingerprint(entries: Iterable[tuple[str, int, bytes]]) -> str:
    """Sha256, in hex, over (name, label, sha256 of the image's bytes), sorted by name."""
    total = hashlib.sha256()
    for name, label, digest in sorted(entries):
        encoded = name.encode("utf-8", "surrogateescape")
        total.update(len(encoded).to_bytes(8, "little") + encoded + label.to_bytes(8, "little") + digest)
    return total.hexdigest()
