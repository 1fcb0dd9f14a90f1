"""The network in 8-bit integers: a QDQ graph from the fp32 one and the ranges of its activations."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper

from .calibration import Ranges
from .rewrite import WEIGHTED, finished, float_tensors, prefix
from .uint8_input import read_uint8

# Operators with an 8-bit kernel, or that pass 8 bits on as they are.
_CPU: Final = frozenset(
    {*WEIGHTED, "Add", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat"}
    | {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "LeakyRelu", "Sigmoid", "Mul"}
)
# TensorRT fuses a weighted layer with what follows it where only its inputs are quantised.
# Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
_TENSORRT: Final = frozenset({*WEIGHTED, "Add", "MaxPool"})
_SUMS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add")
# What may stand between the last layer and the logits without changing a value.
_RESHAPES: Final = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_NEXT_TO_NOTHING: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Recipe:
    """How activations and weights become 8 bits.

    Attributes:
        symmetric: activations are int8 around zero, as TensorRT wants them; otherwise uint8.
        reduce_range: weights have 7 bits, so that sums of two products fit into 16 bits.
    """

    symmetric: bool = False
    reduce_range: bool = False


def quantizable(model: onnx.ModelProto, recipe: Recipe) -> list[onnx.NodeProto]:
    """The nodes that can run in 8 bits, the prefix left out: its input is uint8 already."""
    first, kinds = set(prefix(model.graph)), _TENSORRT if recipe.symmetric else _CPU
    return [node for node in model.graph.node if node.op_type in kinds and node.name not in first]


def ranged_tensors(model: onnx.ModelProto, recipe: Recipe) -> list[str]:
    """The tensors whose ranges `quantize` needs."""
    return float_tensors(model, {node.name for node in quantizable(model, recipe)})


def quantize(
    model: onnx.ModelProto, ranges: Ranges, recipe: Recipe, *, fp32_nodes: Collection[str] = ()
) -> bytes:
    """Inserts QuantizeLinear and DequantizeLinear; weights are int8, one scale a channel. The logits stay float32.

    Args:
        model: the fp32 graph as `prepared` gives it.
        ranges: of `ranged_tensors`.
        recipe: how.
        fp32_nodes: names of nodes that stay in fp32 and read floats. What makes these then computes in floats
            too, though with 8-bit weights.

    Returns:
        A serialised ONNX model, valid.

    Raises:
        CannotMakeError: the quantiser gave an invalid graph.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    pixel_ranges: Ranges = {}
    if not recipe.symmetric:
        copy, pixel_ranges = read_uint8(copy)
    nodes = [node for node in quantizable(copy, recipe) if node.name not in fp32_nodes]
    _wake_dead_channels(copy.graph)
    limits = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in {**ranges, **pixel_ranges}.items()
    }
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            True,
            recipe.reduce_range,
            QuantType.QInt8,
            QuantType.QInt8 if recipe.symmetric else QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, limits),
            [node.name for node in nodes],
            [],
            sorted({node.op_type for node in nodes}),
            _extra_options(recipe),
        )
        quantizer.quantize_model()
    _read_floats(quantizer.model.graph(), model.graph, fp32_nodes)
    _float_logits(quantizer.model.graph())
    quantizer.model.topological_sort()
    return finished(quantizer.model.model)


def _extra_options(recipe: Recipe) -> dict[str, Any]:
    options: dict[str, Any] = {"WeightSymmetric": True, "ActivationSymmetric": recipe.symmetric}
    if recipe.symmetric:
        # TensorRT takes no int32 constant, and no pair that two layers share.
        options |= {"QuantizeBias": False, "DedicatedQDQPair": True}
        options |= {"OpTypesToExcludeOutputQuantization": list(_SUMS)}
    return options


def _wake_dead_channels(graph: onnx.GraphProto) -> None:
    """Gives a channel whose weights are all zero one that is next to nothing.

    The step of a bias is the step of its channel's weights times that of the activations. Of zeros the quantiser makes
    steps of 1, so that the bias would be rounded to whole steps of the activations.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3 or node.input[1] not in constants:
            continue
        tensor = constants[node.input[1]]
        weight = numpy_helper.to_array(tensor).copy()
        by_column = node.op_type == "Gemm" and not any(
            item.name == "transB" and item.i for item in node.attribute
        )
        rows = weight.T if by_column else weight.reshape(len(weight), -1)
        dead = ~rows.any(axis=1)
        if dead.any():
            rows[dead, 0] = _NEXT_TO_NOTHING * (np.abs(rows).max() or 1.0)
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))


def _read_floats(graph: onnx.GraphProto, exact: onnx.GraphProto, names: Collection[str]) -> None:
    """Lets nodes that stay in fp32 read activations that no pair has rounded, whoever made them.

    The quantiser merges a ReLU into what lies before it and lets the rounding clip; such a reader gets its ReLU back.
    """
    makers = {name: node for node in graph.node for name in node.output}
    merged = {node.output[0]: node for node in exact.node if node.op_type in ("Relu", "Clip")}
    added: dict[str, onnx.NodeProto] = {}
    for node in [node for node in graph.node if node.name in names]:
        for place, name in enumerate(node.input):
            back = makers.get(name)
            there = (
                makers.get(back.input[0]) if back is not None and back.op_type == "DequantizeLinear" else None
            )
            if there is None or there.op_type != "QuantizeLinear":
                continue
            source = there.input[0]
            activation = merged.get(source)
            if activation is not None and makers[source].op_type != activation.op_type:
                again = onnx.NodeProto()
                again.CopyFrom(activation)
                again.input[0], again.output[0] = source, f"{source}_float"
                added[source] = again
                source = again.output[0]
            node.input[place] = source
    graph.node.extend(added.values())
    _drop_unread_pairs(graph)


def _drop_unread_pairs(graph: onnx.GraphProto) -> None:
    """Removes pairs whose result nobody reads."""
    outputs = {value.name for value in graph.output}
    while True:
        read = {name for node in graph.node for name in node.input} | outputs
        unread = [
            node
            for node in graph.node
            if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.output[0] not in read
        ]
        if not unread:
            return
        for node in unread:
            graph.node.remove(node)


def _float_logits(graph: onnx.GraphProto) -> None:
    """Takes the pairs off the way from the last layer to the logits, which would round near ties away."""
    makers = {name: node for node in graph.node for name in node.output}
    last = graph.output[0].name
    node = makers.get(last)
    while node is not None:
        quantizer = makers.get(node.input[0])
        if node.op_type == "DequantizeLinear" and quantizer and quantizer.op_type == "QuantizeLinear":
            source = quantizer.input[0]
            maker = makers.get(source)
            if maker is None or not _only_feeds(graph, source, quantizer):
                return
            maker.output[list(maker.output).index(source)] = node.output[0]
            graph.node.remove(node)
            if not any(quantizer.output[0] in other.input for other in graph.node):
                graph.node.remove(quantizer)
            makers[node.output[0]] = node = maker
        elif node.op_type in _RESHAPES:
            node = makers.get(node.input[0])
        else:
            return


def _only_feeds(graph: onnx.GraphProto, tensor: str, node: onnx.NodeProto) -> bool:
    return all(other is node or tensor not in other.input for other in graph.node)


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises on the root logger; what it advises was done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
