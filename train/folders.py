"""A folder of images: which files, which class, which side of the division."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from shipnet.runtime.decode import FORMATS
from shipnet.runtime.errors import DataError, ImageError

from .config import DataConfig
from .images import READING_THREADS, ImageSet
from .splits import split_train_valid

TRAIN_NAMES = ("train", "training")
VALID_NAMES = ("val", "valid", "validation")
TEST_NAMES = ("test", "testing")
_SHOWN = 20  # classes in a message


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image file of a class.

    Attributes:
        name: relative to the data's folder, `/`-separated.
    """

    path: Path
    name: str
    class_name: str


@dataclass(frozen=True, slots=True)
class Header:
    """What reading a file, without decoding it, tells.

    Attributes:
        digest: sha256 of the file's bytes.
        size: (width, height) in pixels, before any rotation.
        grey: whether it has one channel.
    """

    digest: bytes
    size: tuple[int, int]
    grey: bool


@dataclass(frozen=True, slots=True)
class FolderImages:
    """The images of a folder, divided.

    Attributes:
        headers: of each image, by name.
        unreadable: the names of files that are no images, which were left out.
    """

    labels: tuple[str, ...]
    train: ImageSet
    valid: ImageSet
    test: ImageSet | None
    headers: dict[str, Header]
    warnings: tuple[str, ...]
    unreadable: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """The images of a folder with a sub-folder per class.

    Attributes:
        images: whose labels are indices into the labels that were given.
        headers: of each image, by name.
        unreadable: the names of files that are no images, which were left out.
    """

    images: ImageSet
    headers: dict[str, Header]
    warnings: tuple[str, ...]
    unreadable: tuple[str, ...]


def load_labelled(root: Path, labels: tuple[str, ...], *, owner: str, strict: bool) -> LabelledImages:
    """Lists a folder's images by class, and reads every file once, for its hash and header.

    Args:
        root: with a sub-folder for each class, or for some.
        labels: the classes, in an order of their own.
        owner: whose labels they are, for messages.
        strict: whether a damaged image stops; otherwise it is left out, with a warning.

    Raises:
        DataError: no images, or a folder that is none of the labels.
        ImageError: a damaged image, where `strict`.
    """
    warnings: list[str] = []
    files = _scan(root, root, warnings)
    _align(files, labels, folder=root, owner=owner, warnings=warnings)
    headers, damaged = _read_headers(files, strict)
    if not headers:
        raise DataError(f"{root}: no image that can be read: {next(iter(damaged.values()))}")
    warnings += [f"left out: {why}" for why in damaged.values()]
    images = _image_set([file for file in files if file.name in headers], labels)
    return LabelledImages(images, headers, tuple(warnings), tuple(damaged))


def load_folder(root: Path, config: DataConfig) -> FolderImages:
    """Lists a folder's images, reads every file once (for its hash and header), and divides them.

    Two layouts: `train/CLASS/...` with a `val`, `valid`, `validation` or `test` folder beside it, or
    `CLASS/...` alone. Hidden files and folders are left out; classes are in plain sort order.

    Raises:
        DataError: no images, fewer than two classes, a class that stands in validation alone, ....
        ImageError: a file whose header is not an image's, naming it, where `config.strict`; otherwise it
            is left out, with a warning.
    """
    warnings: list[str] = []
    parts = _parts(root, warnings)
    scanned = {part: _scan(folder, root, warnings) for part, folder in parts.items()}
    labels = tuple(sorted({file.class_name for file in scanned["train"]}))
    for label in labels:
        if not label.isprintable():
            raise DataError(
                f"{parts['train']}: class {label!r} has a name that cannot be printed: rename the folder"
            )
    if len(labels) < 2:
        found = f"one class only ({labels[0]!r})" if labels else "no images"
        raise DataError(
            f"{parts['train']}: {found}; expected a sub-folder per class, two or more, with images in each"
        )
    for part in ("valid", "test"):
        if part in scanned:
            _align(scanned[part], labels, folder=parts[part], owner="training", warnings=warnings)
    headers, damaged = _read_headers([file for files in scanned.values() for file in files], config.strict)
    if damaged:
        scanned = {
            part: [file for file in files if file.name not in damaged] for part, files in scanned.items()
        }
        _refuse_emptied(scanned["train"], labels, folder=parts["train"], damaged=damaged)
        warnings += [f"left out: {why}" for why in damaged.values()]
    sets = {part: _image_set(files, labels) for part, files in scanned.items()}
    if "valid" not in sets:
        both = sets["train"]
        train, valid = split_train_valid(both.labels, labels, fraction=config.val_fraction, seed=config.seed)
        sets.update(train=both.subset(train), valid=both.subset(valid))
    warnings += _leaks(sets["train"], sets["valid"], headers)
    return FolderImages(
        labels, sets["train"], sets["valid"], sets.get("test"), headers, tuple(warnings), tuple(damaged)
    )


