"""Images in rows with their labels, as a PNG file."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .examples import Examples

_COLUMNS: Final = 8
_CELL: Final = 1.35  # inches
_LONGEST = 16  # letters of a label
_ENLARGED_BELOW = 64  # pixels: smaller images keep their squares


def draw_grid(blocks: Mapping[str, Examples], path: Path, *, title: str) -> None:
    """Draws blocks of images one below the other, each under its name.

    Args:
        blocks: name -> images, one or more of each.
        path: of the PNG file.
        title: stands above all.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [math.ceil(len(block.images) / _COLUMNS) for block in blocks.values()]
    figure = Figure(figsize=(_COLUMNS * _CELL, sum(rows) * (_CELL + 0.22) + 0.5 * len(rows) + 0.4), dpi=100)
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    figure.suptitle(title, parse_math=False)
    parts = figure.subfigures(len(rows), 1, height_ratios=[count + 0.3 for count in rows], squeeze=False)
    for (name, block), count, part in zip(blocks.items(), rows, parts[:, 0], strict=True):
        part.suptitle(name, fontsize=11, parse_math=False)
        places = part.subplots(count, _COLUMNS, squeeze=False).ravel()
        for axes in places:
            axes.axis("off")
        for image, label, axes in zip(block.images, block.labels, places, strict=False):
            smooth = max(image.shape[:2]) >= _ENLARGED_BELOW
            axes.imshow(
                image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased" if smooth else "nearest"
            )
            short = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
            axes.set_title(short, fontsize=8, pad=3, parse_math=False)
    with warnings.catch_warnings():  # a letter that the font has not is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(path, format="png")
