"""The data sets with a name."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from shipnet.runtime import DataError
from shipnet.train import DataConfig, load_data


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, and a proxy that no connection gets through. Gives the cache's parent."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "SHIPNET_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def write_digits_as_idx(
    folder: Path, digit_images: tuple[np.ndarray, np.ndarray], *, dots: bool, pack: bool
) -> None:
    """1,200 training and 500 test digits in MNIST's files."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = digit_images[0][..., 0], digit_images[1].astype(np.uint8)
    for part, rows in (("train", slice(0, 1200)), ("t10k", slice(1200, 1700))):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte".replace("-idx", ".idx" if dots else "-idx") + (
                ".gz" if pack else ""
            )
            data = idx(array[rows])
            (folder / name).write_bytes(gzip.compress(data) if pack else data)


def test_digits_are_scaled_and_divided() -> None:
    data = load_data(DataConfig())
    assert (data.name, data.labels) == ("digits", tuple("0123456789"))
    assert (len(data.train), len(data.valid), data.test) == (1438, 359, None)
    assert data.train.sources.shape == (1438, 8, 8, 1)
    number = int(data.valid.names[0].split("/")[1])
    original = load_digits()
    assert np.array_equal(data.valid[0][:, :, 0], np.rint(original.images[number] / 16 * 255))
    assert data.valid.labels[0] == original.target[number]
    assert (data.train.sources.min(), data.train.sources.max()) == (0, 255)


def test_digits_have_one_fingerprint() -> None:
    first = load_data(DataConfig()).fingerprint
    assert load_data(DataConfig(val_fraction=0.5, seed=9)).fingerprint == first


@pytest.mark.parametrize(
    ("name", "where", "dots", "pack"),
    [
        ("mnist", "mnist", False, True),
        ("mnist", "MNIST/raw", False, False),
        ("mnist", ".", True, False),
        ("fashion-mnist", "fashion-mnist", False, True),
        ("fashion-mnist", "FashionMNIST/raw", True, True),
    ],
)
def test_idx_files_are_found_where_people_have_them(
    tmp_path: Path, digit_images: tuple[np.ndarray, np.ndarray], name: str, where: str, dots: bool, pack: bool
) -> None:
    write_digits_as_idx(tmp_path / where, digit_images, dots=dots, pack=pack)
    data = load_data(DataConfig(data=name, data_root=str(tmp_path)))
    assert (len(data.train), len(data.valid)) == (1200, 500)
    assert np.array_equal(data.train.sources, digit_images[0][:1200])
    assert np.array_equal(data.valid.labels, digit_images[1][1200:1700])
    assert data.spec.height == 8


def test_the_environment_names_the_root(
    tmp_path: Path, digit_images: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_digits_as_idx(tmp_path / "mnist", digit_images, dots=False, pack=True)
    monkeypatch.setenv("SHIPNET_DATA", str(tmp_path))
    assert len(load_data(DataConfig(data="mnist")).train) == 1200


def test_what_was_downloaded_once_is_found_in_the_cache(
    unreachable: Path, digit_images: tuple[np.ndarray, np.ndarray]
) -> None:
    write_digits_as_idx(unreachable / "cache/shipnet/mnist/MNIST/raw", digit_images, dots=False, pack=False)
    assert len(load_data(DataConfig(data="mnist")).train) == 1200


def test_a_missing_file_is_named(tmp_path: Path, digit_images: tuple[np.ndarray, np.ndarray]) -> None:
    write_digits_as_idx(tmp_path / "mnist", digit_images, dots=False, pack=True)
    (tmp_path / "mnist/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="mnist: of mnist's four IDX files, missing: t10k-labels"):
        load_data(DataConfig(data="mnist", data_root=str(tmp_path)))


def test_labels_and_images_must_be_as_many(
    tmp_path: Path, digit_images: tuple[np.ndarray, np.ndarray]
) -> None:
    write_digits_as_idx(tmp_path / "mnist", digit_images, dots=False, pack=False)
    (tmp_path / "mnist/t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(DataError, match="3 labels for the 500 images of t10k-images-idx3-ubyte"):
        load_data(DataConfig(data="mnist", data_root=str(tmp_path)))


def test_a_label_that_is_no_class_is_refused(
    tmp_path: Path, digit_images: tuple[np.ndarray, np.ndarray]
) -> None:
    write_digits_as_idx(tmp_path / "mnist", digit_images, dots=False, pack=False)
    (tmp_path / "mnist/t10k-labels-idx1-ubyte").write_bytes(idx(np.full(500, 10, np.uint8)))
    with pytest.raises(DataError, match="mnist: no images, or a label above 9"):
        load_data(DataConfig(data="mnist", data_root=str(tmp_path)))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_an_unreachable_download_says_where_the_files_go(unreachable: Path, name: str) -> None:
    with pytest.raises(
        DataError, match=rf"{name} cannot be downloaded: .*; put .* by hand into ROOT/{name}/ and give"
    ):
        load_data(DataConfig(data=name))
    assert not any((unreachable / "cache/shipnet").iterdir())


def test_a_wrong_root_is_named(unreachable: Path) -> None:
    with pytest.raises(DataError, match=r"data_root '.*gone': no such folder"):
        load_data(DataConfig(data="mnist", data_root=str(unreachable / "gone")))


def test_damaged_cifar_is_refused(unreachable: Path) -> None:
    (unreachable / "cifar10/cifar-10-batches-py").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"cifar-10-batches-py: Dataset not found or corrupted.*fetch the files anew"
    ):
        load_data(DataConfig(data="cifar10", data_root=str(unreachable)))


def test_real_mnist(real_data: Path) -> None:
    data = load_data(DataConfig(data="mnist", data_root=str(real_data)))
    assert (data.train.sources.shape, data.valid.sources.shape) == ((60_000, 28, 28, 1), (10_000, 28, 28, 1))
    # The MD5 of the test file's pixels, which follow a header of 16 bytes.
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", 10_000, 28, 28)
    whole = hashlib.md5(header + data.valid.sources.tobytes(), usedforsecurity=False).hexdigest()
    assert whole == "2646ac647ad5339dbf082846283269ea"
