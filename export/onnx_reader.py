"""Reads an ONNX file of any exporter: whole, inside its folder, and refused by name where it is no plain classifier."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from shipnet.runtime.errors import UsageError

from .foreign_config import ForeignConfig
from .foreign_preprocess import SMALL_SIDE, Input
from .onnx_file import OnnxError, inlined, nodes_of, read_model, tensors_of
from .onnx_graph import MAX_OPSET

Layout = Literal["NCHW", "NHWC"]

OLDEST_OPSET: Final = 7  # that onnxruntime runs
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_QUANTIZED: Final = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"),
    )
)
_RANDOM: Final = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
)
_HALF: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class ForeignGraph:
    """An ONNX file, read.

    Attributes:
        path: for messages.
        model: with its weights inside and its local functions inlined; not to be changed.
        as_given: the same, serialised before anything was inlined but the weights.
        sha256: of the file, and of the files of its weights where they lie beside it, in the order of their names.
        input, output: their names.
        layout, uint8: of the input.
        shape: what the input says of channels and size.
        parameters: numbers in floating-point weights.
    """

    path: Path
    model: ModelProto
    as_given: bytes
    sha256: str
    input: str
    output: str
    layout: Layout
    uint8: bool
    shape: Input
    parameters: int


def read_graph(path: Path, config: ForeignConfig) -> ForeignGraph:
    """Reads and checks a foreign ONNX file.

    Args:
        path: the file.
        config: `layout` and `channels` are taken where the input's shape leaves them open.

    Raises:
        OnnxError: it cannot be read, points outside its folder, or is no float32 classifier with one input of
            images and one output.
        UsageError: the configuration contradicts it, or must say more.
    """
    model, data, digest = read_model(path)
    problems = [*_version_problems(model), *_operator_problems(model), *_weight_problems(model.graph)]
    graph = model.graph
    inside = {tensor.name for tensor in graph.initializer}  # IR version 3 lists them as inputs, too
    inputs = [value for value in graph.input if value.name not in inside]
    for values, kind, expected in (
        (inputs, "inputs", "the images"),
        (graph.output, "outputs", "the logits"),
    ):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            problems.append(f"{len(values)} {kind} ({names}): export it with one, {expected}")
    if not problems:
        problems += [*_input_problems(inputs[0]), *_output_problems(graph.output[0])]
    if problems:
        raise OnnxError(f"{path}: {'; '.join(problems)}")
    layout, shape, uint8 = _shape(inputs[0], config, path)
    parameters = sum(_count(tensor) for tensor in tensors_of(graph) if _is_float(tensor))
    if not parameters:
        raise OnnxError(f"{path}: holds no weights: expected a trained network")
    return ForeignGraph(
        path=path,
        model=inlined(model, path),
        as_given=data,
        sha256=digest,
        input=inputs[0].name,
        output=graph.output[0].name,
        layout=layout,
        uint8=uint8,
        shape=shape,
        parameters=parameters,
    )


def _version_problems(model: ModelProto) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = max((opsets.get(domain, 0) for domain in _DEFAULT_DOMAINS), default=0)
    if not OLDEST_OPSET <= opset <= MAX_OPSET:
        yield (
            f"opset {opset}, expected {OLDEST_OPSET} to {MAX_OPSET}, which every onnxruntime that shipnet supports "
            "reads: export it again, such as with opset_version=18"
        )


def _operator_problems(model: ModelProto) -> Iterator[str]:
    """Operators that make a graph something else than the float32 network it should be."""
    functions = {(function.domain, function.name) for function in model.functions}
    nodes = [
        *nodes_of(model.graph.node),
        *(n for function in model.functions for n in nodes_of(function.node)),
    ]
    custom = sorted(
        {
            f"{node.domain}.{node.op_type}"
            for node in nodes
            if node.domain not in _DEFAULT_DOMAINS and (node.domain, node.op_type) not in functions
        }
    )
    if custom:
        yield f"operators outside the ONNX standard ({', '.join(custom)}): export it with standard ones alone"
    kinds = {node.op_type for node in nodes}
    if found := sorted(kinds & _QUANTIZED):
        yield (
            f"it is quantised ({', '.join(found)}): give the float32 graph; shipnet makes int8 of it and measures what "
            "that changes"
        )
    if any(tensor.data_type in _HALF for tensor in tensors_of(model.graph)):
        yield "its weights are float16: give the float32 graph; shipnet makes fp16 of it and measures what that changes"
    if found := sorted(kinds & _RANDOM):
        yield f"it draws random numbers ({', '.join(found)}): export it for inference"
    if any(node.op_type == "BatchNormalization" and _trains(node) for node in nodes):
        yield "its batch norms are in training mode, so images change each other: call model.eval() before the export"


def _weight_problems(graph: GraphProto) -> Iterator[str]:
    """Weights that are cut short, and numbers that are none; infinite bounds are usual."""
    for tensor in tensors_of(graph):
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            continue
        try:
            broken = int(np.isnan(numpy_helper.to_array(tensor)).sum())
        except ValueError as error:
            yield f"its weights {tensor.name!r} are damaged ({error}): export it again"
            continue
        if broken:
            yield f"its weights {tensor.name!r} hold {broken} NaN of {_count(tensor)} numbers: export a sound network"


def _trains(node: NodeProto) -> bool:
    mode = next((attribute.i for attribute in node.attribute if attribute.name == "training_mode"), 0)
    return bool(mode) or len([name for name in node.output if name]) > 1


def _input_problems(value: onnx.ValueInfoProto) -> Iterator[str]:
    kind = value.type.tensor_type
    if kind.elem_type not in (TensorProto.FLOAT, TensorProto.UINT8):
        name = TensorProto.DataType.Name(kind.elem_type).lower()
        yield f"its input {value.name!r} takes {name}, expected float32 or uint8: export the network in float32"
    if len(kind.shape.dim) != 4:
        yield f"its input {value.name!r} has {len(kind.shape.dim)} axes, expected 4: a batch of images"
    elif (fixed := _length(kind.shape.dim[0])) is not None:
        yield (
            f"its batch axis is fixed at {fixed}: export it with a dynamic one "
            "(torch.onnx.export: dynamic_shapes, or dynamic_axes={'input': {0: 'batch'}} with dynamo=False; "
            "tf2onnx: an input signature with None)"
        )


def _output_problems(value: onnx.ValueInfoProto) -> Iterator[str]:
    kind = value.type.tensor_type.elem_type
    if kind != TensorProto.FLOAT:
        name = TensorProto.DataType.Name(kind).lower()
        yield (
            f"its output {value.name!r} gives {name}, expected float32 logits: "
            + ("leave ArgMax out of the graph" if "int" in name else "export the network in float32")
        )


def _shape(value: onnx.ValueInfoProto, config: ForeignConfig, path: Path) -> tuple[Layout, Input, bool]:
    """Which axis is which, as far as the shape says it."""
    dims = [_length(dim) for dim in value.type.tensor_type.shape.dim]
    uint8 = value.type.tensor_type.elem_type == TensorProto.UINT8
    possible = [layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if dims[axis] in (1, 3)]
    shown = " x ".join("?" if dim is None else str(dim) for dim in dims)
    if config.layout is None and len(possible) != 1:
        raise UsageError(
            f"{path}: the shape of its input, {shown}, does not say where the channels are: give --layout"
        )
    layout: Layout = config.layout or possible[0]  # type: ignore[assignment]
    channels = dims[1 if layout == "NCHW" else 3]
    if channels is None and config.channels is None:
        raise UsageError(
            f"{path}: the shape of its input, {shown}, leaves the channels open: give --channels"
        )
    if channels not in (None, 1, 3) or config.channels not in (None, channels or config.channels):
        asked = f", but channels is {config.channels}" if config.channels else ""
        raise UsageError(
            f"{path}: as {layout} its input, {shown}, has {channels} channels{asked}; expected 1 for grey or 3 for RGB"
        )
    height, width = dims[2:] if layout == "NCHW" else dims[1:3]
    side = height or width
    size = (height or side, width or side) if side else None
    shape = Input(
        channels=channels or config.channels or 3,
        size=size,
        normalized=not uint8,
        photographs=size is None or min(size) >= SMALL_SIDE,
    )
    return layout, shape, uint8


def _length(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    """Of an axis; None where it is dynamic, for which some exporters write -1."""
    return dim.dim_value if dim.dim_value > 0 else None


def _is_float(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, *_HALF)


def _count(tensor: TensorProto) -> int:
    total = 1
    for dim in tensor.dims:
        total *= dim
    return total
