"""Charts: ticks that are round, marks where the values are, nothing of a name taken as markup."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from shipnet.runtime.calibration import calibration
from shipnet.runtime.charts import confusion_chart, line_chart, nice_ticks, reliability_chart
from shipnet.runtime.confusion import class_results, confusions


def svg(markup: str) -> ElementTree.Element:
    """The chart as XML, which it must be to be drawn at all."""
    return ElementTree.fromstring(markup[markup.index("<svg") :])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.5, 1.0]),
        (0.02, 2.3, [0.0, 1.0, 2.0, 3.0]),
        (0.93, 0.995, [0.92, 0.94, 0.96, 0.98, 1.0]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.432, 1e6])
def test_one_value_has_ticks_around_it(value: float) -> None:
    ticks = nice_ticks(value, value)
    assert ticks[0] <= value <= ticks[-1]
    assert ticks[0] < ticks[-1]


@pytest.mark.parametrize("epochs", [1, 2, 7, 300])
def test_a_line_passes_through_its_values(epochs: int) -> None:
    values = [2.0 / (epoch + 1) for epoch in range(epochs)]
    drawn = svg(line_chart({"loss": values}, ylabel="Loss"))
    (line,) = drawn.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert len(points) == epochs
    assert all(left[0] < right[0] and left[1] <= right[1] for left, right in pairwise(points))


@pytest.mark.parametrize("value", [0.0, 0.02, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_accuracy_that_never_changes_is_drawn(value: float, epochs: int) -> None:
    markup = line_chart({"a": [value] * epochs}, ylabel="Accuracy", percent=True)
    (line,) = svg(markup).iter("polyline")
    heights = {float(point.split(",")[1]) for point in line.attrib["points"].split()}
    assert len(heights) == 1
    assert 0 < heights.pop() < 300
    assert len(re.findall(r">[\d.]+%<", markup)) >= 2


def test_accuracy_has_no_tick_above_all() -> None:
    ticks = re.findall(r">(\d+)%<", line_chart({"a": [0.51, 0.999]}, ylabel="Accuracy", percent=True))
    assert max(map(int, ticks)) == 100


@pytest.mark.parametrize("count", [2, 12, 13, 40, 100, 120])
def test_a_matrix_of_any_size_has_a_cell_for_each_pair(count: int) -> None:
    labels = [f"class number {index}" for index in range(count)]
    pairs = {(label, label): 9 for label in labels} | {(labels[0], labels[1]): 1}
    drawn = svg(confusion_chart(tuple(class_results(labels, pairs)), confusions(labels, pairs)))
    cells = [part for part in drawn.iter("rect") if part.find("title") is not None]
    assert len(cells) == count + 1
    assert "class number 0 called class number 1: 1 (10.0%)" in [part.findtext("title") for part in cells]
    counts = [part.text for part in drawn.iter("text") if part.text == "9"]
    assert len(counts) == (count if count <= 25 else 0)


def test_names_are_text() -> None:
    labels = ['<b>&"x', "plain"]
    pairs = {(labels[0], labels[1]): 2}
    markup = confusion_chart(tuple(class_results(labels, pairs)), confusions(labels, pairs))
    assert "<b>" not in markup
    assert labels[0] in next(part.text or "" for part in svg(markup).iter("title"))


def test_reliability_draws_accuracy_score_and_count() -> None:
    found = calibration(np.array([0.7, 0.7, 0.9, 0.9]), np.array([True, False, True, True]), bins=5)
    bars = list(svg(reliability_chart(found)).iter("rect"))
    heights = [float(bar.attrib["height"]) for bar in bars if bar.attrib["fill"] == "var(--blue)"]
    assert heights == pytest.approx([150, 300])
    claims = [part for part in svg(reliability_chart(found)).iter("line") if part.attrib["class"] == "claim"]
    assert [float(part.attrib["y1"]) for part in claims] == pytest.approx([8 + 300 * 0.3, 8 + 300 * 0.1])
