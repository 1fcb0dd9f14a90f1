"""Networks as other people's tools write them, small and really trained: a linear classifier of coloured 8x8 digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MEAN = (0.4, 0.5, 0.6)
STD = (0.2, 0.3, 0.4)
SIDE = 8
LABELS = tuple("0123456789")
_CHANNEL_SHARES = (0.5, 0.3, 0.2)
_FLOAT, _UINT8 = TensorProto.FLOAT, TensorProto.UINT8


@dataclass(frozen=True)
class LinearDigits:
    """Logits = normalised pixels in the order C, H, W, times `weight`, plus `bias`.

    Attributes:
        weight: float32 (3 * 8 * 8, 10).
        bias: float32 (10,).
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Of uint8 (N, 8, 8, 3), by numpy alone."""
        normalised = (images / 255.0 - np.array(MEAN)) / np.array(STD)
        return normalised.transpose(0, 3, 1, 2).reshape(len(images), -1) @ self.weight + self.bias

    def graph(
        self,
        *,
        dtype: str = "float32",
        layout: str = "NCHW",
        begin: str = "",
        end: tuple[str, ...] = (),
        batch: int | str = "batch",
        names: tuple[str, str] = ("input", "output"),
    ) -> onnx.ModelProto:
        """The classifier as an ONNX graph.

        Args:
            dtype: "float32", normalised outside; or "uint8", normalised inside.
            layout: "NCHW" or "NHWC".
            begin: "transpose": a NHWC graph begins with a transpose to NCHW; otherwise it has weights in its own order.
            end: operators after the logits, such as "Softmax".
            batch: the length of the batch axis, or its name.
            names: of the input and the output.
        """
        nodes, constants = [], {"bias": self.bias}
        value, nhwc = names[0], layout == "NHWC"
        if nhwc and begin == "transpose":
            nodes.append(helper.make_node("Transpose", [value], ["nchw"], perm=[0, 3, 1, 2]))
            value, nhwc = "nchw", False
        if dtype == "uint8":
            shape = (1, 1, 1, 3) if nhwc else (1, 3, 1, 1)
            for name, numbers in (("centre", MEAN), ("spread", STD)):
                constants[name] = (np.array(numbers) * 255).astype(np.float32).reshape(shape)
            nodes += [
                helper.make_node("Cast", [value], ["floats"], to=_FLOAT),
                helper.make_node("Sub", ["floats", "centre"], ["centred"]),
                helper.make_node("Div", ["centred", "spread"], ["ready"]),
            ]
            value = "ready"
        constants["weight"] = self.weight
        if nhwc:
            constants["weight"] = self.weight.reshape(3, SIDE, SIDE, 10).transpose(1, 2, 0, 3).reshape(-1, 10)
        last = "raw" if end else names[1]
        nodes.append(helper.make_node("Flatten", [value], ["flat"]))
        nodes.append(helper.make_node("Gemm", ["flat", "weight", "bias"], [last]))
        for number, operator in enumerate(end):
            following = names[1] if number == len(end) - 1 else f"end{number}"
            nodes.append(helper.make_node(operator, [last], [following]))
            last = following
        shape_in = [batch, 3, SIDE, SIDE] if layout == "NCHW" else [batch, SIDE, SIDE, 3]
        return model_of(
            nodes,
            constants,
            inputs={names[0]: (_UINT8 if dtype == "uint8" else _FLOAT, shape_in)},
            outputs={names[1]: (_FLOAT, [batch, 10])},
        )


def train_linear(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> LinearDigits:
    """Ridge regression to one-hot labels, on grey uint8 (N, 8, 8, 1) digits shown as three equal channels."""
    coloured = images.repeat(3, axis=3) / 255.0
    normalised = ((coloured - np.array(MEAN)) / np.array(STD)).transpose(0, 3, 1, 2)
    shares = np.array(_CHANNEL_SHARES).reshape(1, 3, 1, 1)
    mixed = (normalised * shares).sum(1).reshape(len(images), -1)
    rows = np.hstack([mixed, np.ones((len(mixed), 1))])
    targets = np.eye(10)[labels]
    found = np.linalg.solve(rows.T @ rows + np.eye(rows.shape[1]), rows.T @ targets) * 8
    weight = (shares.reshape(3, 1, 1) * found[:-1].reshape(1, SIDE * SIDE, 10)).reshape(-1, 10)
    return LinearDigits(weight.astype(np.float32), found[-1].astype(np.float32))


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    *,
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    """A model of nodes and constants; inputs and outputs are named with their type and shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, *what) for name, what in inputs.items()],
        [helper.make_tensor_value_info(name, *what) for name, what in outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
