"""Decoded photographs on disk: the same pixels as decoding, seen when damaged, bounded, safe to build twice at once."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from shipnet.runtime import DataError, ImageError, UsageError, preprocess
from shipnet.train import CacheConfig, DataConfig, Dataset, TrainConfig, load_data
from shipnet.train.cache import BLOCK, HEADER, PIXELS, CacheWriter, PixelCache, open_cache
from shipnet.train.channel_stats import measure
from shipnet.train.events import Reading
from shipnet.train.feeds import open_feed
from shipnet.train.photos import MARGIN, Photos, cache_folder, read_images, shrink
from shipnet.train.recipe import resolve

MakeFolder = Callable[..., Path]
KEY = "a" * 64
NOISE = np.random.default_rng(0)


@pytest.fixture
def root(make_folder: MakeFolder) -> Path:
    make_folder({"cat": 16, "dog": 14}, size=(130, 200), mode="RGB")
    return make_folder({"emu": 6}, size=(90, 70), mode="RGB")


def load(root: Path) -> Dataset:
    return load_data(DataConfig(data=str(root), image_size=64))


def read(dataset: Dataset, folder: Path | str, **options: object) -> tuple[Dataset, Photos]:
    events: list[object] = []
    config = CacheConfig(folder=str(folder), **options)
    found, photos = read_images(dataset, config, strict=False, notify=events.append)
    assert photos is not None
    return found, photos


def caches(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{HEADER}"))


def test_it_changes_no_pixel(root: Path, tmp_path: Path) -> None:
    data = load(root)
    first, built = read(data, tmp_path / "cache")
    _, opened = read(data, tmp_path / "cache")
    _, decoded = read(data, "none")
    assert (len(first.train), len(first.valid)) == (len(data.train), len(data.valid))
    for index in range(len(data.train)):
        assert np.array_equal(built.train(index), decoded.train(index))
        assert np.array_equal(opened.train(index), decoded.train(index))
    for index in range(len(data.valid)):
        assert np.array_equal(opened.valid(index), preprocess(data.valid[index], data.spec))
    config = resolve(TrainConfig(data=DataConfig(data=str(root)), batch_size=8, workers=0), data)
    for mine, theirs in zip(
        *(open_feed(data, config, torch.device("cpu"), photos=p).train(1) for p in (opened, decoded)),
        strict=True,
    ):
        assert torch.equal(mine[0], theirs[0])
    assert measure(data, 0, photos=opened) == measure(data, 0, photos=decoded) == measure(data, 0)


def test_what_is_kept_has_a_margin_and_is_never_enlarged(root: Path) -> None:
    data = load(root)
    for index, name in enumerate(data.train.names):
        height, width, channels = shrink(data.train[index], data.spec).shape
        assert channels == 3
        if name.startswith("emu"):
            assert (height, width) == (70, 90)
        else:
            assert width == round(MARGIN * 64) == 96
            assert abs(height / width - 200 / 130) < 0.01


def test_files_are_decoded_once(root: Path, tmp_path: Path) -> None:
    data = load(root)
    read(data, tmp_path / "cache")
    shutil.move(root, tmp_path / "elsewhere")  # nothing can be decoded any more
    _, photos = read(data, tmp_path / "cache")
    assert photos.train(0).shape[2] == 3
    with pytest.raises(ImageError):
        Photos(data).train(0)


def test_progress_is_told(root: Path, tmp_path: Path) -> None:
    data, events = load(root), []
    read_images(data, CacheConfig(folder=str(tmp_path / "cache")), strict=False, notify=events.append)
    assert events[-1] == Reading(36, 36)
    events.clear()
    read_images(data, CacheConfig(folder=str(tmp_path / "cache")), strict=False, notify=events.append)
    assert events == []


def test_another_image_size_or_content_is_another_cache(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    read(load(root), folder)
    read(load_data(DataConfig(data=str(root), image_size=72)), folder)
    assert len(caches(folder)) == 2
    picture = next((root / "cat").iterdir())
    Image.open(picture).transpose(Image.Transpose.ROTATE_180).save(picture)
    data = load(root)
    _, photos = read(data, folder)
    assert len(caches(folder)) == 3
    index = (
        data.train.names.index(f"cat/{picture.name}") if f"cat/{picture.name}" in data.train.names else None
    )
    if index is not None:
        assert np.array_equal(photos.train(index), shrink(picture, data.spec))


def write(path: Path, images: list[np.ndarray], *, limit_bytes: int = 1 << 40) -> PixelCache | None:
    writer = CacheWriter(path, key=KEY, channels=3, images=len(images), limit_bytes=limit_bytes)
    for image in images:
        writer.add(image)
    found = writer.finish("noise", {})
    writer.close()
    return found


def noise(count: int, side: int = 40) -> list[np.ndarray]:
    return [NOISE.integers(0, 256, (side + n % 3, side, 3), np.uint8) for n in range(count)]


def test_images_of_many_blocks_come_back(tmp_path: Path) -> None:
    images = noise(3, side=2000)
    assert sum(image.size for image in images) > 2 * BLOCK
    cache = write(tmp_path / "c", images)
    assert cache is not None
    assert all(np.array_equal(cache[index], image) for index, image in enumerate(images))
    assert not cache[0].flags.writeable
    copy = pickle.loads(pickle.dumps(cache))  # as a worker process receives it
    assert len(pickle.dumps(cache)) < 10_000
    assert np.array_equal(copy[2], images[2])


def truncate(path: Path) -> None:
    os.truncate(path / PIXELS, (path / PIXELS).stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    data = bytearray((path / PIXELS).read_bytes())
    data[len(data) // 2] ^= 1
    (path / PIXELS).write_bytes(data)


def change_header(path: Path) -> None:
    header = json.loads((path / HEADER).read_text())
    header["sizes"][0].reverse()
    (path / HEADER).write_text(json.dumps(header))


def halve_header(path: Path) -> None:
    text = (path / HEADER).read_bytes()
    (path / HEADER).write_bytes(text[: len(text) // 2])


def remove_pixels(path: Path) -> None:
    (path / PIXELS).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"pixels\.bin: has \d+ bytes, expected \d+"),
        (flip_a_bit, r"pixels\.bin: was changed \(a checksum differs\)"),
        (change_header, r"cache\.json: was changed \(its seal differs\)"),
        (halve_header, r"cache\.json: "),
        (remove_pixels, r"No such file"),
    ],
)
def test_a_damaged_cache_is_seen_and_made_again(
    root: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    data = load(root)
    read(data, tmp_path / "cache")
    (path,) = caches(tmp_path / "cache")
    before = (path / PIXELS).read_bytes()
    damage(path)
    read(data, tmp_path / "cache")
    (line,) = caplog.messages
    assert "damaged, made again: " in line
    assert re.search(message, line)
    assert (path / PIXELS).read_bytes() == before


def test_a_cache_of_another_key_is_not_used(tmp_path: Path) -> None:
    write(tmp_path / "c", noise(2))
    assert open_cache(tmp_path / "c", "b" * 64) is None
    assert not (tmp_path / "c").exists()


def test_what_exceeds_the_limit_is_not_kept_and_said_so(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load(root)
    _, photos = read(data, tmp_path / "cache", limit_gb=0.0001)
    assert "do not fit into 0.00 GB (--cache-limit" in caplog.text
    assert list((tmp_path / "cache").iterdir()) == []
    assert photos.train(0).shape[2] == 3


def test_the_oldest_go_first(tmp_path: Path) -> None:
    images = noise(4)
    size = sum(image.size for image in images)
    for number, name in enumerate(("one", "two", "three")):
        write(tmp_path / name, images)
        os.utime(tmp_path / name / HEADER, (number, number))
    assert open_cache(tmp_path / "one", KEY) is not None  # so it is the youngest
    write(tmp_path / "four", images, limit_bytes=3 * size)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "three", "four"}


@pytest.mark.skipif(sys.platform == "win32", reason="sets a resource limit")
def test_a_full_disk_costs_the_cache_and_nothing_else(root: Path, tmp_path: Path) -> None:
    """A file size limit of the process stands in for the disk's end: the write fails in the middle."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from shipnet.train.photos import read_images; from shipnet.train import *\n"
        "data = load_data(DataConfig(data=sys.argv[1], image_size=64))\n"
        "_, photos = read_images(data, CacheConfig(folder=sys.argv[2]), strict=False, notify=lambda _: None)\n"
        "print(photos.train(0).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(root), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert os.strerror(errno.EFBIG) in done.stderr
    assert "no cache, so every epoch decodes the photographs" in done.stderr
    assert list((tmp_path / "cache").iterdir()) == []
    assert done.stdout.startswith("(")


