"""Lets an 8-bit graph read the pixels as they are: the first convolution takes over the normalisation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .onnx_graph import INPUT

_LEVELS: Final = 255
# Kernels of 8-bit convolutions take channels by fours: MLAS packs no weights of another number.
_ALIGNMENT: Final = 4
_WIDENED: Final = "pixels_widened"
_SIDES: Final = {"Sub": -1.0, "Add": 1.0}


@dataclass(frozen=True, slots=True)
class _Head:
    """The beginning of a graph: cast, transpose, normalisation, convolution.

    Attributes:
        nodes: all but the convolution.
        transpose: from NHWC to NCHW.
        conv: the first one.
        scale, offset: float64 (C,); the convolution reads `scale * pixel + offset`.
    """

    nodes: tuple[onnx.NodeProto, ...]
    transpose: onnx.NodeProto
    conv: onnx.NodeProto
    scale: NDArray[np.float64]
    offset: NDArray[np.float64]


def read_uint8(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, tuple[float, float]]]:
    """Moves the normalisation into the weights of the first convolution, so that no pixel is rounded.

    The pixels stand for themselves less a whole number, their zero point, which the border is padded with. Since a
    channel's mean is not that number, a channel of ones is added: its weights bring the rest of the mean, inside the
    picture and not on the border, as before. A convolution of one pixel hands the channels on and adds that
    channel, in 8 bits without any rounding.

    Args:
        model: the fp32 graph as `prepared` gives it.

    Returns:
        A graph that computes the same, and the ranges of the tensors that hold pixels, in which a step of 8 bits is a
        level of the pixels. The graph as it is, and no ranges, where it does not begin with cast, transpose,
        a normalisation by constants, and a convolution in one group.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    head = _head(model.graph, constants)
    if head is None:
        return model, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    zero_point = int(np.clip(np.round(np.mean(-head.offset / head.scale)), 0, _LEVELS - 1))
    _replace(copy.graph, head, constants, zero_point)
    del copy.graph.value_info[:]
    limits = (-float(zero_point), float(_LEVELS - zero_point))
    inferred = onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    return inferred, {head.transpose.output[0]: limits, _WIDENED: limits}


def _head(graph: onnx.GraphProto, constants: dict[str, NDArray[np.float32]]) -> _Head | None:
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)

    def reader(name: str) -> onnx.NodeProto | None:
        if uses[name] != 1:
            return None
        return next((node for node in graph.node if name in node.input), None)

    cast = reader(INPUT)
    if cast is None or cast.op_type != "Cast" or _attribute(cast, "to") != TensorProto.FLOAT:
        return None
    transpose = reader(cast.output[0])
    if transpose is None or transpose.op_type != "Transpose" or _attribute(transpose, "perm") != [0, 3, 1, 2]:
        return None
    nodes, name = [cast, transpose], transpose.output[0]
    steps = []
    while (node := reader(name)) is not None and node.op_type in ("Sub", "Div", "Add", "Mul"):
        other = [constants.get(item) for item in node.input if item != name]
        if len(other) != 1 or other[0] is None or (node.op_type in ("Sub", "Div") and node.input[0] != name):
            return None
        steps.append((node.op_type, other[0].astype(np.float64)))
        nodes.append(node)
        name = node.output[0]
    if node is None or not _plain_convolution(node, name, constants):
        return None
    affine = _affine(steps, channels=constants[node.input[1]].shape[1])
    return None if affine is None else _Head(tuple(nodes), transpose, node, *affine)


def _plain_convolution(node: onnx.NodeProto, name: str, constants: dict[str, NDArray[np.float32]]) -> bool:
    return (
        node.op_type == "Conv"
        and node.input[0] == name
        and all(item in constants for item in node.input[1:])
        and (_attribute(node, "group") or 1) == 1
        and constants[node.input[1]].ndim == 4
    )


def _affine(
    steps: list[tuple[str, NDArray[np.float64]]], *, channels: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """What elementwise steps do to each channel, as a factor and a summand; None where it is not by channel."""
    scale, offset = np.ones(channels), np.zeros(channels)
    for kind, value in steps:
        if value.size not in (1, channels) or (value.size > 1 and value.shape[-3:] != (channels, 1, 1)):
            return None
        flat = value.reshape(-1)
        if kind in _SIDES:
            offset = offset + _SIDES[kind] * flat
        else:
            factor = flat if kind == "Mul" else 1.0 / np.where(flat == 0.0, np.nan, flat)
            scale, offset = scale * factor, offset * factor
    if not np.isfinite([scale, offset]).all() or not scale.all():
        return None
    return scale, offset


def _replace(
    graph: onnx.GraphProto, head: _Head, constants: dict[str, NDArray[np.float32]], zero_point: int
) -> None:
    """Puts the new beginning in the place of the old one; `head` may be another copy's."""
    channels = len(head.scale)
    weight = constants[head.conv.input[1]].astype(np.float64)
    wide = np.zeros((weight.shape[0], _aligned(channels + 1), *weight.shape[2:]))
    one = float(_LEVELS - zero_point)
    by_channel = (1, channels, 1, 1)
    wide[:, :channels] = weight * head.scale.reshape(by_channel)
    rest = head.offset + head.scale * zero_point
    wide[:, channels] = (weight * rest.reshape(by_channel)).sum(axis=1) / one
    hand_on = np.eye(wide.shape[1], channels).reshape(-1, channels, 1, 1)
    ones = np.zeros(wide.shape[1])
    ones[channels] = one
    names = {part: f"{_WIDENED}.{part}" for part in ("scale", "zero_point", "weight", "bias", "real", "conv")}
    for part, value in (
        ("scale", np.float32(1.0)),
        ("zero_point", np.uint8(zero_point)),
        ("weight", hand_on.astype(np.float32)),
        ("bias", ones.astype(np.float32)),
        ("conv", wide.astype(np.float32)),
    ):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), names[part]))
    pixels = head.transpose.output[0]
    gone = {node.name for node in head.nodes}
    rest_of_graph = [node for node in graph.node if node.name not in gone]
    conv = next(node for node in rest_of_graph if node.name == head.conv.name)
    conv.input[0], conv.input[1] = _WIDENED, names["conv"]
    del graph.node[:]
    graph.node.extend(
        [
            helper.make_node(
                "DequantizeLinear",
                [INPUT, names["scale"], names["zero_point"]],
                [names["real"]],
                names["real"],
            ),
            helper.make_node("Transpose", [names["real"]], [pixels], head.transpose.name, perm=[0, 3, 1, 2]),
            helper.make_node("Conv", [pixels, names["weight"], names["bias"]], [_WIDENED], _WIDENED),
            *rest_of_graph,
        ]
    )


def _aligned(channels: int) -> int:
    return -(-channels // _ALIGNMENT) * _ALIGNMENT


def _attribute(node: onnx.NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), None)
