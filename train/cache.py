"""Photographs decoded and scaled once, as bytes on disk that every later epoch and run maps into memory.

A cache is a folder of two files, written aside and renamed: `pixels.bin`, the images one behind the other, and
`cache.json`, which says where each lies and holds a checksum of every block and of itself. It is opened after all of
them agree, so one that was cut short or changed is seen and made again. Its name is a hash of everything that decides
its pixels: another image, another size or another decoder is another cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from shipnet.runtime.encoding import Count, decode
from shipnet.runtime.errors import BundleError
from shipnet.runtime.manifest import Sha256

from .images import READING_THREADS

logger = logging.getLogger(__name__)

HEADER: Final = "cache.json"
PIXELS: Final = "pixels.bin"
CACHE_VERSION: Final = 1
BLOCK: Final = 1 << 24
# How much of the space that is free a cache may take, whatever its limit.
SHARE_OF_FREE: Final = 0.5
_FORECAST_AFTER: Final = 64  # images, from whose mean size the whole is estimated
_ABANDONED_S: Final = 86_400.0


class CacheHeader(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`cache.json`.

    Attributes:
        key: sha256 of what decides the pixels.
        data: the data set's name, for people who look.
        channels: of every image.
        sizes: (height, width) of each image, in the order in which they lie.
        unreadable: by name, why an image is not among them.
        blocks: the CRC-32 of each `BLOCK` bytes.
        seal: sha256 of this header without a seal.
    """

    cache_version: Annotated[int, Meta(ge=CACHE_VERSION, le=CACHE_VERSION)] = CACHE_VERSION
    key: Sha256
    data: str
    channels: int
    sizes: tuple[tuple[int, int], ...]
    unreadable: dict[str, str]
    size_bytes: Count
    blocks: tuple[int, ...]
    seal: str = ""


class DamagedCacheError(Exception):
    """A cache that is not what its header says. It is made again, so no user sees this."""


class PixelCache:
    """A cache that is whole: `cache[index]` is uint8 (H, W, C), read-only, in its own size."""

    def __init__(self, path: Path, header: CacheHeader) -> None:
        """Maps the file without looking at it again; `open_cache` checks it first."""
        self.path, self.header = path, header
        self._pixels = np.memmap(path / PIXELS, np.uint8, "r") if header.size_bytes else np.empty(0, np.uint8)
        areas = np.array([height * width for height, width in header.sizes], np.int64)
        self._ends = np.cumsum(areas) * header.channels

    def __len__(self) -> int:
        return len(self.header.sizes)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        height, width = self.header.sizes[index]
        end = int(self._ends[index])
        start = end - height * width * self.header.channels
        return np.asarray(self._pixels[start:end]).reshape(height, width, self.header.channels)

    def __reduce__(self) -> tuple[type[PixelCache], tuple[Path, CacheHeader]]:
        """A worker process maps the file anew instead of being sent its bytes."""
        return PixelCache, (self.path, self.header)


def open_cache(path: Path, key: str) -> PixelCache | None:
    """The cache at `path`; None where there is none. One that is damaged is removed, with a warning."""
    if not path.is_dir():
        return None
    try:
        header = _read_header(path, key)
        _check_pixels(path / PIXELS, header)
    except (OSError, BundleError, DamagedCacheError) as error:
        logger.warning("%s: damaged, made again: %s", path, error)
        shutil.rmtree(path, ignore_errors=True)
        return None
    os.utime(path / HEADER)  # the oldest go first
    return PixelCache(path, header)


