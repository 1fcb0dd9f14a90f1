"""How int8 is chosen: on the selection half, the method that agrees best, and the worst layers back in fp32."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import small_resnet
from shipnet.export import ExportConfig
from shipnet.export.calibration import METHODS, Calibration, measure
from shipnet.export.int8 import Recipe, quantize, ranged_tensors
from shipnet.export.rewrite import norms_as_convolutions
from shipnet.export.search import (
    Agreement,
    QuantizationReport,
    Search,
    Selection,
    rank_layers,
    runner,
    search,
    select,
)
from shipnet.export.source import Source, from_run
from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.proofs import Budget
from shipnet.train import load_run

RECIPE = Recipe()
LOOSE = Budget(max_relative_difference=None, max_flip_rate=0.5, max_top1_drop=0.5)
TIGHT = Budget(max_relative_difference=None, max_flip_rate=0.03, max_top1_drop=0.03)


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return norms_as_convolutions(small_resnet.resnet_graph())


@pytest.fixture(scope="module")
def selection() -> Selection:
    images = small_resnet.colours()
    expected = runner(small_resnet.resnet_onnx())(images)
    return Selection(images=images, labels=expected.argmax(1), expected=expected)


@pytest.fixture(scope="module")
def calibration(model: onnx.ModelProto) -> Calibration:
    found = measure(model, ranged_tensors(model, RECIPE), [small_resnet.colours()])
    return Calibration(
        ranges={method: {name: item.range(method) for name, item in found.items()} for method in METHODS},
        images=96,
        unreadable_images=0,
    )


def spoiled(calibration: Calibration, tensor: str, by: float) -> Calibration:
    """The range of one tensor is a hundredth of what it should be, say, with every method."""
    return dataclasses.replace(
        calibration,
        ranges={
            method: {
                name: (low * by, high * by) if name == tensor else (low, high)
                for name, (low, high) in limits.items()
            }
            for method, limits in calibration.ranges.items()
        },
    )


def found(
    model: onnx.ModelProto, calibration: Calibration, selection: Selection, budget: Budget
) -> tuple[bytes, Search]:
    return search(
        model,
        calibration,
        selection,
        recipe=RECIPE,
        budget=budget,
        precision="int8-cpu",
        on_progress=quiet,
    )


def last_layer(model: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in reversed(model.graph.node) if node.op_type == "Gemm")


def test_where_the_budget_holds_at_once_no_layer_is_tried(
    model: onnx.ModelProto, calibration: Calibration, selection: Selection
) -> None:
    graph, how = found(model, calibration, selection, LOOSE)
    assert (how.steps, how.holds, how.images, how.calibration_images) == ((), True, 96, 96)
    assert {tried.method for tried in how.methods} == set(METHODS)
    best = min(how.methods, key=lambda tried: (tried.flips, tried.difference))
    assert (how.method, how.flips, how.difference) == (best.method, best.flips, best.difference)
    agreement = selection.agreement(runner(graph))
    assert (agreement.flips, agreement.difference) == (how.flips, how.difference)
    assert graph == quantize(model, calibration.ranges[how.method], RECIPE)


def test_a_layer_that_reads_a_spoiled_range_is_the_worst(
    model: onnx.ModelProto, calibration: Calibration, selection: Selection
) -> None:
    """It is what rounds; in fp32 it reads what was not rounded."""
    readers = {name: node for node in reversed(model.graph.node) for name in node.input}
    spoilt = [
        *[node.output[0] for node in model.graph.node if node.op_type == "Relu"][1:],
        last_layer(model).input[0],
    ]
    for tensor in spoilt:
        broken = spoiled(calibration, tensor, 0.1).ranges["minmax"]
        worst = rank_layers(model, broken, selection, RECIPE)[0].name
        assert worst == readers[tensor].name
        whole, mended = (quantize(model, broken, RECIPE, fp32_nodes=names) for names in ((), [worst]))
        before, after = (selection.agreement(runner(graph)).difference for graph in (whole, mended))
        assert after < 0.5 * before


def test_a_spoiled_range_that_only_a_pool_reads_is_mended_too(
    model: onnx.ModelProto, calibration: Calibration, selection: Selection
) -> None:
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    _, how = found(model, spoiled(calibration, pool.input[0], 0.1), selection, TIGHT)
    assert min(tried.flips for tried in how.methods) > 40
    assert how.flips < 20


def test_the_worst_layers_go_back_to_fp32_until_the_budget_holds(
    model: onnx.ModelProto, calibration: Calibration, selection: Selection
) -> None:
    mean = last_layer(model).input[0]
    broken = spoiled(calibration, mean, 0.05)
    before = selection.agreement(runner(quantize(model, broken.ranges["minmax"], RECIPE)))
    assert before.flips > 0.1 * len(selection.labels)
    graph, how = found(model, broken, selection, TIGHT)
    assert how.holds
    assert how.flips <= 0.03 * len(selection.labels)
    kept = [step for step in how.steps if step.kept]
    assert last_layer(model).name in {step.node for step in kept}
    assert all((s.flips_after, s.difference_after) < (s.flips_before, s.difference_before) for s in kept)
    for step, following in zip(how.steps, how.steps[1:], strict=False):
        expected = (
            (step.flips_after, step.difference_after)
            if step.kept
            else (step.flips_before, step.difference_before)
        )
        assert (following.flips_before, following.difference_before) == expected
    assert graph == quantize(
        model, broken.ranges[how.method], RECIPE, fp32_nodes=[step.node for step in kept]
    )
    assert not how.steps[-1].kept or how.steps[-1].flips_after == how.flips


def test_a_budget_that_nothing_holds_is_reported(
    model: onnx.ModelProto, calibration: Calibration, selection: Selection
) -> None:
    """Decisions are asked of the graph that no int8 graph, and not fp32 itself, gives."""
    other = dataclasses.replace(selection, expected=np.roll(selection.expected, 1, axis=1))
    _, how = found(model, calibration, other, TIGHT)
    assert not how.holds
    kinds = Counter(step.op_type for step in how.steps)
    assert kinds == {"Conv": 6, "Add": 1, "MaxPool": 1, "Gemm": 1}
    decode(encode(QuantizationReport(searches=(how,))), QuantizationReport, where="report")


def test_an_agreement_counts_flips_and_losses() -> None:
    expected = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]] * 10
    labels = np.array([0, 1, 2, 0, 1])  # the network is right about the first three
    given = expected.copy()
    given[0], given[3] = given[0][[1, 0, 2, 3]], given[3][[3, 1, 2, 0]]  # one lost, one gained
    given[1] = given[1][[0, 2, 1, 3]]  # another lost
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    selection = Selection(images=images, labels=labels, expected=expected)
    agreement = selection.agreement(lambda batch: given[batch.reshape(-1)])
    assert agreement.flips == 3
    assert agreement.top1_drop == pytest.approx(1 / 5)
    assert agreement.difference == pytest.approx(6 * 10 / 20 / 10)
    assert selection.keeps(
        Budget(max_relative_difference=None, max_flip_rate=0.6, max_top1_drop=0.2), agreement
    )
    assert not selection.keeps(
        Budget(max_relative_difference=None, max_flip_rate=0.59, max_top1_drop=0.2), agreement
    )
    assert not selection.keeps(
        Budget(max_relative_difference=None, max_flip_rate=0.6, max_top1_drop=0.19), agreement
    )


def test_what_is_no_number_is_a_flip_and_the_worst_difference() -> None:
    expected = np.eye(3, dtype=np.float32)
    selection = Selection(images=np.zeros((3, 1, 1, 1), np.uint8), labels=np.arange(3), expected=expected)
    given: NDArray[np.float32] = expected.copy()
    given[2, 2] = np.nan  # argmax alone would call it the right label
    agreement = selection.agreement(lambda batch: given)
    assert (agreement.flips, agreement.top1_drop) == (1, pytest.approx(1 / 3))
    assert agreement.rank > Agreement(flips=1, top1_drop=0.0, difference=10.0).rank


def test_the_selection_is_of_the_selection_half(digits_run: Path) -> None:
    source: Source = from_run(load_run(digits_run), ExportConfig(), dataset=None, on_progress=quiet)
    chosen = select(source, quiet)
    assert len(chosen.labels) == len(source.selection)
    assert np.array_equal(np.sort(chosen.labels), np.sort(source.valid.labels[source.selection]))
    evidence = {source.valid.sources[index].tobytes() for index in source.evidence}
    selected = {source.valid.sources[index].tobytes() for index in source.selection}
    assert {image.tobytes() for image in chosen.images} <= selected
    assert not {image.tobytes() for image in chosen.images} & (evidence - selected)
    assert np.array_equal(chosen.expected, source.reference(chosen.images)) or np.allclose(
        chosen.expected, source.reference(chosen.images), atol=1e-4
    )
