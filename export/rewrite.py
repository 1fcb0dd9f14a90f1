"""Small changes to an ONNX graph that every further precision needs, none of which changes what it computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from shipnet.runtime import ShipnetError
from shipnet.runtime.manifest import Target

# The nodes that hold a network's weights. What lies before the first of them is the prefix.
WEIGHTED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Per-channel scales have an axis since this opset.
OLDEST_OPSET: Final = 13
# Operators that TensorRT's ONNX parser refuses, of 8.4 and of 10 alike.
# Source: https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md
_NOT_IN_TENSORRT: Final = frozenset(
    {
        *("BitShift", "Compress", "ConcatFromSequence", "ConvInteger", "Det", "DynamicQuantizeLinear"),
        *("MatMulInteger", "MaxRoiPool", "MaxUnpool", "Multinomial", "NegativeLogLikelihoodLoss"),
        *("QLinearConv", "QLinearMatMul", "SequenceAt", "SequenceConstruct", "SequenceEmpty"),
        *("SequenceErase", "SequenceInsert", "SequenceLength", "SoftmaxCrossEntropyLoss"),
        *("SplitToSequence", "StringNormalizer", "TfIdfVectorizer", "Unique"),
    }
)


class CannotMakeError(ShipnetError):
    """A precision that cannot be made of this graph, here. The export goes on without it and says why."""


def prepared(model: bytes) -> onnx.ModelProto:
    """A graph ready to be given another precision: nodes named, batch norms folded, shapes inferred.

    Args:
        model: a serialised fp32 ONNX model.

    Raises:
        CannotMakeError: its opset is too old, or its shapes contradict each other.
    """
    proto = onnx.load_from_string(model)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OLDEST_OPSET:
        raise CannotMakeError(
            f"the graph has opset {opset}, expected {OLDEST_OPSET} or newer: export it again with a newer one"
        )
    _name_nodes(proto.graph)
    fold_batch_norms(proto.graph)
    del proto.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise CannotMakeError(f"the graph's shapes cannot be inferred: {error}") from error


def fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Merges each batch norm into the convolution right before it, so that it costs and rounds nothing.

    Source: B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node.input)
    uses.update(value.name for value in graph.output)
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        conv = makers.get(norm.input[0])
        if conv is None or conv.op_type != "Conv" or uses[norm.input[0]] != 1 or len(norm.output) != 1:
            continue
        if not {*norm.input[1:], *conv.input[1:]} <= constants.keys():
            continue
        weight, bias = _folded([constants[name] for name in conv.input[1:]], norm, constants)
        names = [f"{norm.output[0]}.folded_weight", f"{norm.output[0]}.folded_bias"]
        for name, value in zip(names, (weight, bias), strict=True):
            graph.initializer.append(numpy_helper.from_array(value, name))
        conv.input[:] = [conv.input[0], *names]
        conv.output[0] = norm.output[0]
        graph.node.remove(norm)
    drop_unused(graph)


def _folded(
    conv: list[TensorProto], norm: onnx.NodeProto, constants: dict[str, TensorProto]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The weight and the bias of a convolution and the batch norm after it, as one convolution."""
    gamma, beta, mean, variance = (
        numpy_helper.to_array(constants[name]).astype(np.float64) for name in norm.input[1:5]
    )
    epsilon = next((item.f for item in norm.attribute if item.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    weight = numpy_helper.to_array(conv[0]).astype(np.float64)
    bias = numpy_helper.to_array(conv[1]).astype(np.float64) if len(conv) > 1 else np.zeros_like(mean)
    weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return weight.astype(np.float32), ((bias - mean) * scale + beta).astype(np.float32)


def norms_as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turns each batch norm of images that no convolution lies right before into a convolution of one pixel a channel.

    It computes the same. A CPU has 8-bit kernels for a convolution and none for a batch norm, which would make
    what lies around it go through floats.

    Args:
        model: the fp32 graph as `prepared` gives it; it stays as it is.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    images = {value.name for value in graph.value_info if len(value.type.tensor_type.shape.dim) == 4}
    for norm in graph.node:
        if norm.op_type != "BatchNormalization" or norm.input[0] not in images or len(norm.output) != 1:
            continue
        if not {*norm.input[1:]} <= constants.keys():
            continue
        channels = constants[norm.input[1]].dims[0]
        ones = numpy_helper.from_array(np.ones((channels, 1, 1, 1), np.float32))
        weight, bias = _folded([ones], norm, constants)
        names = [f"{norm.output[0]}.norm_weight", f"{norm.output[0]}.norm_bias"]
        for name, value in zip(names, (weight, bias), strict=True):
            graph.initializer.append(numpy_helper.from_array(value, name))
        conv = onnx.helper.make_node("Conv", [norm.input[0], *names], norm.output, norm.name, group=channels)
        norm.CopyFrom(conv)
    drop_unused(graph)
    return copy


def drop_unused(graph: onnx.GraphProto) -> None:
    """Removes the constants that no node reads."""
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def prefix(graph: onnx.GraphProto) -> list[str]:
    """The names of the nodes that no weighted node lies before: cast, transpose and normalisation."""
    behind: set[str] = set()
    names = []
    for node in graph.node:  # in topological order
        if node.op_type in WEIGHTED or behind.intersection(node.input):
            behind.update(node.output)
        else:
            names.append(node.name)
    return names


def float_tensors(model: onnx.ModelProto, nodes: Collection[str]) -> list[str]:
    """The float32 tensors that go in and out of some nodes, constants left out, in the graph's order."""
    graph = model.graph
    floats = {
        value.name
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    } - {tensor.name for tensor in graph.initializer}
    named = (name for node in graph.node if node.name in nodes for name in (*node.input, *node.output))
    return list(dict.fromkeys(name for name in named if name in floats))


def lacking(model: onnx.ModelProto, target: Target) -> list[str]:
    """The operators of a graph that a target is known not to have."""
    if target != "tensorrt":
        return []
    return sorted(
        {
            node.op_type
            for node in model.graph.node
            if node.domain not in ("", "ai.onnx") or node.op_type in _NOT_IN_TENSORRT
        }
    )


def finished(model: onnx.ModelProto) -> bytes:
    """A rewritten model, checked and serialised, without the operator sets that none of its nodes needs.

    Raises:
        CannotMakeError: it is not valid ONNX.
    """
    needed = {node.domain for node in model.graph.node} | {""}
    for entry in [entry for entry in model.opset_import if entry.domain not in needed]:
        model.opset_import.remove(entry)
    drop_unused(model.graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CannotMakeError(f"the converter gave an invalid graph: {error}") from error
    return bytes(model.SerializeToString())


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Gives every node a name of its own; converters know nodes by their names."""
    taken: set[str] = set()
    for number, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{number}"
        while node.name in taken:
            node.name += "_"
        taken.add(node.name)
