"""IDX, the format of MNIST's files: a magic number, big-endian sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.errors import DataError

_UNSIGNED_BYTE = 0x08


def read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Reads an IDX file of unsigned bytes, gzipped or not.

    Source: Y. LeCun, http://yann.lecun.com/exdb/mnist/, "File formats".

    Args:
        path: the file.
        dimensions: 1 for labels, 3 for images.

    Returns:
        uint8, with as many axes as `dimensions`.

    Raises:
        DataError: another format, or more or fewer bytes than the header announces.
    """
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}; fetch the file anew") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise DataError(
            f"{path}: not an IDX file of {dimensions} dimension(s); its first bytes are {data[:4].hex() or 'missing'}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if len(data) != header + math.prod(shape):
        raise DataError(
            f"{path}: holds {len(data) - header} bytes after its header, which announces {math.prod(shape)}; "
            "fetch the file anew"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def find_idx(folder: Path, stem: str) -> Path | None:
    """The file of that stem (such as `train-images`) as MNIST's mirrors name it, or None."""
    kind = "idx3" if stem.endswith("images") else "idx1"
    for name in (f"{stem}-{kind}-ubyte", f"{stem}.{kind}-ubyte"):
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    return None
