"""What is planted in a folder is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from shipnet.runtime.encoding import decode, encode
from shipnet.train import DataConfig, load_data
from shipnet.train.survey import Survey, survey

MakeFolder = Callable[..., Path]


def look(root: Path) -> Survey:
    return survey(load_data(DataConfig(data=str(root))), root=root)[0]


@pytest.fixture
def divided(make_folder: MakeFolder, tmp_path: Path) -> Path:
    for part, count in (("train", 10), ("val", 4), ("test", 3)):
        make_folder({"cat": count, "dog": count}, at=f"data/{part}", size=(80, 60), mode="RGB")
    return tmp_path / "data"


def first(folder: Path, place: int = 0) -> Path:
    return sorted(folder.iterdir())[place]


def test_sound_data_is_counted(divided: Path) -> None:
    Image.new("L", (64, 90)).save(divided / "train/cat/grey.png")
    found = look(divided)
    assert [(row.label, row.train, row.valid, row.test) for row in found.classes] == [
        ("cat", 11, 4, 3),
        ("dog", 10, 4, 3),
    ]
    assert [(kind.width, kind.height, kind.mode, kind.images) for kind in found.formats] == [
        (80, 60, "RGB", 34),
        (64, 90, "L", 1),
    ]
    assert (found.damaged, found.copies) == ((), ())
    assert decode(encode(found), Survey, where="survey") == found


def test_copies_across_parts_and_classes_are_named(divided: Path) -> None:
    shutil.copy(first(divided / "train/cat"), divided / "val/cat/again.png")
    shutil.copy(first(divided / "train/cat", 1), divided / "train/dog/wrong.png")
    shutil.copy(first(divided / "train/dog", 2), divided / "train/dog/twice.png")
    found = look(divided)
    assert len(found.copies) == 3
    (leak,) = found.leaks
    assert leak.names == (f"train/cat/{first(divided / 'train/cat').name}", "val/cat/again.png")
    assert leak.splits == ("train", "valid")
    (conflict,) = found.conflicts
    assert conflict.labels == ("cat", "dog")
    assert "train/dog/wrong.png" in conflict.names


def test_damaged_files_are_named_and_left_out(divided: Path) -> None:
    whole = first(divided / "train/cat").read_bytes()
    (divided / "train/cat/half.png").write_bytes(whole[: len(whole) // 2])
    (divided / "val/dog/empty.png").write_bytes(b"")
    (divided / "test/dog/text.jpg").write_text("hello")
    data = load_data(DataConfig(data=str(divided)))
    steps: list[tuple[int, int]] = []
    found, sound = survey(data, root=divided, on_image=lambda done, total: steps.append((done, total)))
    reasons = {file.name: file.error for file in found.damaged}
    assert sorted(reasons) == ["test/dog/text.jpg", "train/cat/half.png", "val/dog/empty.png"]
    assert "damaged" in reasons["train/cat/half.png"]
    assert "empty" in reasons["val/dog/empty.png"]
    assert "no image" in reasons["test/dog/text.jpg"]
    assert str(divided) not in "".join(reasons.values())
    assert "train/cat/half.png" not in sound.train.names
    assert [row.train for row in found.classes] == [10, 10]
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_built_in_data_is_surveyed_by_its_pixels() -> None:
    found = survey(load_data(DataConfig()))[0]
    assert sum(row.train + row.valid for row in found.classes) == 1797
    assert [(kind.width, kind.height, kind.mode, kind.images) for kind in found.formats] == [
        (8, 8, "L", 1797)
    ]
    assert found.copies == ()
