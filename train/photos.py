"""The pixels of photographs as training takes them: from the cache, or decoded each time, which gives the same.

A training photograph is kept upright, in 8 bits and in its own shape, its shorter side scaled down to `MARGIN`
times the side of the network's input; random crops are cut out of that. So a crop of less than 44 % of the area is
enlarged, by up to 1.13 at the least area of 35 %, where the file may have held finer pixels. A validation
photograph is kept as `preprocess` gives it, to the bit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shipnet.runtime.errors import ImageError
from shipnet.runtime.machine import available_cores
from shipnet.runtime.preprocess import ImageSource, PreprocessSpec, decoder_version, load_image, preprocess

from .cache import CACHE_VERSION, CacheWriter, PixelCache, open_cache
from .config import CacheConfig
from .events import OnEvent, Reading
from .images import Dataset, ImageSet

logger = logging.getLogger(__name__)

MARGIN: Final = 1.5
_AHEAD: Final = 64  # images that are decoded before they are asked for
_REPORT_EVERY: Final = 50  # images
Pixels = NDArray[np.uint8]
Found = tuple[str, Pixels | ImageError]  # an image's name, and what decoding it gave
Develop = Callable[[ImageSource, PreprocessSpec], Pixels]


class Photos:
    """Training and validation pixels of a data set, by index."""

    def __init__(self, dataset: Dataset, cache: PixelCache | None = None) -> None:
        """Takes a cache of this very data set; without one, images are decoded whenever they are asked for."""
        self._train, self._valid, self._spec, self._cache = dataset.train, dataset.valid, dataset.spec, cache

    def train(self, index: int) -> Pixels:
        """A training image to cut crops out of: uint8 (h, w, C), in its own shape.

        Raises:
            ImageError: no image, naming it.
        """
        return shrink(self._train[index], self._spec) if self._cache is None else self._cache[index]

    def valid(self, index: int) -> Pixels:
        """A validation image as the network sees it: uint8 (H, W, C).

        Raises:
            ImageError: no image, naming it.
        """
        if self._cache is None:
            return preprocess(self._valid[index], self._spec)
        return self._cache[len(self._train) + index]


def shrink(source: ImageSource, spec: PreprocessSpec) -> Pixels:
    """A photograph as training keeps it, uint8 (h, w, C); smaller ones stay as they are.

    Raises:
        ImageError: no image, naming it.
    """
    image = load_image(source, spec)
    side = round(MARGIN * max(spec.height, spec.width))
    short = min(image.size)
    if short > side:
        size = (max(side, image.width * side // short), max(side, image.height * side // short))
        image = image.resize(size, Image.Resampling[spec.interpolation.upper()])
    return np.asarray(image, np.uint8).reshape(image.height, image.width, spec.channels)


def read_images(
    dataset: Dataset, cache: CacheConfig, *, strict: bool, notify: OnEvent
) -> tuple[Dataset, Photos | None]:
    """Decodes every file once, unless the cache holds the pixels, and leaves out what cannot be decoded.

    Args:
        dataset: as `load_data` gives it.
        cache: where pixels of photographs are kept.
        strict: whether a damaged image stops instead of being left out.
        notify: called as images are read.

    Returns:
        The data set of the images that can be read, small ones as arrays; and its photographs, if it has any.

    Raises:
        ImageError: a damaged image, where `strict`.
        DataError: a class has no image left.
    """
    if isinstance(dataset.train.sources, np.ndarray):
        return dataset, None if dataset.in_memory else Photos(dataset)
    if dataset.in_memory:
        return _into_memory(dataset, _read_all(dataset, preprocess, strict=strict, notify=notify)), None
    path, key = _place(dataset, cache)
    kept = open_cache(path, key) if path is not None else None
    if kept is None:
        read = _read_all(dataset, shrink, strict=strict, notify=notify)
        limit_bytes = round(cache.limit_gb * 1e9)
        kept, unreadable = _fill(dataset, path, key=key, limit_bytes=limit_bytes, read=read)
    else:
        unreadable = kept.header.unreadable
        if strict and unreadable:
            raise ImageError(next(iter(unreadable.values())))
    dataset = _leave_out(dataset, unreadable)
    return dataset, Photos(dataset, kept)


def cache_folder(config: CacheConfig) -> Path | None:
    """Where caches lie; None where they are turned off.

    Source: XDG Base Directory Specification 0.8, XDG_CACHE_HOME.
    """
    if config.folder == "none":
        return None
    if config.folder is not None:
        return Path(config.folder).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "shipnet" / "photographs"


def _place(dataset: Dataset, config: CacheConfig) -> tuple[Path | None, str]:
    """Where a data set's cache stands, and the hash of all that decides its pixels."""
    parts = (
        CACHE_VERSION,
        MARGIN,
        dataset.fingerprint,
        dataset.train.names,
        dataset.valid.names,
        dataset.test.names if dataset.test is not None else (),
        dataset.spec,
        decoder_version(),
    )
    key = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
    folder = cache_folder(config)
    return (None if folder is None else folder / key[:32]), key