def _parts(root: Path, warnings: list[str]) -> dict[str, Path]:
    """Which sub-folder is training, validation and test; `train` alone where the classes stand at the root."""
    folders = {folder.name: folder for folder in _subfolders(root)}
    train = _one_of(folders, TRAIN_NAMES, root)
    if train is None or not _subfolders(train):
        return {"train": root}
    parts = {"train": train}
    valid, test = _one_of(folders, VALID_NAMES, root), _one_of(folders, TEST_NAMES, root)
    if valid is not None and test is not None:
        parts["test"] = test
    if valid is not None or test is not None:
        parts["valid"] = valid or test  # type: ignore[assignment]
    ignored = sorted(set(folders) - {folder.name for folder in parts.values()})
    if ignored:
        warnings.append(f"left out: folders beside {train.name}/ of no known meaning: {', '.join(ignored)}")
    return parts


def _one_of(folders: dict[str, Path], names: tuple[str, ...], root: Path) -> Path | None:
    found = [folder for name, folder in sorted(folders.items()) if name.lower() in names]
    if len(found) > 1:
        both = " and ".join(folder.name for folder in found)
        raise DataError(f"{root}: both {both} stand there, which mean the same: keep one")
    return found[0] if found else None


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _scan(folder: Path, root: Path, warnings: list[str]) -> list[ImageFile]:
    """The image files of every class below `folder`, sorted by name."""
    known = _image_suffixes()
    files, other = [], Counter[str]()
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            other[
                "image beside the classes" if path.suffix.lower() in known else "file that is no image"
            ] += 1
    for class_folder in _subfolders(folder):
        here = list(_walk(class_folder))
        images = sorted(path for path in here if path.suffix.lower() in known and path.is_file())
        other["file that is no image"] += len(here) - len(images)
        if not images:
            raise DataError(f"{class_folder}: a class without images; add some or remove the folder")
        files += [ImageFile(path, path.relative_to(root).as_posix(), class_folder.name) for path in images]
    warnings += [f"{folder.name}: left out {count} {what}(s)" for what, count in other.items() if count]
    return files


def _walk(folder: Path) -> Iterator[Path]:
    for here, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from (Path(here) / name for name in files if not name.startswith("."))


def _image_suffixes() -> frozenset[str]:
    """Of the formats that `preprocess` reads."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def _align(
    files: list[ImageFile], labels: tuple[str, ...], *, folder: Path, owner: str, warnings: list[str]
) -> None:
    """Holds a division's classes against the classes of `owner`, by name."""
    have = {file.class_name for file in files}
    unknown = sorted(have - set(labels))
    if unknown:
        raise DataError(
            f"{folder}: class {unknown[0]!r} is unknown to {owner}, which has: {_some(labels)}; "
            "rename or remove it"
        )
    if not have:
        raise DataError(f"{folder}: no images; expected a sub-folder per class")
    missing = [label for label in labels if label not in have]
    if missing:
        warnings.append(f"{folder.name}: no images of {_some(missing)}, which are not measured")


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _read_headers(files: list[ImageFile], strict: bool) -> tuple[dict[str, Header], dict[str, str]]:
    """Each image's header, and of files that have none what is wrong, both by name."""
    headers, damaged = {}, {}
    with ThreadPoolExecutor(READING_THREADS) as pool:
        for file, found in zip(files, pool.map(_read_header, files), strict=True):
            if isinstance(found, Header):
                headers[file.name] = found
            elif strict:
                raise found
            else:
                damaged[file.name] = str(found)
    return headers, damaged


def _refuse_emptied(
    files: list[ImageFile], labels: tuple[str, ...], *, folder: Path, damaged: dict[str, str]
) -> None:
    empty = sorted(set(labels) - {file.class_name for file in files})
    if empty:
        raise DataError(
            f"{folder}: class {empty[0]!r} has no image that can be read: {next(iter(damaged.values()))}"
        )


def _read_header(file: ImageFile) -> Header | ImageError:
    try:
        data = file.path.read_bytes()
        if not data:
            return ImageError(f"{file.path}: is empty (0 bytes); replace or remove the file")
        with Image.open(io.BytesIO(data)) as image:
            grey = image.mode in ("1", "L", "LA", "I") or image.mode.startswith("I;16")
            return Header(hashlib.sha256(data).digest(), image.size, grey)
    except UnidentifiedImageError:
        return ImageError(f"{file.path}: is no image in a known format; replace or remove the file")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return ImageError(f"{file.path}: cannot be read as an image: {error}; replace or remove the file")


def _image_set(files: list[ImageFile], labels: tuple[str, ...]) -> ImageSet:
    index = {label: number for number, label in enumerate(labels)}
    return ImageSet(
        names=tuple(file.name for file in files),
        labels=np.array([index[file.class_name] for file in files], np.int64),
        sources=tuple(file.path for file in files),
    )


def _leaks(train: ImageSet, valid: ImageSet, headers: dict[str, Header]) -> list[str]:
    """Identical files on both sides make the validation accuracy too good."""
    known = {headers[name].digest: name for name in train.names}
    twice = [(name, known[headers[name].digest]) for name in valid.names if headers[name].digest in known]
    if not twice:
        return []
    return [
        f"{len(twice)} validation image(s) also train, such as {twice[0][0]} = {twice[0][1]}: accuracy looks too good"
    ]
