"""The picture of examples: every image where it belongs, whatever its class is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from shipnet.train.examples import Examples
from shipnet.train.grid import draw_grid


def test_every_image_is_drawn(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    images = np.broadcast_to(colours[:, None, None, :], (3, 8, 8, 3))
    block = Examples(images, ("red", "$green\\frac{", "blau 蓝 and a very long name of a class"))
    grey = Examples(np.full((9, 28, 28, 1), 128, np.uint8), tuple("abcdefghi"))
    draw_grid({"first": block, "second": grey}, tmp_path / "grid.png", title="<b>&$")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.format == "PNG"
        found = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    area = {tuple(colour): int((found == colour).all(1).sum()) for colour in [*colours.tolist(), [128] * 3]}
    assert min(area.values()) > 5_000
    assert area[128, 128, 128] > 8.5 * area[255, 0, 0]
