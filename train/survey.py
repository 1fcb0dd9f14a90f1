"""What a data set holds: counts, sizes, modes, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from PIL import Image

from shipnet.runtime.decode import load_image
from shipnet.runtime.errors import ImageError
from shipnet.runtime.preprocess import PreprocessSpec

from .images import READING_THREADS, Dataset, ImageSet

SPLITS = ("train", "valid", "test")


class ClassCount(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many images of a class can be read, in each part of the data."""

    label: str
    train: int
    valid: int
    test: int


class Format(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many images have one size, in pixels as stored, and one mode, in Pillow's words."""

    width: int
    height: int
    mode: str
    images: int


class Damaged(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file that cannot be read, and why. Training leaves it out, or stops with `--strict-data`."""

    name: str
    error: str


class Copies(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Images of the very same content: the bytes of files, the pixels of built-in data.

    Attributes:
        names: two or more.
        labels: the classes they stand in; more than one: at least one label is wrong.
        splits: the parts they stand in; more than one: what measures was also trained on.
    """

    names: tuple[str, ...]
    labels: tuple[str, ...]
    splits: tuple[str, ...]


class Survey(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `survey` found.

    Attributes:
        classes: in the order of the labels.
        formats: most frequent first.
        damaged: sorted by name.
        copies: sorted by their first name.
        warnings: what loading the data said, damaged files excepted.
    """

    data: str
    classes: tuple[ClassCount, ...]
    formats: tuple[Format, ...]
    damaged: tuple[Damaged, ...]
    copies: tuple[Copies, ...]
    warnings: tuple[str, ...]

    @property
    def leaks(self) -> list[Copies]:
        """Copies in more than one part of the data."""
        return [group for group in self.copies if len(group.splits) > 1]

    @property
    def conflicts(self) -> list[Copies]:
        """Copies in more than one class."""
        return [group for group in self.copies if len(group.labels) > 1]


@dataclass(frozen=True, slots=True)
class _Seen:
    """One image, decoded once. `error` is None where that succeeded."""

    name: str
    split: str
    label: str
    digest: bytes
    size: tuple[int, int]
    mode: str
    error: str | None


def survey(
    dataset: Dataset, *, root: Path | None = None, on_image: Callable[[int, int], None] | None = None
) -> tuple[Survey, Dataset]:
    """Decodes every image once and looks at what is there.

    Args:
        dataset: as `load_data` gives it.
        root: the data's folder, if it is one, where the files lie that loading left out.
        on_image: called after each image with how many are done and how many there are.

    Returns:
        What was found; and the data set without what cannot be read.

    Raises:
        DataError: a class has no training image that can be read.
    """
    total = sum(len(part) for part in (dataset.train, dataset.valid, dataset.test) if part is not None)
    seen = []
    for image in _look(dataset):
        seen.append(image)
        if on_image is not None:
            on_image(len(seen), total)
    bad: dict[str, str] = {image.name: image.error for image in seen if image.error is not None}
    good = [image for image in seen if image.error is None]
    left_out = {str((root or Path()) / name): name for name in dataset.unreadable}
    bad |= {name: _measure(Path(path), dataset.spec)[3] or "" for path, name in left_out.items()}
    counts = Counter((image.label, image.split) for image in good)
    formats = Counter((*image.size, image.mode) for image in good)
    found = Survey(
        data=dataset.name,
        classes=tuple(
            ClassCount(label=label, **{split: counts[label, split] for split in SPLITS})
            for label in dataset.labels
        ),
        formats=tuple(
            Format(width=width, height=height, mode=mode, images=images)
            for (width, height, mode), images in sorted(formats.items(), key=lambda item: (-item[1], item[0]))
        ),
        damaged=tuple(Damaged(name=name, error=error) for name, error in sorted(bad.items())),
        copies=_copies(seen),
        warnings=tuple(told for told in dataset.warnings if not any(path in told for path in left_out)),
    )
    return found, dataset.without([name for name in bad if name not in dataset.unreadable])


def _look(dataset: Dataset) -> Iterator[_Seen]:
    with ThreadPoolExecutor(READING_THREADS) as pool:
        for split in SPLITS:
            part: ImageSet | None = getattr(dataset, split)
            if part is None:
                continue
            labels = [dataset.labels[label] for label in part.labels]
            results = pool.map(_measure, map(part.__getitem__, range(len(part))), [dataset.spec] * len(part))
            for name, label, (digest, size, mode, error) in zip(part.names, labels, results, strict=True):
                yield _Seen(name, split, label, digest, size, mode, error)


def _measure(
    source: NDArray[np.uint8] | Path, spec: PreprocessSpec
) -> tuple[bytes, tuple[int, int], str, str | None]:
    """An image's digest, size, mode, and why it cannot be decoded."""
    if isinstance(source, np.ndarray):
        height, width, channels = source.shape
        return (
            hashlib.sha256(source.tobytes()).digest(),
            (width, height),
            "L" if channels == 1 else "RGB",
            None,
        )
    try:
        digest = hashlib.sha256(source.read_bytes()).digest()
        load_image(source, spec)
        with Image.open(source) as image:
            return digest, image.size, image.mode, None
    except ImageError as error:
        return digest, (0, 0), "", str(error).removeprefix(f"{source}: ")
    except OSError as error:
        return b"", (0, 0), "", f"cannot be read: {error.strerror or error}"


def _copies(seen: list[_Seen]) -> tuple[Copies, ...]:
    groups: dict[bytes, list[_Seen]] = defaultdict(list)
    for image in seen:
        if image.digest:
            groups[image.digest].append(image)
    found = [
        Copies(
            names=tuple(sorted(image.name for image in group)),
            labels=tuple(sorted({image.label for image in group})),
            splits=tuple(split for split in SPLITS if any(image.split == split for image in group)),
        )
        for group in groups.values()
        if len(group) > 1
    ]
    return tuple(sorted(found, key=lambda group: group.names))
