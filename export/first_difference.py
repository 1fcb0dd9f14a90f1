"""Which layer of an ONNX graph is the first that does not compute what PyTorch computes there?

Every layer is run by itself, on PyTorch's own values of its inputs: so rounding does not add up from layer to
layer, and what is wrong in front of a layer is not held against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import fx, nn

from shipnet.runtime.errors import require
from shipnet.train import Deployable

from .onnx_graph import INPUT, OUTPUT
from .parity import Images
from .parity_report import FirstDifference

Array = NDArray[np.float32]
# Of a layer's scale. Rounding within one layer of ResNet-18 and ResNet-50 at 224 pixels stayed below 3e-6.
TOLERANCE: Final = 2e-5
_LARGEST = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)
_SELF: Final = "L__self__"  # begins every key of an exported node's module stack


@dataclass(frozen=True, slots=True)
class _Layer:
    """A value that both sides compute, and who computes it.

    Attributes:
        value: its name in the ONNX graph.
        source: its name in PyTorch's exported program, the same but for the graph's output.
        node: of the ONNX graph.
        layers, operations, weights: as in `FirstDifference`.
    """

    value: str
    source: str
    node: onnx.NodeProto
    layers: tuple[str, ...]
    operations: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(slots=True)
class _Worst:
    """The largest difference of a layer so far."""

    scale: float = _TINY
    difference: float = 0.0
    image: int = 0
    place: tuple[int, ...] = ()
    expected: float = 0.0
    found: float = 0.0

    def add(self, image: int, expected: Array, found: Array) -> None:
        self.scale = max(self.scale, float(np.abs(expected).max()))
        with np.errstate(over="ignore", invalid="ignore"):
            difference = np.abs(found - expected)
        difference = np.where(np.isfinite(difference), difference, _LARGEST)
        place = np.unravel_index(int(difference.argmax()), difference.shape)
        if difference[place] > self.difference:
            self.difference, self.image = float(difference[place]), image
            self.place = tuple(int(index) for index in place[1:])
            self.expected, self.found = float(expected[place]), float(found[place])


def first_difference(
    model: bytes,
    network: nn.Module,
    *,
    program: torch.export.ExportedProgram,
    images: Images,
    indices: Sequence[int],
    tolerance: float = TOLERANCE,
) -> FirstDifference | None:
    """Runs every layer of a graph by itself on the CPU and names the first that is not PyTorch's.

    Args:
        model: a serialised ONNX model that `to_onnx` made of the network, or that should be it.
        network: the validated one, uint8 (N, H, W, C) to float32 logits, in evaluation mode, on the CPU.
        program: as `exported_program` gives it for the network.
        images: uint8 (N, H, W, C), N >= 1, on which the graph was seen to differ.
        indices: of these images in the validation images' order.
        tolerance: a layer's largest absolute difference over the largest absolute value of its output.

    Returns:
        The first difference, or None where every layer by itself agrees: then small differences of many layers
        add up, or the engine changes the graph when it optimises it.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    proto = onnx.load_from_string(model)
    layers = tuple(_layers(proto.graph, program.graph, network))
    session = _cut(proto, layers)
    worst = [_Worst() for _ in layers]
    for image, index in zip(images, indices, strict=True):
        expected = _pytorch(program, network, torch.from_numpy(image[np.newaxis]))
        feeds = {layer.value: expected[layer.source] for layer in layers if layer.value != OUTPUT}
        found = session.run(None, {INPUT: image[np.newaxis], **feeds})
        for layer, seen, values in zip(layers, worst, found, strict=True):
            seen.add(index, expected[layer.source], values)
    differing = [
        pair for pair in zip(layers, worst, strict=True) if pair[1].difference / pair[1].scale > tolerance
    ]
    if not differing:
        return None
    return _describe(*differing[0], tolerance, compared=len(layers), differing=len(differing))


def _describe(
    layer: _Layer, worst: _Worst, tolerance: float, *, compared: int, differing: int
) -> FirstDifference:
    return FirstDifference(
        layers=layer.layers,
        operations=layer.operations,
        node=layer.node.name,
        op_type=layer.node.op_type,
        weights=layer.weights,
        image=worst.image,
        place=worst.place,
        expected=worst.expected,
        found=worst.found if np.isfinite(worst.found) else None,
        max_relative_difference=min(worst.difference / worst.scale, _LARGEST),
        tolerance=tolerance,
        compared=compared,
        differing=differing,
    )