def _fill(
    dataset: Dataset, path: Path | None, *, key: str, limit_bytes: int, read: Iterator[Found]
) -> tuple[PixelCache | None, dict[str, str]]:
    """Reads all images, into a cache where one is wanted and can be had; and why some cannot be read, by name."""
    unreadable: dict[str, str] = {}
    images, channels = len(dataset.train) + len(dataset.valid), dataset.spec.channels
    tests = set(dataset.test.names) if dataset.test is not None else set()
    with ExitStack() as stack:
        writer = None
        if path is not None:
            writer = CacheWriter(path, key=key, channels=channels, images=images, limit_bytes=limit_bytes)
            stack.callback(writer.close)
        for name, found in read:
            if isinstance(found, ImageError):
                unreadable[name] = str(found)
            elif writer is not None and name not in tests:  # those are looked at once
                writer.add(found)
        return writer.finish(dataset.name, unreadable) if writer else None, unreadable


def _into_memory(dataset: Dataset, read: Iterator[Found]) -> Dataset:
    """The same data set with the pixels of its images in place of their files."""
    unreadable: dict[str, str] = {}
    arrays: list[Pixels] = []
    for name, found in read:
        if isinstance(found, ImageError):
            unreadable[name] = str(found)
        else:
            arrays.append(found)
    dataset = _leave_out(dataset, unreadable)
    parts: dict[str, ImageSet] = {}
    for field in ("train", "valid", "test"):
        part: ImageSet | None = getattr(dataset, field)
        if part is not None:
            sources = np.stack(arrays[: len(part)]) if len(part) else np.empty((0,), np.uint8)
            parts[field] = ImageSet(part.names, part.labels, sources)
            del arrays[: len(part)]
    return dataclasses.replace(dataset, train=parts["train"], valid=parts["valid"], test=parts.get("test"))


def _leave_out(dataset: Dataset, unreadable: dict[str, str]) -> Dataset:
    for why in unreadable.values():
        logger.warning("left out: %s", why)
    return dataset.without(unreadable)


def _read_all(dataset: Dataset, develop: Develop, *, strict: bool, notify: OnEvent) -> Iterator[Found]:
    """Name and pixels, or the error: of all training images by `develop`, then of validation and test images."""
    rest = [part for part in (dataset.valid, dataset.test) if part is not None]
    total = len(dataset.train) + sum(map(len, rest))
    jobs = itertools.chain(_jobs(dataset.train, develop), *(_jobs(part, preprocess) for part in rest))
    for done, (name, found) in enumerate(_in_order(jobs, dataset.spec), start=1):
        if strict and isinstance(found, ImageError):
            raise found
        yield name, found
        if done % _REPORT_EVERY == 0 or done == total:
            notify(Reading(done, total))


def _jobs(images: ImageSet, develop: Develop) -> Iterator[tuple[str, ImageSource, Develop]]:
    return ((images.names[index], images[index], develop) for index in range(len(images)))


def _in_order(jobs: Iterator[tuple[str, ImageSource, Develop]], spec: PreprocessSpec) -> Iterator[Found]:
    """Decodes in threads, which scale as Pillow releases the GIL; no more than `_AHEAD` results wait."""

    def work(name: str, source: ImageSource, develop: Develop) -> Found:
        try:
            return name, develop(source, spec)
        except ImageError as error:
            return name, error

    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(available_cores().usable) as pool:
        try:
            for job in jobs:
                waiting.append(pool.submit(work, *job))
                if len(waiting) >= _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
