"""Folders of images: the layouts, and everything that is wrong with folders."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shipnet.runtime import DataError, ImageError, UsageError
from shipnet.train import DataConfig, Dataset, ImageSet, load_data

MakeFolder = Callable[..., Path]
PAIR = {"cat": 10, "dog": 6}


def load(root: Path, **options: object) -> Dataset:
    return load_data(DataConfig(data=str(root), **options))


def counts(data: Dataset, images: ImageSet) -> dict[str, int]:
    return dict(Counter(data.labels[label] for label in images.labels))


def test_class_folders_alone_are_divided_by_class(make_folder: MakeFolder) -> None:
    data = load(make_folder(PAIR), val_fraction=0.3)
    assert data.name == "data"
    assert data.labels == ("cat", "dog")
    assert counts(data, data.train) == {"cat": 7, "dog": 4}
    assert counts(data, data.valid) == {"cat": 3, "dog": 2}
    assert data.test is None
    assert not set(data.train.names) & set(data.valid.names)
    assert all(
        name.startswith(data.labels[label])
        for name, label in zip(data.train.names, data.train.labels, strict=True)
    )


def test_the_division_depends_on_its_seed_alone(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 20, "dog": 20})
    assert load(root).valid.names == load(root).valid.names
    assert load(root).valid.names != load(root, seed=1).valid.names


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test", "Val"])
def test_a_sibling_of_train_validates(make_folder: MakeFolder, name: str) -> None:
    make_folder(PAIR, at="data/train")
    data = load(make_folder({"cat": 2, "dog": 3}, at=f"data/{name}"))
    assert counts(data, data.train) == PAIR
    assert counts(data, data.valid) == {"cat": 2, "dog": 3}
    assert data.test is None
    assert data.valid.names[0].startswith(f"{name}/cat/")


def test_beside_val_a_test_folder_is_held_out(make_folder: MakeFolder) -> None:
    for part in ("train", "val", "test"):
        root = make_folder({"cat": 4, "dog": 3}, at=f"data/{part}")
    data = load(root)
    assert data.test is not None
    assert all(name.startswith("test/") for name in data.test.names)
    assert all(name.startswith("val/") for name in data.valid.names)


def test_train_alone_is_divided(make_folder: MakeFolder) -> None:
    data = load(make_folder(PAIR, at="data/train"))
    assert counts(data, data.valid) == {"cat": 2, "dog": 1}


def test_a_class_may_be_called_train(make_folder: MakeFolder) -> None:
    data = load(make_folder({"bus": 4, "train": 4}))
    assert data.labels == ("bus", "train")


def test_classes_are_in_plain_sort_order(make_folder: MakeFolder) -> None:
    data = load(make_folder({"2": 2, "10": 2, "B": 2, "a": 2}))
    assert data.labels == ("10", "2", "B", "a")


def test_hidden_files_and_folders_do_not_count(make_folder: MakeFolder) -> None:
    root = make_folder(PAIR)
    shutil.copytree(root / "cat", root / ".ipynb_checkpoints")
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    shutil.copy(next((root / "dog").glob("*.png")), root / "dog" / ".hidden.png")
    data = load(root)
    assert len(data.train) + len(data.valid) == 16
    assert data.labels == ("cat", "dog")
    assert data.warnings == ()


def test_images_in_deeper_folders_belong_to_their_class(make_folder: MakeFolder) -> None:
    make_folder(PAIR)
    data = load(make_folder({"deeper": 3}, at="data/dog"))
    assert counts(data, data.train)["dog"] + counts(data, data.valid)["dog"] == 9


def test_files_that_are_no_images_are_counted(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(PAIR)
    (root / "LICENSE.txt").write_text("free")
    for number in range(2):
        (root / "cat" / f"{number}.txt").write_text("a cat")
    with caplog.at_level(logging.WARNING):
        data = load(root)
    assert data.warnings == ("data: left out 3 file that is no image(s)",)
    assert "left out 3" in caplog.text


def test_an_unknown_sibling_is_named(make_folder: MakeFolder) -> None:
    make_folder(PAIR, at="data/train")
    root = make_folder({"cat": 1}, at="data/extra")
    assert load(root).warnings == ("left out: folders beside train/ of no known meaning: extra",)


def test_an_image_on_both_sides_is_reported(make_folder: MakeFolder) -> None:
    make_folder(PAIR, at="data/train")
    root = make_folder({"cat": 2, "dog": 2}, at="data/val")
    original = sorted((root / "train" / "cat").iterdir())[0]
    shutil.copy(original, root / "val" / "cat" / "copy.png")
    (warning,) = load(root).warnings
    assert (
        f"1 validation image(s) also train, such as val/cat/copy.png = train/cat/{original.name}" in warning
    )


def test_a_class_missing_in_val_is_a_warning(make_folder: MakeFolder) -> None:
    make_folder(PAIR, at="data/train")
    data = load(make_folder({"cat": 2}, at="data/val"))
    assert data.warnings == ("val: no images of dog, which are not measured",)
    assert data.labels == ("cat", "dog")


def test_a_class_of_val_unknown_to_train_is_an_error(make_folder: MakeFolder) -> None:
    make_folder(PAIR, at="data/train")
    root = make_folder({"cat": 2, "cow": 2}, at="data/val")
    with pytest.raises(DataError, match="val: class 'cow' is unknown to training, which has: cat, dog"):
        load(root)


def test_splits_are_aligned_by_name(make_folder: MakeFolder) -> None:
    make_folder({"ant": 3, "bee": 3, "cat": 3}, at="data/train")
    data = load(make_folder({"cat": 2}, at="data/val"))
    assert counts(data, data.valid) == {"cat": 2}


def test_a_wrong_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"data '.*gone': no such folder; expected a folder or one of: digits"
    ):
        load(tmp_path / "gone")
    with pytest.raises(UsageError, match=r"data 'mnits': no such folder \(did you mean 'mnist'\?\)"):
        load_data(DataConfig(data="mnits"))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file, not a folder"):
        load(tmp_path / "file")


def test_an_empty_folder_has_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images; expected a sub-folder per class, two or more"):
        load(tmp_path)


def test_one_class_cannot_be_classified(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 5})
    with pytest.raises(DataError, match=r"data: one class only \('cat'\); expected a sub-folder per class"):
        load(root)


def test_an_empty_class_is_named(make_folder: MakeFolder) -> None:
    root = make_folder(PAIR)
    (root / "cow").mkdir()
    with pytest.raises(DataError, match="cow: a class without images; add some or remove the folder"):
        load(root)


def test_a_class_with_one_image_cannot_be_divided(make_folder: MakeFolder) -> None:
    root = make_folder({"cat": 5, "dog": 1})
    with pytest.raises(DataError, match=r"class 'dog' has 1 image\(s\), so it cannot be divided"):
        load(root)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_a_class_needs_a_printable_name(make_folder: MakeFolder) -> None:
    root = make_folder(PAIR)
    (root / "cat").rename(os.fsdecode(os.fsencode(root) + b"/caf\xe9"))
    with pytest.raises(DataError, match=r"class 'caf\\udce9' has a name that cannot be printed: rename"):
        load(root)


def test_an_empty_validation_folder_is_an_error(make_folder: MakeFolder) -> None:
    root = make_folder(PAIR, at="data/train")
    (root / "val").mkdir()
    with pytest.raises(DataError, match="val: no images; expected a sub-folder per class"):
        load(root)


def test_two_folders_of_one_meaning_are_an_error(make_folder: MakeFolder) -> None:
    for part in ("train", "val", "valid"):
        root = make_folder(PAIR, at=f"data/{part}")
    with pytest.raises(DataError, match="both val and valid stand there, which mean the same: keep one"):
        load(root)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_left_out_or_stops(make_folder: MakeFolder, content: bytes) -> None:
    root = make_folder(PAIR)
    before = load(root)
    (root / "cat" / "bad.jpg").write_bytes(content)
    data = load(root)
    assert data.unreadable == ("cat/bad.jpg",)
    assert (data.fingerprint, data.train.names) == (before.fingerprint, before.train.names)
    (warning,) = data.warnings
    assert re.fullmatch(r"left out: .*cat.bad\.jpg: [\w ()]+; replace or remove the file", warning)
    with pytest.raises(ImageError, match=r"cat.bad\.jpg: .*; replace or remove the file"):
        load(root, strict=True)


def test_a_class_of_files_that_are_no_images_is_an_error(make_folder: MakeFolder) -> None:
    root = make_folder(PAIR)
    (root / "eel").mkdir()
    (root / "eel" / "bad.jpg").write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"class 'eel' has no image that can be read: .*bad\.jpg"):
        load(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_no_image(make_folder: MakeFolder) -> None:
    root = make_folder(PAIR)
    os.mkfifo(root / "cat" / "pipe.png")
    assert load(root).warnings == ("data: left out 1 file that is no image(s)",)


def test_small_images_keep_their_size_and_colour(make_folder: MakeFolder) -> None:
    data = load(make_folder(PAIR, size=(28, 28)))
    assert (data.spec.height, data.spec.width, data.spec.channels, data.spec.resize) == (28, 28, 1, "fit")
    assert data.in_memory
    coloured = load(make_folder({"cat": 2, "dog": 2}, at="coloured", mode="RGB"))
    assert coloured.spec.channels == 3


def test_small_images_that_are_not_square_are_cropped(make_folder: MakeFolder) -> None:
    spec = load(make_folder(PAIR, size=(40, 20))).spec
    assert (spec.height, spec.width, spec.resize, spec.resize_size) == (40, 40, "shorter_side_crop", 40)


def test_photographs_get_the_usual_crop(make_folder: MakeFolder) -> None:
    root = make_folder(PAIR, size=(120, 90), mode="RGB")
    spec = load(root).spec
    assert (spec.height, spec.resize, spec.resize_size, spec.channels) == (224, "shorter_side_crop", 256, 3)
    assert not load(root).in_memory
    assert load(root, image_size=32).in_memory


def test_the_fingerprint_is_of_names_labels_and_bytes(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(PAIR)
    first = load(root).fingerprint
    assert load(root, val_fraction=0.5, seed=3).fingerprint == first
    moved = tmp_path / "elsewhere" / "data"
    shutil.copytree(root, moved)
    assert load(moved).fingerprint == first
    image = next((moved / "cat").iterdir())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(image)
    changed = load(moved).fingerprint
    assert changed != first
    image.rename(image.with_name("renamed.png"))
    assert load(moved).fingerprint not in (first, changed)


def test_real_photographs(real_data: Path) -> None:
    data = load(real_data / "flowers")
    assert data.labels == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert (len(data.train), len(data.valid)) == (800, 625)
    assert data.spec.height == 224