def _layers(graph: onnx.GraphProto, traced: fx.Graph, network: nn.Module) -> Iterator[_Layer]:
    """The float values that the ONNX graph and PyTorch's program have in common, in the graph's order.

    The exporter names a value after the node of the program that it stands for; what it merged or renamed away
    counts to the next value that both have.
    """
    (result,) = next(iter(traced.find_nodes(op="output"))).args[0]
    initializers = {tensor.name for tensor in graph.initializer}
    nodes = {node.name: node for node in traced.nodes if node.op == "call_function" and _is_float(node)}
    nodes[OUTPUT] = result
    shared = {name for node in graph.node for name in node.output} & set(nodes)
    stops = {nodes[name].name for name in shared}
    root = "normalization" if isinstance(network, Deployable) else type(network).__name__
    for node in graph.node:
        for value in node.output:
            if value in shared:
                merged = _merged(nodes[value], stops)
                yield _Layer(
                    value=value,
                    source=nodes[value].name,
                    node=node,
                    layers=tuple(dict.fromkeys(_module(part) or root for part in merged)),
                    operations=tuple(part.name for part in merged),
                    weights=tuple(name for name in node.input if name in initializers),
                )


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == torch.float32


def _merged(node: fx.Node, stops: set[str]) -> list[fx.Node]:
    """A node and those before it that the graph has no value of, in the program's order."""
    found, waiting = {node}, [node]
    while waiting:
        for before in waiting.pop().all_input_nodes:
            if before.op == "call_function" and before.name not in stops and before not in found:
                found.add(before)
                waiting.append(before)
    return [part for part in node.graph.nodes if part in found and _module(part) is not None]


def _module(node: fx.Node) -> str | None:
    """The innermost module that a node belongs to, "" for the network itself; None where it belongs to none."""
    stack = [
        entry for key, entry in (node.meta.get("nn_module_stack") or {}).items() if key.startswith(_SELF)
    ]
    return str(stack[-1][0]) if stack else None


def _cut(proto: onnx.ModelProto, layers: Sequence[_Layer]) -> Any:
    """A session in which every layer reads PyTorch's values, given as inputs, and its own are the outputs."""
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    values = {layer.value for layer in layers}
    for node in cut.graph.node:
        for place, name in enumerate(node.output):
            if name in values:
                node.output[place] = _found(name)
    del cut.graph.value_info[:], cut.graph.output[:]
    kind = onnx.TensorProto.FLOAT
    for layer in layers:
        cut.graph.output.append(onnx.helper.make_tensor_value_info(_found(layer.value), kind, None))
        if layer.value != OUTPUT:
            cut.graph.input.append(onnx.helper.make_tensor_value_info(layer.value, kind, None))
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return ort.InferenceSession(
        cut.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )


def _found(value: str) -> str:
    return f"{value}:found"


class _Recorder(fx.Interpreter):
    """Runs a program and keeps every float value, by its node's name."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
            self.values[n.name] = value.numpy()
        return value


def _pytorch(
    program: torch.export.ExportedProgram, network: nn.Module, images: torch.Tensor
) -> dict[str, Array]:
    """PyTorch's values: of each module as the validated network gives them, between modules the program's."""
    recorder = _Recorder(program.module())
    outputs: dict[str, list[Array]] = {}
    handles = [
        module.register_forward_hook(lambda _module, _args, out, path=path: _keep(outputs, path, out))
        for path, module in network.named_modules()
    ]
    try:
        with torch.inference_mode():
            recorder.run(images)
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    last: dict[tuple[str, int], fx.Node] = {}
    for node in program.graph.nodes:
        for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
            if key.startswith(_SELF):
                last[path, int(key.partition("@")[2] or 0)] = node
    for (path, call), node in last.items():
        given = outputs.get(path, [])[call : call + 1]
        if given and node.name in recorder.values and given[0].shape == recorder.values[node.name].shape:
            recorder.values[node.name] = given[0]
    return recorder.values


def _keep(outputs: dict[str, list[Array]], path: str, out: Any) -> None:
    if isinstance(out, torch.Tensor) and out.dtype == torch.float32:
        outputs.setdefault(path, []).append(out.detach().numpy().copy())
