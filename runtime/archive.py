"""A bundle in one zip, of which every byte is determined by the files.

Entries are sorted by path and stored without compression (fp32 weights give up 7 % at best), no dates, no comments, no
fields that may be left out. A reader refuses every other zip, so nothing is inflated, hidden between entries, or read
otherwise by other tools.
"""

from __future__ import annotations

import hashlib
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from .errors import BundleError, OutputError
from .manifest import is_inside

_CHUNK: Final = 1 << 20
_MAGIC: Final = b"PK\x03\x04"
# Headers as in PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12 and 4.3.16, without extra fields and comments.
_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_VERSION: Final = 20
_UNIX: Final = 3 << 8
_1980_01_01: Final = 0x21  # the first day that a zip can say
_PLAIN_FILE: Final = (stat.S_IFREG | 0o644) << 16
_MAX_BYTES: Final = 0xFFFFFFFE  # above these, a zip needs the fields of zip64
_MAX_ENTRIES: Final = 0xFFFE
_ZIP64: Final = 1
_MOST_NAMED: Final = 10  # in one message


@dataclass(frozen=True, slots=True)
class _Entry:
    """One file of a zip: where its header begins, and what that says."""

    name: str
    crc32: int
    size: int
    offset: int

    @property
    def start(self) -> int:
        """Where its bytes begin."""
        return self.offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        """Where the next entry begins."""
        return self.start + self.size

    def local(self) -> bytes:
        """The header before its bytes."""
        name = self.name.encode("ascii")
        return _LOCAL.pack(_MAGIC, _VERSION, 0, 0, 0, _1980_01_01, *self._sizes(), len(name), 0) + name

    def central(self) -> bytes:
        """Its part of the directory at the end."""
        name = self.name.encode("ascii")
        versions = (_UNIX | _VERSION, _VERSION)
        head = _CENTRAL.pack(
            b"PK\x01\x02",
            *(*versions, 0, 0, 0, _1980_01_01),
            *self._sizes(),
            *(len(name), 0, 0, 0, 0),
            *(_PLAIN_FILE, self.offset),
        )
        return head + name

    def _sizes(self) -> tuple[int, int, int]:
        return self.crc32, self.size, self.size


@dataclass(frozen=True, slots=True)
class Archive:
    """A bundle in a zip. Build it with `Archive.open`."""

    path: Path
    entries: dict[str, _Entry]

    @classmethod
    def open(cls, path: Path) -> Archive:
        """Reads the zip's directory.

        Raises:
            BundleError: no zip, one cut short, or one that `pack` did not write; what no packed bundle
                may hold is named at once, up to ten entries.
            OSError: it cannot be read.
        """
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise BundleError(
                    f"{path}: is no bundle: expected a bundle's folder, or the zip that  shipnet pack  wrote"
                )
            try:
                with zipfile.ZipFile(file) as archive:
                    infos = archive.infolist()
            except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
                raise BundleError(
                    f"{path}: is cut short or damaged, it cannot be read as a zip: {error}: fetch it again"
                ) from error
            problems = _strange_entries(infos)
            entries = [_Entry(i.orig_filename, i.CRC, i.file_size, i.header_offset) for i in infos]
            if not problems and not _is_as_packed(file, entries):
                problems.append(
                    "its headers are not as they were written: bytes were added, moved or changed"
                )
        if problems:
            more = len(problems) - _MOST_NAMED
            named = problems[:_MOST_NAMED] + ([f"and {more} more"] if more > 0 else [])
            raise BundleError(
                f"{path}: is no zip that  shipnet pack  wrote: {'; '.join(named)}: "
                "fetch an unchanged copy, or pack the bundle's folder with  shipnet pack"
            )
        return cls(path, {entry.name: entry for entry in entries})

    def listing(self) -> tuple[set[str], list[str]]:
        """As in `Storage`."""
        return set(self.entries), []

    def has(self, name: str) -> bool:
        """As in `Storage`."""
        return name in self.entries

    def size(self, name: str) -> int:
        """As in `Storage`."""
        return self._entry(name).size

    def read(self, name: str) -> bytes:
        """As in `Storage`."""
        entry = self._entry(name)
        with self.path.open("rb") as file:
            file.seek(entry.start)
            data = file.read(entry.size)
        if len(data) != entry.size or zlib.crc32(data) != entry.crc32:
            raise OSError("differs from what the zip's directory says of it")
        return data

    def sha256(self, name: str) -> str:
        """As in `Storage`."""
        entry = self._entry(name)
        digest, crc32, left = hashlib.sha256(), 0, entry.size
        with self.path.open("rb") as file:
            file.seek(entry.start)
            while left and (chunk := file.read(min(left, _CHUNK))):
                digest.update(chunk)
                crc32 = zlib.crc32(chunk, crc32)
                left -= len(chunk)
        if left or crc32 != entry.crc32:
            raise OSError("differs from what the zip's directory says of it")
        return digest.hexdigest()

    def _entry(self, name: str) -> _Entry:
        try:
            return self.entries[name]
        except KeyError:
            raise FileNotFoundError("no such file in the zip") from None


