"""Charts of a report as inline SVG. Colours are CSS variables of the page, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

from .calibration import Calibration
from .confusion import ClassResult, Confusion

_WIDTH, _HEIGHT = 560, 300  # of a chart, in units of its view box
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 16, 44
COLOURS: Final = ("var(--blue)", "var(--orange)")
_MARKERS_UP_TO = 40  # points
# Up to so many classes a cell of the confusion matrix is so wide, and holds its count where there is room.
_CELLS: Final = ((12, 44), (25, 28), (50, 18), (100, 10))
_SMALLEST_CELL = 8
_COUNTED_FROM = 26
_LONGEST = 18  # letters of a class's name


def line_chart(series: Mapping[str, Sequence[float]], *, ylabel: str, percent: bool = False) -> str:
    """Values over the epochs, from 1, one line for each name."""
    length = max(len(values) for values in series.values())
    everything = [value for values in series.values() for value in values]
    lowest, highest = min(everything), max(everything)
    if percent and lowest == highest:  # so that two ticks are left below 100 %
        lowest, highest = max(0.0, lowest - 0.05), max(0.05, highest)
    ticks = nice_ticks(lowest, highest)
    if percent:
        ticks = [tick for tick in ticks if tick <= 1 + 1e-9]
    low, high = min(ticks[0], *everything), max(ticks[-1], *everything)
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)) if len(ticks) > 1 else 2

    def x(epoch: int) -> float:
        share = (epoch - 1) / (length - 1) if length > 1 else 0.5
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = []
    for tick in ticks:
        words = f"{tick:.{max(0, digits - 2)}%}" if percent else f"{tick:.{digits}f}"
        parts.append(_line(_LEFT, y(tick), _WIDTH - _RIGHT, y(tick), "grid"))
        parts.append(_text(_LEFT - 8, y(tick) + 4, words, "end"))
    for epoch in _epoch_ticks(length):
        parts.append(_text(x(epoch), _HEIGHT - _BOTTOM + 18, str(epoch), "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "epoch", "middle"))
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        points = [(x(epoch), y(value)) for epoch, value in enumerate(values, start=1)]
        path = " ".join(f"{across:.1f},{down:.1f}" for across, down in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>')
        if len(points) <= _MARKERS_UP_TO:
            for (across, down), value in zip(points, values, strict=True):
                parts.append(
                    f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3.2" fill="{colour}">'
                    f"<title>{escape(name)}: {value:.4g}</title></circle>"
                )
    return _legend(series, ylabel) + _svg(_WIDTH, _HEIGHT, parts, label=f"{ylabel} by epoch")


def nice_ticks(low: float, high: float) -> list[float]:
    """Some five round numbers that enclose [low, high], 1, 2 or 5 times a power of ten apart."""
    span = high - low or abs(high) / 5 or 1.0
    rough = span / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def reliability_chart(found: Calibration) -> str:
    """Accuracy against score, bin by bin, and below it how many images each bin holds."""
    side, left, top, strip = 300, 46, 8, 44
    parts = []
    for index in range(0, 11, 2):
        place, words = index / 10, f"{index / 10:.1f}"
        down = top + side * (1 - place)
        parts.append(_line(left, down, left + side, down, "grid"))
        parts.append(_text(left - 8, down + 4, words, "end"))
        parts.append(_text(left + side * place, top + side + strip + 24, words, "middle"))
    most = max((part.images for part in found.bins), default=1)
    for part in found.bins:
        if part.accuracy is None or part.score is None:
            continue
        across, width = left + side * part.low + 1, side * (part.high - part.low) - 2
        title = f"<title>{part.images:,} images, mean score {part.score:.3f}, accuracy {part.accuracy:.3f}</title>"
        height = side * part.accuracy
        parts.append(_rect(across, top + side - height, width, height, "var(--blue)", title))
        claim = top + side * (1 - part.score)
        parts.append(_line(across, claim, across + width, claim, "claim"))
        height = strip * part.images / most
        parts.append(_rect(across, top + side + 6 + strip - height, width, height, "var(--muted)", title))
    parts.append(_line(left, top + side, left + side, top, "ideal"))
    parts.append(_text(left + side / 2, top + side + strip + 44, "score", "middle"))
    return _svg(left + side + 14, top + side + strip + 52, parts, label="accuracy against score")


def confusion_chart(classes: Sequence[ClassResult], confusion: Sequence[Confusion]) -> str:
    """The confusion matrix: a row for each true class, a column for each label, shaded by the row's share."""
    labels = [result.label for result in classes]
    cell = next((width for most, width in _CELLS if len(labels) <= most), _SMALLEST_CELL)
    size = min(13, max(8, cell - 3))
    margin = 30 + 0.62 * size * max(min(len(label), _LONGEST) for label in labels)
    place = {label: index for index, label in enumerate(labels)}
    total = {result.label: result.images for result in classes}
    side = cell * len(labels)
    upright = max(map(len, labels)) * size < cell
    parts = [f'<rect x="{margin}" y="{margin}" width="{side}" height="{side}" class="field"/>']
    for index, label in enumerate(labels):
        middle = margin + (index + 0.5) * cell
        name = escape(_short(label))
        tip = f"<title>{escape(label)}</title>"
        parts.append(
            f'<text x="{margin - 6}" y="{middle + 0.35 * size:.1f}" text-anchor="end" font-size="{size}">'
            f"{tip}{name}</text>"
            f'<text {_column_place(middle, margin - 6, size, upright=upright)} font-size="{size}">{tip}{name}</text>'
        )
    for pair in confusion:
        row, column = place[pair.truth], place[pair.label]
        share = pair.images / total[pair.truth]
        colour = "var(--blue)" if row == column else "var(--red)"
        strength = max(0.14, math.sqrt(share))
        tip = (
            f"<title>{escape(pair.truth)} called {escape(pair.label)}: {pair.images:,} ({share:.1%})</title>"
        )
        left, top = margin + column * cell, margin + row * cell
        parts.append(
            f'<rect x="{left + 0.5}" y="{top + 0.5}" width="{cell - 1}" height="{cell - 1}" '
            f'fill="{colour}" fill-opacity="{strength:.2f}">{tip}</rect>'
        )
        if cell >= _COUNTED_FROM:
            ink = "count on" if strength > 0.6 else "count"
            letter = min(13.0, 1.7 * cell / max(3, len(str(pair.images))))
            parts.append(
                f'<text x="{left + cell / 2}" y="{top + cell / 2 + 0.35 * letter:.1f}" class="{ink}" '
                f'text-anchor="middle" font-size="{letter:.1f}">{pair.images}</text>'
            )
    parts.append(_text(margin + side / 2, 12, "label given", "middle"))
    parts.append(
        f'<text transform="translate(12,{margin + side / 2}) rotate(-90)" text-anchor="middle">true class</text>'
    )
    width = margin + side + 4
    return _svg(width, width, parts, label="confusion matrix", fixed=True)


def _column_place(middle: float, bottom: float, size: float, *, upright: bool) -> str:
    """Where a column's name stands: upright where all are short, else turned."""
    if upright:
        return f'x="{middle}" y="{bottom}" text-anchor="middle"'
    return f'transform="translate({middle + 0.35 * size:.1f},{bottom}) rotate(-90)"'


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"


def _epoch_ticks(length: int) -> list[int]:
    step = next(
        step
        for power in range(6)
        for step in (10**power, 2 * 10**power, 5 * 10**power)
        if length / step <= 10
    )
    return [1] if length == 1 else [epoch for epoch in range(1, length + 1) if epoch % step == 0]


def _legend(names: Mapping[str, object], ylabel: str) -> str:
    keys = "".join(
        f'<span><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in zip(names, COLOURS, strict=False)
    )
    return f'<div class="legend"><b>{escape(ylabel)}</b>{keys}</div>'


def _svg(width: float, height: float, parts: Sequence[str], *, label: str, fixed: bool = False) -> str:
    size = f' style="width:{width:.0f}px"' if fixed else ""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}"{size}>'
        + "".join(parts)
        + "</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _rect(x: float, y: float, width: float, height: float, colour: str, inside: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}">{inside}</rect>'
