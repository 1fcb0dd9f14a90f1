"""Rewritten graphs compute what they computed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from shipnet.export.onnx_graph import INPUT, OUTPUT
from shipnet.export.rewrite import (
    CannotMakeError,
    finished,
    float_tensors,
    fold_batch_norms,
    lacking,
    norms_as_convolutions,
    prefix,
    prepared,
)
from shipnet.export.search import runner


def kinds(graph: onnx.GraphProto) -> Counter[str]:
    return Counter(node.op_type for node in graph.node)


def model(
    nodes: list[onnx.NodeProto], constants: dict[str, NDArray[np.float32]], *, opset: int = 18
) -> bytes:
    """A network from uint8 images of 6 x 6 pixels and 2 channels; `nodes` start at "x" and end at "logits"."""
    head = [
        helper.make_node("Cast", [INPUT], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["x"], perm=[0, 3, 1, 2]),
    ]
    graph = helper.make_graph(
        [*head, *nodes],
        "test",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 6, 6, 2])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return bytes(proto.SerializeToString())


def norm_constants(channels: int) -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(1).uniform(0.5, 1.5, (4, channels)).astype(np.float32)
    draw[0, 0] *= -1.0
    return dict(zip(("gamma", "beta", "mean", "var"), draw, strict=True))


NORM = ["gamma", "beta", "mean", "var"]
KERNEL = np.random.default_rng(2).normal(size=(3, 2, 3, 3)).astype(np.float32)
IMAGES = np.random.default_rng(3).integers(0, 256, (5, 6, 6, 2), dtype=np.uint8)


def test_preparing_folds_batch_norms_and_changes_no_value(
    resnet_onnx: bytes, resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    before = onnx.load_from_string(resnet_onnx).graph
    assert kinds(resnet_graph.graph)["BatchNormalization"] == 1  # behind a ReLU: no convolution to merge into
    assert kinds(before)["Conv"] == kinds(resnet_graph.graph)["Conv"]
    expected = runner(resnet_onnx)(colours)
    found = runner(resnet_graph.SerializeToString())(colours)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_a_folded_norm_has_its_convolutions_bias_and_its_own_epsilon(bias: bool, epsilon: float) -> None:
    constants = {"kernel": KERNEL, **norm_constants(3)}
    if bias:
        constants["bias"] = np.array([5.0, -3.0, 1.0], np.float32)
    conv = helper.make_node("Conv", ["x", "kernel", *(["bias"] if bias else [])], ["y"])
    norm = helper.make_node("BatchNormalization", ["y", *NORM], [OUTPUT], epsilon=epsilon)
    whole = model([conv, norm], constants)
    folded = prepared(whole)
    assert kinds(folded.graph) == {"Cast": 1, "Transpose": 1, "Conv": 1}
    assert len(folded.graph.initializer) == 2
    assert runner(folded.SerializeToString())(IMAGES) == pytest.approx(
        runner(whole)(IMAGES), rel=1e-4, abs=1e-3
    )


def test_a_norm_whose_input_others_read_stays() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["y"]),
        helper.make_node("BatchNormalization", ["y", *NORM], ["z"]),
        helper.make_node("Add", ["y", "z"], [OUTPUT]),
    ]
    proto = onnx.load_from_string(model(nodes, {"kernel": KERNEL, **norm_constants(3)}))
    fold_batch_norms(proto.graph)
    assert kinds(proto.graph)["BatchNormalization"] == 1


def test_a_lone_norm_becomes_a_convolution_of_one_pixel(
    resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    found = norms_as_convolutions(resnet_graph)
    assert kinds(found.graph)["BatchNormalization"] == 0
    assert kinds(resnet_graph.graph)["BatchNormalization"] == 1  # it was given, and stays as it is
    onnx.checker.check_model(found, full_check=True)
    expected = runner(resnet_graph.SerializeToString())(colours)
    assert (
        np.abs(runner(found.SerializeToString())(colours) - expected).max() <= 1e-5 * np.abs(expected).max()
    )
    assert [node.name for node in found.graph.node] == [node.name for node in resnet_graph.graph.node]


def test_a_norm_of_vectors_stays() -> None:
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("BatchNormalization", ["flat", *NORM], [OUTPUT]),
    ]
    found = norms_as_convolutions(prepared(model(nodes, norm_constants(72))))
    assert kinds(found.graph)["BatchNormalization"] == 1


def test_the_prefix_ends_at_the_first_weights(resnet_graph: onnx.ModelProto) -> None:
    first = set(prefix(resnet_graph.graph))
    assert [node.op_type for node in resnet_graph.graph.node if node.name in first] == [
        *("Cast", "Transpose", "Sub", "Div")
    ]


def test_only_float_activations_count_as_tensors(resnet_graph: onnx.ModelProto) -> None:
    everything = {node.name for node in resnet_graph.graph.node}
    found = float_tensors(resnet_graph, everything)
    assert INPUT not in found  # uint8
    assert found[-1] == OUTPUT
    assert len(found) == len(set(found))
    assert not {tensor.name for tensor in resnet_graph.graph.initializer} & set(found)
    assert float_tensors(resnet_graph, set()) == []


def test_nodes_without_a_name_of_their_own_get_one() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="same"),
        helper.make_node("Relu", ["y"], [OUTPUT], name="same"),
    ]
    names = [node.name for node in prepared(model(nodes, {})).graph.node]
    assert all(names) and len(set(names)) == 4
    assert names[2] == "same"


def test_what_a_target_lacks_is_named(resnet_graph: onnx.ModelProto) -> None:
    assert lacking(resnet_graph, "tensorrt") == []
    strange = onnx.ModelProto()
    strange.CopyFrom(resnet_graph)
    strange.graph.node.add(op_type="DynamicQuantizeLinear")
    strange.graph.node.add(op_type="FancyPool", domain="com.example")
    assert lacking(strange, "tensorrt") == ["DynamicQuantizeLinear", "FancyPool"]
    assert lacking(strange, "cpu") == lacking(strange, "cuda") == []


def test_an_old_opset_is_refused() -> None:
    with pytest.raises(
        CannotMakeError, match="the graph has opset 12, expected 13 or newer: export it again"
    ):
        prepared(model([helper.make_node("Relu", ["x"], [OUTPUT])], {}, opset=12))


def test_shapes_that_contradict_each_other_are_refused() -> None:
    nodes = [helper.make_node("Conv", ["x", "kernel"], [OUTPUT])]
    with pytest.raises(CannotMakeError, match=r"the graph's shapes cannot be inferred: .*Conv"):
        prepared(model(nodes, {"kernel": np.zeros((3, 2, 9, 9, 9), np.float32)}))


def test_a_finished_graph_is_checked_and_imports_what_it_needs(resnet_graph: onnx.ModelProto) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(resnet_graph)
    proto.opset_import.add(domain="com.microsoft", version=1)
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(9, np.float32), "unread"))
    found = onnx.load_from_string(finished(proto))
    assert [entry.domain for entry in found.opset_import] == [""]
    assert "unread" not in {tensor.name for tensor in found.graph.initializer}
    proto.graph.node[-1].input[0] = "nothing"
    with pytest.raises(CannotMakeError, match="the converter gave an invalid graph"):
        finished(proto)
