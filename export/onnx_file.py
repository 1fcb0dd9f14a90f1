"""An ONNX file of any exporter in memory: its weights inside, from its own folder alone, its functions inlined."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, inliner

from shipnet.runtime.errors import ShipnetError

_MOST_BYTES: Final = 2**31 - 1  # of a protobuf message


class OnnxError(ShipnetError):
    """An ONNX file that cannot be read, or one that is no image classifier which can be proved and shipped."""


def read_model(path: Path) -> tuple[ModelProto, bytes, str]:
    """Reads a file, and the files beside it that hold its weights.

    Returns:
        The model with its weights inside, the same serialised, and the sha256 of all that was read: the file, then
        the others in the order of their names.

    Raises:
        OnnxError: it cannot be read, or points outside its folder.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "no such file"
        raise OnnxError(f"{path}: {state}; expected an ONNX file")
    data = _bytes(path)
    digest = hashlib.sha256(data)
    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError) as error:
        raise OnnxError(f"{path}: is no ONNX file, or damaged: {error}") from error
    if not model.graph.node:
        raise OnnxError(f"{path}: is no ONNX file, or an empty one")
    every = [*tensors_of(model.graph), *(t for function in model.functions for t in _inside(function.node))]
    outside = [
        tensor for tensor in every if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data
    ]
    if outside:
        files = sorted({_beside(path, tensor) for tensor in outside})
        if sum(file.stat().st_size for file in files) + len(data) > _MOST_BYTES:
            raise OnnxError(f"{path}: is larger than the 2 GB that one ONNX file can hold, weights included")
        contents = {file: _bytes(file) for file in files}
        for file in files:
            digest.update(contents[file])
        for tensor in outside:
            _take_in(tensor, contents[_beside(path, tensor)], path)
        data = model.SerializeToString()
    return model, data, digest.hexdigest()


def inlined(model: ModelProto, path: Path) -> ModelProto:
    """The model without local functions, checked.

    Raises:
        OnnxError: it is not valid ONNX.
    """
    try:
        if model.functions:
            model = inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise OnnxError(f"{path}: is not valid ONNX: {reason}") from error
    return model


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


def tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
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
            yield from tensors_of(inner)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OnnxError(f"{path}: cannot be read: {error.strerror or error}") from error


def _beside(path: Path, tensor: TensorProto) -> Path:
    """The file that holds a tensor, which must lie in the model's own folder or below it."""
    location = _entries(tensor).get("location", "")
    advice = "copy that file beside the model and save the model again, or save it with its weights inside"
    folder = path.parent.resolve()
    try:
        file = (folder / location).resolve()
    except (OSError, ValueError) as error:  # a loop of links, a NUL byte
        raise OnnxError(
            f"{path}: the weights {tensor.name!r} lie at {location!r}, which is no path: {advice}"
        ) from error
    if Path(location).is_absolute() or not file.is_relative_to(folder):
        link = " through a link" if (folder / location).is_symlink() else ""
        raise OnnxError(
            f"{path}: the weights {tensor.name!r} lie at {location!r}, which leaves its folder{link}: {advice}"
        )
    if not file.is_file():
        raise OnnxError(
            f"{path}: the weights {tensor.name!r} lie at {location!r}, which is not beside it: copy it there, too"
        )
    return file


def _take_in(tensor: TensorProto, content: bytes, path: Path) -> None:
    """Puts weights that lie beside the model into it."""
    entries = _entries(tensor)
    try:
        first = int(entries.get("offset", 0))
        length = int(entries.get("length", len(content) - first))
    except ValueError as error:
        raise OnnxError(
            f"{path}: the weights {tensor.name!r} have no place in their file: {error}"
        ) from error
    if not 0 <= first <= first + length <= len(content):
        raise OnnxError(
            f"{path}: the weights {tensor.name!r} are bytes {first} to {first + length} of "
            f"{entries['location']!r}, which has {len(content)}: it is cut short, or another model's: copy it again"
        )
    tensor.raw_data = content[first : first + length]
    del tensor.external_data[:]
    tensor.data_location = TensorProto.DEFAULT


def _entries(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
