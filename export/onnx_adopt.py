"""A foreign ONNX graph takes the bundle's form: uint8 NHWC images in, logits out, nothing in it but the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from shipnet.runtime import PreprocessSpec
from shipnet.runtime.manifest import Normalization

from .onnx_file import OnnxError, nodes_of, subgraphs
from .onnx_graph import INPUT, MAX_IR, OUTPUT, check_rules, strip
from .onnx_reader import ForeignGraph

_OLDEST_IR: Final = 4  # initialisers need not be inputs since then
_TO_NCHW: Final = (0, 3, 1, 2)
_TO_NHWC: Final = (0, 2, 3, 1)
_FLOATS: Final = f"{INPUT}.float"
_NCHW: Final = f"{INPUT}.nchw"
_CENTRED: Final = f"{INPUT}.centred"
_NORMALIZED: Final = f"{INPUT}.normalized"
_NHWC: Final = f"{INPUT}.nhwc"
_MEAN: Final = "pixel_mean"
_STD: Final = "pixel_std"
_RESERVED: Final = (INPUT, OUTPUT, _FLOATS, _NCHW, _CENTRED, _NORMALIZED, _NHWC, _MEAN, _STD)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a graph ends.

    Attributes:
        logits: the value that holds the logits.
        dropped: what stood behind it, "Softmax" or "LogSoftmax"; None: nothing.
    """

    logits: str
    dropped: str | None


def ending(found: ForeignGraph) -> Ending:
    """Where the logits are: the output, or what goes into a softmax that is the last operator.

    Raises:
        OnnxError: the graph ends in something that gives no logits of one class out of many.
    """
    makers = {name: node for node in found.model.graph.node for name in node.output}
    last = makers.get(found.output)
    while last is not None and last.op_type == "Identity":
        last = makers.get(last.input[0])
    if last is None:
        raise OnnxError(f"{found.path}: its output {found.output!r} is no operator's result")
    if last.op_type in ("Sigmoid", "HardSigmoid"):
        raise OnnxError(
            f"{found.path}: ends in {last.op_type}, whose outputs are not one class out of many: "
            "export the network without it, if its classes exclude each other"
        )
    if last.op_type not in ("Softmax", "LogSoftmax"):
        return Ending(found.output, None)
    axis = next((attribute.i for attribute in last.attribute if attribute.name == "axis"), None)
    if axis not in (None, 1, -1):
        raise OnnxError(
            f"{found.path}: ends in {last.op_type} over axis {axis}, expected the last: export it again"
        )
    return Ending(last.input[0], last.op_type)


def with_logits(found: ForeignGraph, end: Ending) -> bytes:
    """The model as it was given; where something stands behind its logits, with them as a second output.

    Then its local functions are inlined, as the logits may be a value inside one.
    """
    if end.dropped is None:
        return found.as_given
    model = ModelProto()
    model.CopyFrom(found.model)
    model.graph.output.append(helper.make_tensor_value_info(end.logits, TensorProto.FLOAT, None))
    return bytes(model.SerializeToString())


def adopt(
    found: ForeignGraph,
    end: Ending,
    *,
    spec: PreprocessSpec,
    normalization: Normalization | None,
    classes: int,
    metadata: Mapping[str, str],
) -> bytes:
    """Gives a graph the bundle's input and output, and takes out what it need not tell.

    Graphs get the prefix of shipnet's own networks: Cast, Transpose, and for those that take floats Sub and Div.
    Behind it, what leads back to NHWC and to uint8 where a graph takes them, unless it begins with the opposite.
    Graphs that take uint8 NHWC stay as they are where a cast is their input's only consumer.

    Args:
        found: the graph.
        end: where its logits are.
        spec: of the pixels.
        normalization: that goes in front; None for graphs that take uint8.
        classes: how many logits there are.
        metadata: what the model says of itself in `metadata_props`.

    Returns:
        A serialised ONNX model: input "images", output "logits", weights inside.

    Raises:
        OnnxError: it is not valid ONNX in this form.
        ParityError: it breaks the bundle's rules.
    """
    model = ModelProto()
    model.CopyFrom(found.model)
    graph = model.graph
    renamed = _out_of_the_way(graph)
    source, logits = renamed.get(found.input, found.input), renamed.get(end.logits, end.logits)
    _rename(graph, renamed)
    _set_outputs(graph, logits, classes)
    first = _users(graph, source)
    own_prefix = not (found.uint8 and found.layout == "NHWC" and len(first) == 1 and _casts(first[0]))
    if own_prefix:
        _put_in_front(graph, source, found, normalization)
    else:
        _rename(graph, {source: INPUT})
    _set_input(graph, spec)
    _clean(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OnnxError(
            f"{found.path}: does not fit images of {spec.height} x {spec.width} x {spec.channels}: {reason}"
        ) from error
    check_rules(model, own_prefix=own_prefix)
    return bytes(model.SerializeToString())


def _put_in_front(
    graph: GraphProto, source: str, found: ForeignGraph, normalization: Normalization | None
) -> None:
    """Puts the prefix in front of the value that was the graph's input, and what leads back to what that takes."""
    nodes = [
        helper.make_node("Cast", [INPUT], [_FLOATS], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", [_FLOATS], [_NCHW], name="to_nchw", perm=_TO_NCHW),
    ]
    if normalization is not None:
        nodes += [
            helper.make_node("Sub", [_NCHW, _MEAN], [_CENTRED], name="centre"),
            helper.make_node("Div", [_CENTRED, _STD], [_NORMALIZED], name="normalize"),
        ]
        graph.initializer.extend(
            numpy_helper.from_array(_in_pixels(values), name)
            for name, values in ((_MEAN, normalization.mean), (_STD, normalization.std))
        )
    source, uint8, nhwc = _take_off(graph, source, found)
    if nhwc:
        ready = nodes[-1].output[0]
        nodes.append(helper.make_node("Transpose", [ready], [_NHWC], name="to_nhwc", perm=_TO_NHWC))
    if uint8:  # there and back without loss
        ready = nodes[-1].output[0]
        nodes.append(helper.make_node("Cast", [ready], [source], name="to_uint8", to=TensorProto.UINT8))
    nodes[-1].output[0] = source
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])