def test_two_processes_may_build_the_same_at_once(root: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from shipnet.train.photos import read_images; from shipnet.train import *\n"
        "data = load_data(DataConfig(data=sys.argv[1], image_size=64))\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "_, photos = read_images(data, CacheConfig(folder=sys.argv[2]), strict=True, notify=lambda _: None)\n"
        "print(sum(int(photos.train(i).sum()) for i in range(len(data.train))))"
    )
    command = [sys.executable, "-c", code, str(root), str(tmp_path / "cache")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    sums = []
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        out, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        sums.append(out)
    assert sums[0] == sums[1]
    assert len(caches(tmp_path / "cache")) == len(list((tmp_path / "cache").iterdir())) == 1


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(CacheConfig()) == tmp_path / "shipnet" / "photographs"
    assert cache_folder(CacheConfig(folder="none")) is None
    assert cache_folder(CacheConfig(folder="/there")) == Path("/there")


def damage_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("folder", ["cache", "none"])
@pytest.mark.parametrize("image_size", [64, 32])
def test_a_damaged_image_is_named_and_left_out(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str, image_size: int
) -> None:
    where = "none" if folder == "none" else str(tmp_path / folder)
    data = load_data(DataConfig(data=str(root), image_size=image_size))
    bad = {data.train.names[3], data.valid.names[2]}
    for name in bad:
        damage_file(root / name)
    data = load_data(DataConfig(data=str(root), image_size=image_size))
    for _ in range(2):  # the second time out of the cache
        caplog.clear()
        found, photos = read_images(data, CacheConfig(folder=where), strict=False, notify=lambda _: None)
        assert set(found.unreadable) == bad
        assert all(name in caplog.text for name in bad)
        assert len(found.train) + len(found.valid) == 34
        assert found.fingerprint == data.fingerprint
        kept = [name for name in data.train.names if name not in bad]
        assert list(found.train.names) == kept
        for index in range(len(kept)):
            mine = photos.train(index) if photos else found.train[index]
            file = root / kept[index]
            assert np.array_equal(mine, shrink(file, data.spec) if photos else preprocess(file, data.spec))
        with pytest.raises(ImageError, match="|".join(bad)):
            read_images(data, CacheConfig(folder=where), strict=True, notify=lambda _: None)


def test_a_class_that_loses_all_its_images_is_an_error(root: Path, tmp_path: Path) -> None:
    for path in (root / "emu").iterdir():
        damage_file(path)
    with pytest.raises(DataError, match="class 'emu' has no training image that can be read"):
        read(load(root), tmp_path / "cache")


def test_a_limit_must_be_possible() -> None:
    with pytest.raises(UsageError, match="cache_limit is -1"):
        CacheConfig(limit_gb=-1.0)
    with pytest.raises(UsageError, match="cache is empty"):
        CacheConfig(folder="")
    assert msgspec.structs.asdict(CacheConfig()) == {"folder": None, "limit_gb": 20.0}
