"""Reads an ONNX file of any exporter: whole, inside its folder, and refused by name where it is no plain classifier."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, inliner

from shipnet.runtime.errors import ShipnetError, UsageError

from .foreign_config import ForeignConfig
from .foreign_preprocess import Input

Layout = Literal["NCHW", "NHWC"]

OLDEST_OPSET: Final = 7  # that onnxruntime runs
# What the oldest onnxruntime that shipnet supports reads: 1.22.0 refuses opset 23 and IR version 11 (tried out).
NEWEST_OPSET: Final = 22
NEWEST_IR: Final = 10
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")
_MOST_BYTES: Final = 2**31 - 1  # of a protobuf message
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


class OnnxError(ShipnetError):
    """An ONNX file that cannot be read, or one that is no image classifier which can be proved and shipped."""


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
    model, data, digest = _read(path)
    problems = [*_version_problems(model), *_operator_problems(model)]
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
    parameters = sum(_count(tensor) for tensor in _tensors(graph) if _is_float(tensor))
    if not parameters:
        raise OnnxError(f"{path}: holds no weights: expected a trained network")
    return ForeignGraph(
        path=path,
        model=_inlined(model, path),
        as_given=data,
        sha256=digest,
        input=inputs[0].name,
        output=graph.output[0].name,
        layout=layout,
        uint8=uint8,
        shape=shape,
        parameters=parameters,
    )


def nodes_of(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Every node, and those of the graphs inside nodes."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from nodes_of(inner.node)


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs inside a node: branches and loop bodies."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _read(path: Path) -> tuple[ModelProto, bytes, str]:
    """The model with its weights inside, serialised, and the file's sha256."""
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "no such file"
        raise OnnxError(f"{path}: {state}; expected an ONNX file")
    data = path.read_bytes()
    digest = hashlib.sha256(data)
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise OnnxError(f"{path}: is no ONNX file, or damaged: {error}") from error
    if not model.graph.node:
        raise OnnxError(f"{path}: is no ONNX file, or an empty one")
    every = [*_tensors(model.graph), *(t for function in model.functions for t in _inside(function.node))]
    outside = [
        tensor for tensor in every if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
    ]
    if outside:
        files = sorted({_beside(path, tensor) for tensor in outside})
        if sum(file.stat().st_size for file in files) + len(data) > _MOST_BYTES:
            raise OnnxError(f"{path}: is larger than the 2 GB that one ONNX file can hold, weights included")
        for file in files:
            digest.update(file.read_bytes())
        _load(path, outside)
        data = model.SerializeToString()
    return model, data, digest.hexdigest()


def _beside(path: Path, tensor: TensorProto) -> Path:
    """The file that holds a tensor, which must lie in the model's own folder."""
    location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    parts = PurePosixPath(location.replace("\\", "/")).parts
    advice = "lay it beside the model and save the model again, or save it with its weights inside"
    if len(parts) != 1 or parts[0] == ".." or ":" in location:
        raise OnnxError(
            f"{path}: the weights {tensor.name!r} lie at {location!r}, outside its folder: {advice}"
        )
    file = path.parent / parts[0]
    if file.resolve().parent != path.parent.resolve():
        raise OnnxError(
            f"{path}: {location!r}, which holds weights, is a link that leaves the folder: {advice}"
        )
    if not file.is_file():
        raise OnnxError(
            f"{path}: its weights lie in {location!r}, which is not beside it: copy it there, too"
        )
    return file


def _load(path: Path, tensors: list[TensorProto]) -> None:
    """Takes weights that lie beside the model into it."""
    for tensor in tensors:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        with _beside(path, tensor).open("rb") as file:
            file.seek(int(entries.get("offset", 0)))
            tensor.raw_data = file.read(int(entries["length"]) if "length" in entries else -1)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT


def _inlined(model: ModelProto, path: Path) -> ModelProto:
    """The model without local functions, checked."""
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OnnxError(f"{path}: is not valid ONNX: {reason}") from error
    return model


def _version_problems(model: ModelProto) -> Iterator[str]:
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opset = max((opsets.get(domain, 0) for domain in _DEFAULT_DOMAINS), default=0)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        yield (
            f"opset {opset}, expected {OLDEST_OPSET} to {NEWEST_OPSET}, which every onnxruntime that shipnet supports "
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
    if any(tensor.data_type in _HALF for tensor in _tensors(model.graph)):
        yield "its weights are float16: give the float32 graph; shipnet makes fp16 of it and measures what that changes"
    if found := sorted(kinds & _RANDOM):
        yield f"it draws random numbers ({', '.join(found)}): export it for inference"
    if any(node.op_type == "BatchNormalization" and _trains(node) for node in nodes):
        yield "its batch norms are in training mode, so images change each other: call model.eval() before the export"


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
    elif kind.shape.dim[0].dim_value:
        yield (
            f"its batch axis is fixed at {kind.shape.dim[0].dim_value}: export it with a dynamic one "
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
    dims = [dim.dim_value or None for dim in value.type.tensor_type.shape.dim]
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
    size = (height or width, width or height) if height or width else None
    return layout, Input(channels=channels or config.channels or 3, size=size, normalized=not uint8), uint8  # type: ignore[arg-type]


def _tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every constant of a graph: initialisers, and those inside its nodes and their graphs."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _inside(graph.node)


def _inside(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    """The constants inside nodes and their graphs."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for inner in subgraphs(node):
            yield from _tensors(inner)


def _is_float(tensor: TensorProto) -> bool:
    return tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE, *_HALF)


def _count(tensor: TensorProto) -> int:
    total = 1
    for dim in tensor.dims:
        total *= dim
    return total
