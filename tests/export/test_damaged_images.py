"""Damaged images are named, counted and left out alike by training and export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shipnet.export import export
from shipnet.runtime import ImageError
from shipnet.train import DataConfig, TrainConfig, fit, load_data


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, set[str]]:
    """Two classes of 12 photographs and a file that is none; one that trains and one that validates are damaged."""
    random = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 256, (80, 90, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{number}.png")
    root = tmp_path / "data"
    (root / "dog" / "broken.png").write_bytes(b"no image")
    data = load_data(DataConfig(data=str(root), image_size=64))
    bad = {data.train.names[0], data.valid.names[0]}
    for name in bad:
        (root / name).write_bytes((root / name).read_bytes()[:-500])
    return root, {*bad, "dog/broken.png"}


def test_they_are_left_out_and_counted(damaged: tuple[Path, set[str]], tmp_path: Path) -> None:
    root, bad = damaged
    config = TrainConfig(
        data=DataConfig(data=str(root), image_size=64), arch="conv_cnn", epochs=1, batch_size=8, workers=0
    )
    run = fit(config, tmp_path / "run")
    assert set(run.record.unreadable) == bad
    assert run.record.train_images + run.record.valid_images == 22
    manifest = export(run).manifest
    assert manifest.provenance.unreadable_images == 3
    assert manifest.provenance.train_images == run.record.train_images
    assert manifest.provenance.validation_images == run.record.valid_images
    assert manifest.variant("fp32").parity.images == run.record.valid_images


def test_strict_data_stops_instead(damaged: tuple[Path, set[str]], tmp_path: Path) -> None:
    root, _ = damaged
    config = TrainConfig(
        data=DataConfig(data=str(root), image_size=64, strict=True), arch="conv_cnn", epochs=1, batch_size=8
    )
    with pytest.raises(ImageError, match=r"broken\.png: is no image in a known format"):
        fit(config, tmp_path / "run")
    (root / "dog" / "broken.png").unlink()
    with pytest.raises(ImageError, match=r"\.png: is damaged|cannot be read"):
        fit(config, tmp_path / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"data"}
