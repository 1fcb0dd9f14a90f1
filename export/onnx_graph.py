"""The network as an ONNX model: exported, cleaned of what it need not tell, and checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from shipnet.runtime import ParityError

# The newest opset that the exporter writes without converting, and that every onnxruntime since 1.14 reads.
OPSET: Final = 18
# The newest that the oldest onnxruntime of the extra `cpu`, 1.22.0, opens: it refuses IR 11 and opset 23.
MAX_OPSET: Final = 22
MAX_IR: Final = 10
INPUT: Final = "images"
OUTPUT: Final = "logits"
MAX_BATCH: Final = 65_536


def to_onnx(network: nn.Module, images: NDArray[np.uint8], *, metadata: Mapping[str, str]) -> bytes:
    """Exports a network to one self-contained ONNX model with a dynamic batch axis.

    Args:
        network: uint8 (N, H, W, C) to float32 logits (N, num_classes), in eval mode.
        images: uint8 (N, H, W, C), N >= 2, real images to trace with.
        metadata: what the model says of itself in `metadata_props`.

    Returns:
        A serialised ONNX model: input "images", output "logits", weights inside.

    Raises:
        ParityError: the exporter gave a graph that breaks the bundle's rules.
    """
    model = _export(network, images).model_proto
    strip(model)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    check_rules(model)
    return bytes(model.SerializeToString())


def exported_program(network: nn.Module, images: NDArray[np.uint8]) -> torch.export.ExportedProgram:
    """What `to_onnx` makes the graph of: the values of the graph are named after this program's nodes.

    Args:
        network: as `to_onnx` took it.
        images: uint8 (N, H, W, C), N >= 2.

    Raises:
        ParityError: the exporter gave no model.
    """
    program = _export(network, images).exported_program
    if program is None:
        raise ParityError("the ONNX exporter kept no program")
    return program


def versions(model: bytes) -> tuple[int, int]:
    """A serialised model's opset of the default domain, and its IR version.

    Raises:
        ParityError: one of them is newer than the oldest onnxruntime that a bundle is meant for can read.
    """
    proto = onnx.load_from_string(model)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset > MAX_OPSET or proto.ir_version > MAX_IR:
        raise ParityError(
            f"the ONNX graph has opset {opset} and IR version {proto.ir_version}, but a bundle is read by every "
            f"onnxruntime from 1.22.0 on, which goes up to opset {MAX_OPSET} and IR version {MAX_IR}: "
            "export it with an older opset"
        )
    return opset, int(proto.ir_version)


def _export(network: nn.Module, images: NDArray[np.uint8]) -> torch.onnx.ONNXProgram:
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            network,
            (torch.from_numpy(images),),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    if program is None:
        raise ParityError("the ONNX exporter gave no model")
    return program


def strip(model: onnx.ModelProto) -> None:
    """Removes stack traces and scopes of the exporting process: they hold local paths."""
    del model.metadata_props[:]
    model.doc_string = ""
    _strip_graph(model.graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    for item in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        attribute.doc_string = ""
        if attribute.HasField("t"):
            attribute.t.doc_string = ""
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            _strip_graph(inner)


def check_rules(model: onnx.ModelProto, *, own_prefix: bool = True) -> None:
    """Refuses a graph that TensorRT or a quantiser would misread.

    A uint8 input is allowed there only when a cast is its only consumer; normalisation follows the transpose.

    Args:
        model: a whole model.
        own_prefix: whether the prefix is shipnet's; otherwise the graph took uint8 NHWC images already.

    Raises:
        ParityError: it breaks a rule.
    """
    graph = model.graph
    problems = []
    consumers = [node.op_type for node in graph.node if INPUT in node.input]
    if consumers != ["Cast"]:
        problems.append(f"the input feeds {consumers}, expected one Cast")
    if own_prefix and [node.op_type for node in graph.node[:2]] != ["Cast", "Transpose"]:
        problems.append("the graph does not begin with Cast and Transpose")
    if any(tensor.external_data for tensor in graph.initializer):
        problems.append("weights lie outside the file")
    for value, kind in ((graph.input, "input"), (graph.output, "output")):
        if len(value) != 1:
            problems.append(f"{len(value)} {kind}s, expected one")
        elif not value[0].type.tensor_type.shape.dim[0].dim_param:
            problems.append(f"the {kind}'s batch axis is fixed")
    if problems:
        raise ParityError(f"the exported ONNX graph breaks the bundle's rules: {'; '.join(problems)}")
