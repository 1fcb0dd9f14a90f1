"""Ranges of activations: exact extremes, honest histograms, bounded memory, and images that cannot be read."""

from __future__ import annotations

import dataclasses
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image

import small_resnet
from shipnet.export import ExportConfig
from shipnet.export.calibration import METHODS, Histogram, calibrate, measure, stratified
from shipnet.export.int8 import Recipe, ranged_tensors
from shipnet.export.rewrite import CannotMakeError, prepared
from shipnet.export.source import Source, from_run
from shipnet.export.variants import fp32_candidate
from shipnet.train import ImageSet, load_run


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


def filled(values: NDArray[np.float32], *, parts: int = 1) -> Histogram:
    histogram = Histogram()
    for part in np.array_split(values, parts):
        histogram.add(part)
    return histogram


NORMAL = np.random.default_rng(0).normal(size=200_000).astype(np.float32)


def test_the_extremes_are_exact_and_zero_lies_between() -> None:
    assert filled(np.array([-0.3, 0.7], np.float32)).range("minmax") == pytest.approx((-0.3, 0.7))
    for method in METHODS:
        low, high = filled(np.abs(NORMAL) + 3).range(method)
        assert low == 0.0 < high
        low, high = filled(-np.abs(NORMAL) - 3).range(method)
        assert low < 0.0 == high


@pytest.mark.parametrize("first", [1e-6, 1.0, 100.0])
def test_no_value_is_lost_where_later_ones_are_larger(first: float) -> None:
    histogram = Histogram()
    histogram.add(np.zeros(10, np.float32))
    histogram.add(np.array([first, -first / 2], np.float32))
    histogram.add(NORMAL * np.float32(37.0))
    assert histogram.counts.sum() == 10 + 2 + len(NORMAL)
    assert histogram.top >= max(-histogram.low, histogram.high)
    assert (histogram.low, histogram.high) == (float((NORMAL * 37).min()), float((NORMAL * 37).max()))


def test_the_order_and_the_parts_do_not_matter() -> None:
    together, apart = filled(NORMAL), filled(NORMAL[::-1], parts=7)
    assert np.array_equal(together.counts, apart.counts)


def test_the_percentile_is_the_data_s() -> None:
    low, high = filled(NORMAL, parts=3).range("percentile")
    expected = np.quantile(NORMAL, (0.00005, 0.99995))
    assert (low, high) == pytest.approx(expected, abs=2 * 8 / 2048 + 0.02)


def test_an_outlier_is_clipped_by_all_but_minmax() -> None:
    histogram = filled(np.append(NORMAL, np.float32(400.0)))
    assert histogram.range("minmax")[1] == 400.0
    assert histogram.range("percentile")[1] < 6.0
    assert histogram.range("entropy")[1] < 40.0


def test_entropy_keeps_what_is_spread_evenly() -> None:
    even = np.random.default_rng(1).uniform(-5, 5, 500_000).astype(np.float32)
    low, high = filled(even).range("entropy")
    assert (low, high) == pytest.approx((-5.0, 5.0), abs=0.1)


def test_what_is_always_zero_has_an_empty_range() -> None:
    histogram = filled(np.zeros((2, 3, 4, 5), np.float32))
    assert {histogram.range(method) for method in METHODS} == {(0.0, 0.0)}
    assert histogram.counts.sum() == 120


def test_values_next_to_zero_are_no_trouble() -> None:
    """Weight decay leaves layers whose activations are subnormal."""
    histogram = filled(np.array([1e-40, -3e-42, 0.0], np.float32))
    for method in METHODS:
        low, high = histogram.range(method)
        assert low == pytest.approx(-3e-42, rel=0.1)
        assert high == pytest.approx(1e-40, rel=0.1)
    histogram.add(NORMAL)
    assert histogram.counts.sum() == 3 + len(NORMAL)


def resnet_tensors() -> tuple[onnx.ModelProto, list[str]]:
    model = small_resnet.resnet_graph()
    return model, ranged_tensors(model, Recipe())


def test_the_ranges_are_those_of_all_images_at_once() -> None:
    model, tensors = resnet_tensors()
    colours = small_resnet.colours()
    whole = measure(model, tensors, [colours])
    parts = measure(model, tensors, (colours[i : i + 5] for i in range(0, len(colours), 5)))
    for name in tensors:
        assert (whole[name].low, whole[name].high) == pytest.approx(
            (parts[name].low, parts[name].high), rel=1e-6
        )
        assert whole[name].counts.sum() == parts[name].counts.sum()


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    model, tensors = resnet_tensors()
    colours = np.random.default_rng(2).integers(0, 256, (16, 24, 24, 3), dtype=np.uint8)
    activations = sum(array.nbytes for array in outputs(model, tensors, colours))

    def batches(count: int) -> Iterator[NDArray[np.uint8]]:
        for _ in range(count):
            yield colours

    def peak(count: int) -> int:
        tracemalloc.start()
        measure(model, tensors, batches(count))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(4), peak(64)
    assert many < 1.1 * few
    assert many < 0.2 * 64 * activations  # what it would be if activations were kept


