"""MNIST's file format."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from shipnet.runtime import DataError
from shipnet.train.idx import find_idx, read_idx


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_and_gzipped_files_give_the_same(tmp_path: Path, pack: object) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(pack(idx(IMAGES)))
    assert np.array_equal(read_idx(path, dimensions=3), IMAGES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"not an IDX file of 3 dimension\(s\); its first bytes are missing"),
        (b"\x89PNG\r\n\x1a\n" * 4, r"its first bytes are 89504e47"),
        (idx(IMAGES[0]), r"not an IDX file of 3 dimension"),
        (idx(IMAGES)[:-1], r"holds 23 bytes after its header, which announces 24; fetch the file anew"),
        (idx(IMAGES) + b"x", r"holds 25 bytes"),
        (gzip.compress(idx(IMAGES))[:-9], r"cannot be read: .*; fetch the file anew"),
        (gzip.compress(idx(IMAGES))[:20] + bytes(20), r"cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"train-images-idx3-ubyte.gz: .*{message}"):
        read_idx(path, dimensions=3)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gone: cannot be read"):
        read_idx(tmp_path / "gone", dimensions=1)


@pytest.mark.parametrize(
    "name",
    [
        "t10k-labels-idx1-ubyte",
        "t10k-labels-idx1-ubyte.gz",
        "t10k-labels.idx1-ubyte",
        "t10k-labels.idx1-ubyte.gz",
    ],
)
def test_the_names_of_all_mirrors_are_found(tmp_path: Path, name: str) -> None:
    assert find_idx(tmp_path, "t10k-labels") is None
    (tmp_path / name).touch()
    assert find_idx(tmp_path, "t10k-labels") == tmp_path / name
