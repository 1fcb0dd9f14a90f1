"""The first convolution takes the normalisation over, exactly, at the border too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from shipnet.export.onnx_graph import INPUT, OUTPUT
from shipnet.export.search import runner
from shipnet.export.uint8_input import read_uint8

Step = tuple[str, NDArray[np.float32]]


def by_channel(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


USUAL: list[Step] = [("Sub", by_channel(123.7, 80.2, 20.0)), ("Div", by_channel(58.4, 30.0, 12.5))]


def graph(
    steps: list[Step], *, channels: int = 3, group: int = 1, perm: tuple[int, ...] = (0, 3, 1, 2)
) -> onnx.ModelProto:
    """Cast, transpose, steps, and a padded convolution whose whole output are the logits."""
    kernel = np.random.default_rng(0).normal(size=(6, channels // group, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", [INPUT], ["cast"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["step0"], "transpose", perm=perm),
        *(
            helper.make_node(kind, [f"step{number}", f"c{number}"], [f"step{number + 1}"], f"n{number}")
            for number, (kind, _) in enumerate(steps)
        ),
        helper.make_node(
            "Conv", [f"step{len(steps)}", "kernel", "bias"], [OUTPUT], "conv", pads=[1, 1, 1, 1], group=group
        ),
    ]
    constants = {"kernel": kernel, "bias": np.arange(6, dtype=np.float32)}
    constants |= {f"c{number}": value for number, (_, value) in enumerate(steps)}
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 5, 5, channels])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    return onnx.shape_inference.infer_shapes(proto, strict_mode=True)


@pytest.mark.parametrize(
    ("steps", "channels"),
    [
        (USUAL, 3),
        ([("Div", np.array(255.0, np.float32)), *[(k, v / 255) for k, v in USUAL]], 3),
        ([("Mul", by_channel(0.01, 0.02, -0.03)), ("Add", by_channel(-1.0, 0.5, 2.0))], 3),
        ([("Sub", by_channel(33.3)), ("Div", by_channel(78.6))], 1),
        ([("Sub", by_channel(-400.0, 700.0, 0.0))], 3),  # a mean that no pixel has
        ([("Sub", by_channel(900.0, 900.0, 900.0))], 3),
        ([], 3),
        (USUAL[:1] * 2, 3),
    ],
)
def test_the_values_stay_at_the_border_too(steps: list[Step], channels: int) -> None:
    before = graph(steps, channels=channels)
    after, ranges = read_uint8(before)
    onnx.checker.check_model(after, full_check=True)
    images = np.random.default_rng(1).integers(0, 256, (4, 5, 5, channels), dtype=np.uint8)
    images[0], images[1] = 0, 255
    expected, found = (runner(proto.SerializeToString())(images) for proto in (before, after))
    assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
    assert [node.op_type for node in after.graph.node] == ["DequantizeLinear", "Transpose", "Conv", "Conv"]
    ((low, high),) = set(ranges.values())
    assert (len(ranges), high - low) == (2, 255.0)  # a step of 8 bits is a level of the pixels
    assert -255.0 < low == round(low) <= 0.0


def test_the_zero_point_is_the_mean_pixel() -> None:
    _, ranges = read_uint8(graph(USUAL))
    assert set(ranges.values()) == {(-75.0, 180.0)}


def test_the_channels_are_a_multiple_of_four() -> None:
    for channels, wide in ((1, 4), (3, 4), (4, 8)):
        after, _ = read_uint8(graph([], channels=channels))
        kernels = {tensor.name: tensor.dims for tensor in after.graph.initializer}
        assert kernels[after.graph.node[-1].input[1]][1] == wide


def test_what_is_not_understood_stays_as_it_is() -> None:
    whole_picture = np.full((1, 3, 5, 5), 2.0, np.float32)
    two_readers = graph(USUAL)
    two_readers.graph.output.append(helper.make_tensor_value_info("step1", TensorProto.FLOAT, None))
    turned = graph([])
    turned.graph.node[-1].input[:2] = ["kernel", "step0"]
    for proto in (
        graph([("Sub", whole_picture)]),
        graph([("Div", by_channel(1.0, 0.0, 1.0))]),
        graph([("Mul", by_channel(1.0, 0.0, 1.0))]),
        graph([("Add", np.full((3, 1, 5), 1.0, np.float32))]),
        graph(USUAL, group=3),
        graph([("Mul", np.ones((1, 3, 1, 1), np.float32)), ("Pow", np.array(2.0, np.float32))]),
        two_readers,
        turned,
    ):
        found, ranges = read_uint8(proto)
        assert found is proto
        assert ranges == {}


def test_the_graph_that_was_given_stays(resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]) -> None:
    before = resnet_graph.SerializeToString()
    after, ranges = read_uint8(resnet_graph)
    assert resnet_graph.SerializeToString() == before
    assert ranges
    expected = runner(before)(colours)
    assert (
        np.abs(runner(after.SerializeToString())(colours) - expected).max() <= 1e-5 * np.abs(expected).max()
    )
