"""16-bit graphs: what stays in 32 bits, and that other evaluators agree."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from shipnet.export.fp16 import fragile_nodes, to_fp16
from shipnet.export.onnx_graph import INPUT, OUTPUT
from shipnet.export.rewrite import CannotMakeError, prefix, prepared
from shipnet.export.search import runner


@pytest.fixture(scope="module")
def fp16(resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]) -> bytes:
    return to_fp16(resnet_graph, [colours])


def changed(model: onnx.ModelProto, name: str, value: NDArray[np.float32]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return copy


def layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]


def weight(model: onnx.ModelProto, node: onnx.NodeProto) -> NDArray[np.float32]:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    return numpy_helper.to_array(tensor)


def test_input_and_logits_keep_their_types_and_weights_halve(
    fp16: bytes, resnet_graph: onnx.ModelProto
) -> None:
    graph = onnx.load_from_string(fp16).graph
    assert (graph.input[0].name, graph.input[0].type.tensor_type.elem_type) == (INPUT, TensorProto.UINT8)
    assert (graph.output[0].name, graph.output[0].type.tensor_type.elem_type) == (OUTPUT, TensorProto.FLOAT)
    assert [node.op_type for node in graph.node if INPUT in node.input] == ["Cast"]
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in layers(resnet_graph):
        assert kinds[node.input[1]] == TensorProto.FLOAT16
    first = {node.name for node in resnet_graph.graph.node if node.name in prefix(resnet_graph.graph)}
    for node in graph.node:
        if node.name in first:
            assert all(kinds.get(name, TensorProto.FLOAT) != TensorProto.FLOAT16 for name in node.input)


def test_it_computes_nearly_the_same(fp16: bytes, resnet_onnx: bytes, colours: NDArray[np.uint8]) -> None:
    expected, found = runner(resnet_onnx)(colours), runner(fp16)(colours)
    assert found.dtype == np.float32
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert 0.0 < difference < 5e-3


def test_the_reference_evaluator_agrees(fp16: bytes, colours: NDArray[np.uint8]) -> None:
    model = onnx.load_from_string(fp16)
    onnx.checker.check_model(model, full_check=True)
    (expected,) = ReferenceEvaluator(model).run(None, {INPUT: colours[:3]})
    assert np.abs(runner(fp16)(colours[:3]) - expected).max() < 0.01 * np.abs(expected).max()


def test_an_ordinary_network_has_nothing_fragile(
    resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    assert fragile_nodes(resnet_graph, [colours]) == []


def test_a_constant_above_the_range_stays_in_32_bits(
    resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    node = layers(resnet_graph)[1]
    large = weight(resnet_graph, node).copy()
    large[0, 0] *= 1e7
    model = changed(resnet_graph, node.input[1], large)
    assert node.name in fragile_nodes(model, [colours])
    expected, found = (
        runner(graph)(colours) for graph in (model.SerializeToString(), to_fp16(model, [colours]))
    )
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_activations_that_would_overflow_stay_in_32_bits(
    resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    """No constant is large, what flows through is: the layers around it stay, the last ones are 16 bits again."""
    first, last = layers(resnet_graph)[0], layers(resnet_graph)[-1]
    model = changed(resnet_graph, first.input[1], weight(resnet_graph, first) * np.float32(3e4))
    model = changed(model, last.input[1], weight(model, last) * np.float32(1e-3))
    fragile = fragile_nodes(model, [colours])
    assert first.name in fragile
    assert all(node not in fragile for node in prefix(model.graph))
    graph = to_fp16(model, [colours])
    expected, found = (runner(data)(colours) for data in (model.SerializeToString(), graph))
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_neighbours_in_32_bits_hand_values_on_unrounded(
    resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    """The converter itself casts to 16 bits and back between them, where the values overflow."""
    first = layers(resnet_graph)[0]
    model = changed(resnet_graph, first.input[1], weight(resnet_graph, first) * np.float32(3e4))
    fragile = set(fragile_nodes(model, [colours]))
    graph = onnx.load_from_string(to_fp16(model, [colours])).graph
    makers = {name: node for node in graph.node for name in node.output}
    exact = {name for node in model.graph.node if node.name in fragile for name in node.output}
    inside = [node for node in graph.node if node.name in fragile]
    assert len(inside) > 2
    for node in inside:
        for name in node.input:
            maker = makers.get(name)
            if maker is not None and maker.op_type == "Cast" and maker.input[0] in makers:
                assert not (
                    makers[maker.input[0]].op_type == "Cast" and makers[maker.input[0]].input[0] in exact
                )


def test_a_norm_with_a_vanishing_variance_keeps_its_digits(
    resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    norm = next(node for node in resnet_graph.graph.node if node.op_type == "BatchNormalization")
    variance = numpy_helper.to_array(
        next(tensor for tensor in resnet_graph.graph.initializer if tensor.name == norm.input[4])
    ).copy()
    variance[3] = 1e-6
    model = changed(resnet_graph, norm.input[4], variance)
    assert norm.name in fragile_nodes(model, [colours])
    expected, found = (
        runner(data)(colours) for data in (model.SerializeToString(), to_fp16(model, [colours]))
    )
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


def test_softmax_stays_in_32_bits() -> None:
    nodes = [
        helper.make_node("Cast", [INPUT], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["cast"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["sums"]),
        helper.make_node("Softmax", ["sums"], ["soft"]),
        helper.make_node("MatMul", ["soft", "head"], [OUTPUT]),
    ]
    rng = np.random.default_rng(0)
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "soft",
            [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 2, 2, 1])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", 3])],
            [
                numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) * 0.01, name)
                for name, shape in (("weight", (4, 5)), ("head", (5, 3)))
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    images = rng.integers(0, 256, (4, 2, 2, 1), dtype=np.uint8)
    graph = onnx.load_from_string(to_fp16(prepared(proto.SerializeToString()), [images])).graph
    makers = {name: node for node in graph.node for name in node.output}
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    cast = makers[softmax.input[0]]
    assert (cast.op_type, cast.attribute[0].i) == ("Cast", TensorProto.FLOAT)


def test_activations_that_are_no_numbers_are_refused(
    resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    node = layers(resnet_graph)[2]
    broken = weight(resnet_graph, node).copy()
    broken[0, 0] = np.nan
    with pytest.raises(CannotMakeError, match="is NaN or infinite on calibration images"):
        to_fp16(changed(resnet_graph, node.input[1], broken), [colours])