def _take_off(graph: GraphProto, source: str, found: ForeignGraph) -> tuple[str, bool, bool]:
    """Takes what the prefix does anyway off the graph's beginning: its own casts and transposes.

    Returns:
        The value that the graph begins with now, whether it is uint8, and whether it is NHWC.
    """
    uint8, nhwc = found.uint8, found.layout == "NHWC"
    while users := _users(graph, source):
        if uint8 and all(_casts(node) for node in users):
            uint8 = False
        elif nhwc and all(_transposes(node) for node in users):
            nhwc = False
        else:
            break
        source = users[0].output[0]
        for node in users:
            graph.node.remove(node)
            _rename(graph, {node.output[0]: source})
    return source, uint8, nhwc


def _users(graph: GraphProto, name: str) -> list[NodeProto]:
    """The nodes that take a value; none where one of them stands in an inner graph or gives the logits."""
    users = [node for node in nodes_of(graph.node) if name in node.input]
    inner = any(node not in graph.node or OUTPUT in node.output for node in users)
    return [] if inner else users


def _casts(node: NodeProto) -> bool:
    """Whether it is a cast to float32."""
    return node.op_type == "Cast" and any(
        item.name == "to" and item.i == TensorProto.FLOAT for item in node.attribute
    )


def _transposes(node: NodeProto) -> bool:
    """Whether it makes NCHW of NHWC."""
    return node.op_type == "Transpose" and any(
        item.name == "perm" and tuple(item.ints) == _TO_NCHW for item in node.attribute
    )


def _out_of_the_way(graph: GraphProto) -> dict[str, str]:
    """New names, that nothing has, for values that have the names of the prefix, the input or the output."""
    taken = {tensor.name for tensor in graph.initializer}
    for node in nodes_of(graph.node):
        taken.update((*node.input, *node.output))
    renamed = {}
    for name in _RESERVED:
        renamed[name] = f"{name}.given"
        while renamed[name] in taken:
            renamed[name] += "_"
    return renamed


def _in_pixels(values: tuple[float, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Float32 (1, C, 1, 1), in units of pixel values (0 to 255)."""
    return np.multiply(values, 255.0, dtype=np.float64).astype(np.float32).reshape(1, -1, 1, 1)


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames values, in the graphs inside nodes, too."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inner in subgraphs(node):
            _rename(inner, names)
    for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)


def _set_outputs(graph: GraphProto, logits: str, classes: int) -> None:
    """The logits become the one output, and nodes that nothing needs any more go."""
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes]))
    _rename(graph, {logits: OUTPUT})
    while True:
        used = {name for node in nodes_of(graph.node) for name in node.input} | {OUTPUT}
        used |= {value.name for node in nodes_of(graph.node) for g in subgraphs(node) for value in g.output}
        idle = [node for node in graph.node if not used.intersection(node.output)]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)


def _set_input(graph: GraphProto, spec: PreprocessSpec) -> None:
    del graph.input[:]
    shape: list[str | int | None] = ["batch", spec.height, spec.width, spec.channels]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))


def _clean(model: ModelProto) -> None:
    """Leaves the network alone: no notes of the exporting process, no unused constants, no foreign operator sets."""
    strip(model)
    graph = model.graph
    graph.name, model.domain = "main_graph", ""
    del graph.value_info[:], graph.quantization_annotation[:], model.training_info[:]
    for node in nodes_of(graph.node):
        node.domain = ""
    used = {name for node in nodes_of(graph.node) for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", opset))
    model.ir_version = min(max(model.ir_version, _OLDEST_IR), MAX_IR)
