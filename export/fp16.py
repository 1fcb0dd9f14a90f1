"""The network in 16-bit floating point, for GPUs; what 16 bits cannot hold stays in 32."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .calibration import measure
from .parity import Images
from .rewrite import finished, float_tensors, prefix

# They square, exponentiate or sum over many values.
_FRAGILE: Final = frozenset(
    {
        *("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Softplus", "InstanceNormalization"),
        *("LayerNormalization", "GroupNormalization", "LpNormalization", "LRN", "ReduceL1", "ReduceL2"),
        *("ReduceSum", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"),
    }
)
_LARGEST: Final = float(np.finfo(np.float16).max)
_SMALLEST_NORMAL: Final = float(np.finfo(np.float16).smallest_normal)
# Other images have larger activations than those that were measured.
_HEADROOM: Final = 8.0


def to_fp16(model: onnx.ModelProto, batches: Iterable[Images]) -> bytes:
    """Converts a graph; uint8 input, float32 logits and the prefix stay as they are.

    Args:
        model: the fp32 graph as `prepared` gives it.
        batches: uint8 (N, H, W, C) each, real images that show how large activations get.

    Returns:
        A serialised ONNX model, valid.

    Raises:
        CannotMakeError: the converter gave an invalid graph, or activations are not finite.
    """
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    converted = convert_float_to_float16(
        copy,
        keep_io_types=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FRAGILE],
        node_block_list=[*prefix(model.graph), *fragile_nodes(model, batches)],
    )
    del converted.graph.value_info[:]
    _join_fp32(converted.graph)
    ONNXModel(converted).topological_sort()
    return finished(converted)


def _join_fp32(graph: onnx.GraphProto) -> None:
    """Lets neighbours that stay in fp32 hand values on as they are, and the last of them the logits.

    The converter casts to 16 bits and back between them, and calls "..._cast_to_fp16" what goes into its casts.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    outputs = {value.name for value in graph.output}
    for back in [node for node in casts.values() if node.attribute[0].i == TensorProto.FLOAT]:
        there = casts.get(back.input[0])
        if there is None or not there.input[0].endswith("_cast_to_fp16"):
            continue
        wide, narrow = there.input[0], back.output[0]
        if narrow in outputs:
            back.output[0] = f"{narrow}_rounded"
            _rename(graph, wide, narrow)
        else:
            _rename(graph, narrow, wide, made=False)
    while unused := _unused_casts(graph):
        for node in unused:
            graph.node.remove(node)


def _rename(graph: onnx.GraphProto, old: str, new: str, *, made: bool = True) -> None:
    """Lets every node read `new` for `old`, and its maker make it where `made`."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        if made:
            node.output[:] = [new if name == old else name for name in node.output]


def _unused_casts(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    return [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]


def fragile_nodes(model: onnx.ModelProto, batches: Iterable[Images]) -> list[str]:
    """The names of nodes whose constants or activations 16 bits cannot hold, the prefix left out.

    That is a constant above 65,504; a batch norm's constant so small that it would lose digits; an
    activation above an eighth of 65,504 on the images given.
    """
    graph = model.graph
    first = set(prefix(graph))
    nodes = [node for node in graph.node if node.name not in first]
    tensors = float_tensors(model, {node.name for node in nodes})
    peaks = {name: max(-found.low, found.high) for name, found in measure(model, tensors, batches).items()}
    large = {name for name, peak in peaks.items() if peak > _LARGEST / _HEADROOM}
    overflowing, vanishing = _unfit_constants(graph)
    return [
        node.name
        for node in nodes
        if not (large | overflowing).isdisjoint((*node.input, *node.output))
        or (node.op_type == "BatchNormalization" and not vanishing.isdisjoint(node.input))
    ]


def _unfit_constants(graph: onnx.GraphProto) -> tuple[set[str], set[str]]:
    """The float constants that overflow, and those with a value so small that it loses digits."""
    overflowing, vanishing = set(), set()
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        sizes = np.abs(numpy_helper.to_array(tensor))
        if sizes.max(initial=0.0) > _LARGEST:
            overflowing.add(tensor.name)
        if ((sizes > 0) & (sizes < _SMALLEST_NORMAL)).any():
            vanishing.add(tensor.name)
    return overflowing, vanishing