def write_archive(
    path: Path, names: Iterable[str], read: Callable[[str], bytes], *, where: Path | None = None
) -> None:
    """Writes a zip as `Archive` reads it.

    Args:
        path: of the zip; a file there is overwritten.
        names: of its files, plain paths as `is_inside` allows them.
        read: gives a file's bytes.
        where: the zip's place, for messages; None: `path`.

    Raises:
        OutputError: more or larger files than a zip holds without the fields of zip64.
        OSError: it cannot be written.
    """
    entries: list[_Entry] = []
    with path.open("wb") as file:
        for name in sorted(names):
            data = read(name)
            entry = _Entry(name, zlib.crc32(data), len(data), file.tell())
            entries.append(entry)
            if entry.end > _MAX_BYTES or len(entries) > _MAX_ENTRIES:
                raise OutputError(
                    f"{where or path}: more than a zip holds (4 GiB, {_MAX_ENTRIES:,} files): "
                    "pass the folder on as it is"
                )
            file.write(entry.local())
            file.write(data)
        file.write(_directory(entries))


def shown(name: str) -> str:
    """A file's name as a message may hold it: as it is where it is plain, otherwise quoted and escaped."""
    return name if name.isascii() and name.isprintable() else ascii(name)


def _directory(entries: list[_Entry]) -> bytes:
    """The end of a zip."""
    central = b"".join(entry.central() for entry in entries)
    offset, count = (entries[-1].end if entries else 0), len(entries)
    return central + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(central), offset, 0)


def _strange_entries(infos: list[zipfile.ZipInfo]) -> list[str]:
    """A phrase for each entry that no packed bundle holds."""
    counts = Counter(info.orig_filename for info in infos)
    problems = [f"{shown(name)} stands {count} times" for name, count in counts.items() if count > 1]
    for info in infos:
        kind = stat.S_IFMT(info.external_attr >> 16)
        fields = _extra_fields(info.extra)
        reasons = {
            "is a folder": info.orig_filename.endswith("/"),
            "is not a plain path inside": not is_inside(info.orig_filename.removesuffix("/")),
            "is a link": kind == stat.S_IFLNK,
            "is no plain file": kind not in (0, stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR),
            "is encrypted": bool(info.flag_bits & 1),
            "is compressed": info.compress_type != zipfile.ZIP_STORED,
            f"is said to be of {info.file_size} bytes and of {info.compress_size}": (
                info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size
            ),
            "uses zip64": _ZIP64 in fields,
            "has extra fields": bool(info.extra) and fields != {_ZIP64},
            "has a comment": bool(info.comment),
        }
        found = [reason for reason, holds in reasons.items() if holds]
        if found:
            problems.append(f"{shown(info.orig_filename)} {' and '.join(found)}")
    return problems


def _extra_fields(extra: bytes) -> set[int]:
    """The ids of the extra fields of a zip's entry."""
    found = set()
    while len(extra) >= 4:
        name, size = struct.unpack_from("<HH", extra)
        found.add(name)
        extra = extra[4 + size :]
    return found


def _is_as_packed(file: BinaryIO, entries: list[_Entry]) -> bool:
    """Whether the zip is, apart from its files' bytes, what `write_archive` makes of these entries."""
    names = [entry.name for entry in entries]
    offsets = [0, *(entry.end for entry in entries)][: len(entries)]
    if names != sorted(names) or [entry.offset for entry in entries] != offsets:
        return False
    for entry in entries:
        file.seek(entry.offset)
        if file.read(entry.start - entry.offset) != entry.local():
            return False
    file.seek(entries[-1].end if entries else 0)
    expected = _directory(entries)
    return file.read(len(expected) + 1) == expected