def outputs(
    model: onnx.ModelProto, tensors: list[str], images: NDArray[np.uint8]
) -> list[NDArray[np.float32]]:
    from shipnet.export.calibration import expose

    return list(expose(model, tensors).run(tensors, {"images": images}))


def test_a_value_that_is_no_number_is_refused_and_named() -> None:
    model, tensors = resnet_tensors()
    for tensor in model.graph.initializer:
        if tensor.name.endswith("head.bias"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(4, np.inf, np.float32), tensor.name))
    with pytest.raises(CannotMakeError, match="logits is NaN or infinite on calibration images"):
        measure(model, tensors, [small_resnet.colours()[:2]])


def test_classes_are_drawn_evenly() -> None:
    labels = np.array([0] * 500 + [1] * 30 + [2] * 5)
    drawn = stratified(labels, 60, seed=3)
    assert np.bincount(labels[drawn]).tolist() == [28, 27, 5]
    assert np.array_equal(drawn, np.unique(drawn))
    assert np.array_equal(drawn, stratified(labels, 60, seed=3))
    assert not np.array_equal(drawn, stratified(labels, 60, seed=4))
    assert np.array_equal(stratified(labels, 10_000, seed=3), np.arange(535))
    assert len(stratified(np.empty(0, np.int64), 10, seed=3)) == 0


@pytest.fixture(scope="module")
def source(digits_run: Path) -> Source:
    return from_run(load_run(digits_run), ExportConfig(), dataset=None, on_progress=quiet)


@pytest.fixture(scope="module")
def graph(source: Source) -> onnx.ModelProto:
    return prepared(fp32_candidate(source, ExportConfig(), quiet).model)


@pytest.fixture
def on_files(source: Source, tmp_path: Path) -> Source:
    """The first 70 training digits as files."""
    paths = []
    for index in range(70):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(source.calibration.sources[index][:, :, 0]).save(paths[-1])
    files = ImageSet(tuple(path.name for path in paths), source.calibration.labels[:70], tuple(paths))
    return dataclasses.replace(source, calibration=files)


def ranges(graph: onnx.ModelProto, source: Source, images: int = 512):  # type: ignore[no-untyped-def]
    return calibrate(graph, ranged_tensors(graph, Recipe()), source, images=images, on_progress=quiet)


def test_damaged_images_are_passed_over_and_named(
    graph: onnx.ModelProto, on_files: Source, caplog: pytest.LogCaptureFixture
) -> None:
    whole = ranges(graph, on_files)
    assert (whole.images, whole.unreadable_images, caplog.messages) == (70, 0, [])
    files = on_files.calibration.sources
    files[3].write_bytes(files[3].read_bytes()[:40])
    files[66].unlink()
    found = ranges(graph, on_files)
    assert (found.images, found.unreadable_images) == (68, 2)
    assert [Path(files[i]).name in text for i, text in zip((3, 66), caplog.messages, strict=True)] == [
        True,
        True,
    ]
    left = on_files.calibration.subset(np.array([i for i in range(70) if i not in (3, 66)]))
    assert found.ranges == ranges(graph, dataclasses.replace(on_files, calibration=left)).ranges


def test_without_one_image_that_can_be_read_there_is_no_range(
    graph: onnx.ModelProto, on_files: Source
) -> None:
    for path in on_files.calibration.sources:
        path.write_bytes(b"no image")
    with pytest.raises(
        CannotMakeError,
        match=r"there is no calibration image: 70 cannot be read, such as 0\.png: .*training images",
    ):
        ranges(graph, on_files)
    empty = dataclasses.replace(on_files, calibration=on_files.calibration.subset(np.empty(0, np.int64)))
    with pytest.raises(
        CannotMakeError, match="there is no calibration image: ranges are measured on training"
    ):
        ranges(graph, empty)


def test_a_class_may_be_missing(graph: onnx.ModelProto, source: Source) -> None:
    others = source.calibration.subset(np.flatnonzero(source.calibration.labels != 4))
    found = ranges(graph, dataclasses.replace(source, calibration=others), images=40)
    assert found.images == 40
    assert all(low <= 0.0 <= high for limits in found.ranges.values() for low, high in limits.values())


def test_so_many_images_are_measured_as_were_asked_for(graph: onnx.ModelProto, source: Source) -> None:
    assert ranges(graph, source, images=7).images == 7