class CacheWriter:
    """Writes a cache image by image. What goes wrong turns it off with a warning: training can do without."""

    def __init__(self, path: Path, *, key: str, channels: int, images: int, limit_bytes: int) -> None:
        """Takes where the cache will stand, how many images will come, and how large it may grow."""
        self.path, self.key, self.channels, self.images = path, key, channels, images
        self.limit_bytes = limit_bytes
        self._sizes: list[tuple[int, int]] = []
        self._blocks: list[int] = []
        self._pending = bytearray()
        self._size = 0
        self._folder: Path | None = None
        self._file: BinaryIO | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            self.limit_bytes = min(limit_bytes, int(free * SHARE_OF_FREE) + _size_of(path.parent))
            self._folder = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=path.parent))
            self._file = (self._folder / PIXELS).open("wb")
        except OSError as error:
            self._give_up(f"cannot be written: {error.strerror or error}")

    def add(self, image: NDArray[np.uint8]) -> None:
        """Takes the next image, uint8 (H, W, C)."""
        if self._file is None:
            return
        self._sizes.append((image.shape[0], image.shape[1]))
        self._size += image.size
        if len(self._sizes) >= _FORECAST_AFTER or self._size > self.limit_bytes:
            forecast = self._size / len(self._sizes) * self.images
            if forecast > self.limit_bytes:
                self._give_up(
                    f"{forecast / 1e9:.2f} GB of pixels do not fit into {self.limit_bytes / 1e9:.2f} GB "
                    "(--cache-limit, and half of the free disk)"
                )
                return
        self._pending += image.tobytes()
        while len(self._pending) >= BLOCK:
            self._write_block()

    def finish(self, data: str, unreadable: dict[str, str]) -> PixelCache | None:
        """Puts the cache in its place and removes the oldest others above the limit; None where it was given up."""
        if self._pending:
            self._write_block()
        if self._file is None or self._folder is None:
            return None
        header = CacheHeader(
            key=self.key,
            data=data,
            channels=self.channels,
            sizes=tuple(self._sizes),
            unreadable=unreadable,
            size_bytes=self._size,
            blocks=tuple(self._blocks),
        )
        header = msgspec.structs.replace(header, seal=_seal(header))
        try:
            os.fsync(self._file.fileno())
            self._file.close()
            (self._folder / HEADER).write_bytes(msgspec.json.encode(header))
            _evict(self.path.parent, self.limit_bytes - self._size, keep=self.path)
            _put(self._folder, self.path)
        except OSError as error:
            self._give_up(f"cannot be written: {error.strerror or error}")
            return None
        return open_cache(self.path, self.key)

    def close(self) -> None:
        """Removes what was not finished."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _write_block(self) -> None:
        block = bytes(self._pending[:BLOCK])
        del self._pending[:BLOCK]
        if self._file is None:
            return
        self._blocks.append(zlib.crc32(block))
        try:
            self._file.write(block)
            self._file.flush()
        except OSError as error:  # such as a full disk
            self._give_up(f"cannot be written: {error.strerror or error}")

    def _give_up(self, why: str) -> None:
        logger.warning("%s: no cache, so every epoch decodes the photographs: %s", self.path.parent, why)
        self._pending.clear()
        self.close()


def _read_header(path: Path, key: str) -> CacheHeader:
    header = decode((path / HEADER).read_bytes(), CacheHeader, where=HEADER)
    if header.seal != _seal(header):
        raise DamagedCacheError(f"{HEADER}: was changed (its seal differs)")
    if header.key != key:
        raise DamagedCacheError(f"{HEADER}: is of other images or another size (its key differs)")
    return header


def _check_pixels(path: Path, header: CacheHeader) -> None:
    size = path.stat().st_size
    if size != header.size_bytes:
        raise DamagedCacheError(f"{PIXELS}: has {size} bytes, expected {header.size_bytes}")

    def checksum(start: int) -> int:
        with path.open("rb") as file:
            file.seek(start)
            return zlib.crc32(file.read(BLOCK))

    with ThreadPoolExecutor(READING_THREADS) as pool:
        found = tuple(pool.map(checksum, range(0, size, BLOCK)))
    if found != header.blocks:
        raise DamagedCacheError(f"{PIXELS}: was changed (a checksum differs)")


def _seal(header: CacheHeader) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(header, seal=""))).hexdigest()


def _put(folder: Path, path: Path) -> None:
    """Renames a finished cache into its place. Where another process was first, its cache is as good."""
    try:
        folder.rename(path)
    except OSError:
        if not (path / HEADER).is_file():
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _evict(root: Path, room: int, *, keep: Path) -> None:
    """Removes the least recently opened caches until the others fit into `room` bytes, and what crashes left."""
    for folder in root.glob(".*.partial"):
        if time.time() - folder.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)
    caches = sorted(_caches(root), key=lambda path: (path / HEADER).stat().st_mtime)
    used = sum(_size_of(path) for path in caches if path != keep)
    for path in caches:
        if path != keep and used > room:
            used -= _size_of(path)
            logger.info("%s: removed, to make room for another", path)
            shutil.rmtree(path, ignore_errors=True)


def _caches(root: Path) -> Iterator[Path]:
    return (path.parent for path in root.glob(f"*/{HEADER}") if not path.parent.name.startswith("."))


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob(PIXELS))
