"""8-bit graphs: where the pairs stand, what the kernels make of them, and that other evaluators agree."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from shipnet.export.calibration import Ranges, measure
from shipnet.export.int8 import Recipe, quantizable, quantize, ranged_tensors
from shipnet.export.onnx_graph import INPUT, OUTPUT
from shipnet.export.rewrite import WEIGHTED, norms_as_convolutions, prepared
from shipnet.export.search import runner

CPU, TENSORRT = Recipe(), Recipe(symmetric=True)
REDUCED = Recipe(reduce_range=True)


@pytest.fixture(scope="module")
def cpu_graph(resnet_graph: onnx.ModelProto) -> onnx.ModelProto:
    return norms_as_convolutions(resnet_graph)


def ranges_of(model: onnx.ModelProto, recipe: Recipe, images: NDArray[np.uint8]) -> Ranges:
    found = measure(model, ranged_tensors(model, recipe), [images])
    return {name: histogram.range("minmax") for name, histogram in found.items()}


@pytest.fixture(scope="module")
def int8_cpu(cpu_graph: onnx.ModelProto, colours: NDArray[np.uint8]) -> bytes:
    return quantize(cpu_graph, ranges_of(cpu_graph, CPU, colours), CPU)


@pytest.fixture(scope="module")
def int8_tensorrt(resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]) -> bytes:
    return quantize(resnet_graph, ranges_of(resnet_graph, TENSORRT, colours), TENSORRT)


def constants(graph: onnx.GraphProto) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def optimized(model: bytes, folder: Path) -> onnx.GraphProto:
    """What onnxruntime runs on this CPU."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this machine only
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx").graph


def test_the_cpu_runs_every_layer_in_8_bits(int8_cpu: bytes, tmp_path: Path) -> None:
    kinds = Counter(node.op_type for node in optimized(int8_cpu, tmp_path).node)
    floats = {
        "Conv",
        "FusedConv",
        "Add",
        "Relu",
        "BatchNormalization",
        "Sub",
        "Div",
        "Cast",
        "MatMul",
        "Gemm",
    }
    assert not floats & kinds.keys()
    # Five convolutions, one that adds a channel to the pixels, and the norm behind a ReLU.
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["QGemm"]) == (7, 1, 1)
    assert kinds["NhwcMaxPool"] + kinds["MaxPool"] == 1


def test_the_first_layer_reads_the_pixels(int8_cpu: bytes, tmp_path: Path) -> None:
    (first,) = (node for node in optimized(int8_cpu, tmp_path).node if INPUT in node.input)
    assert first.op_type == "QLinearConv"


@pytest.mark.parametrize("name", ["int8_cpu", "int8_tensorrt"])
def test_it_decides_nearly_as_fp32(
    name: str, request: pytest.FixtureRequest, resnet_onnx: bytes, colours: NDArray[np.uint8]
) -> None:
    expected, found = runner(resnet_onnx)(colours), runner(request.getfixturevalue(name))(colours)
    assert found.dtype == np.float32
    assert np.abs(found - expected).mean() < 0.04 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.95


@pytest.mark.parametrize("name", ["int8_cpu", "int8_tensorrt"])
def test_the_reference_evaluator_agrees(
    name: str, request: pytest.FixtureRequest, colours: NDArray[np.uint8]
) -> None:
    """Kernels that fuse round elsewhere than the graph says, by a step of a tensor here and there."""
    graph = request.getfixturevalue(name)
    onnx.checker.check_model(onnx.load_from_string(graph), full_check=True)
    newer = onnx.load_from_string(graph)
    # The oldest of the evaluator's DequantizeLinear, which computes the same.
    newer.opset_import[0].version = 19
    (expected,) = ReferenceEvaluator(newer).run(None, {INPUT: colours[:3]})
    assert np.abs(runner(graph)(colours[:3]) - expected).max() < 0.01 * np.abs(expected).max()


def test_tensorrt_gets_symmetric_int8_and_nothing_else(int8_tensorrt: bytes) -> None:
    graph = onnx.load_from_string(int8_tensorrt).graph
    values = constants(graph)
    assert {value.dtype for value in values.values()} <= {np.dtype(name) for name in ("f4", "i1", "i8")}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        zero_point = values[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert (values[node.input[1]] > 0).all()
    readers = Counter(name for node in graph.node for name in node.input)
    for node in pairs:  # a pair of its own for every reader
        assert readers[node.output[0]] == 1
    cast = [node.op_type for node in graph.node if INPUT in node.input]
    assert cast == ["Cast"]


def test_tensorrt_keeps_what_it_fuses_together(int8_tensorrt: bytes) -> None:
    """Between a layer and the ReLU or sum that follows it stands no pair; in front of every layer one does."""
    graph = onnx.load_from_string(int8_tensorrt).graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in WEIGHTED:
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
        if node.op_type == "Relu":
            assert makers[node.input[0]].op_type in {*WEIGHTED, "Add"}


@pytest.mark.parametrize(("recipe", "limit"), [(CPU, 127), (REDUCED, 64), (TENSORRT, 127)])
def test_weights_have_a_scale_a_channel_and_use_their_bits(
    recipe: Recipe, limit: int, resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    model = resnet_graph if recipe.symmetric else norms_as_convolutions(resnet_graph)
    graph = onnx.load_from_string(quantize(model, ranges_of(model, recipe, colours), recipe)).graph
    values = constants(graph)
    makers = {name: node for node in graph.node for name in node.output}
    layers = [node for node in graph.node if node.op_type in WEIGHTED]
    assert len(layers) == (6 if recipe.symmetric else 8)
    for node in layers:
        weight, scale = (values[name] for name in makers[node.input[1]].input[:2])
        assert weight.dtype == np.int8
        assert scale.shape == (weight.shape[0],)
        assert limit - 1 <= np.abs(weight.astype(int)).max() <= limit


def test_no_pair_rounds_the_logits(int8_cpu: bytes, int8_tensorrt: bytes) -> None:
    for model in (int8_cpu, int8_tensorrt):
        graph = onnx.load_from_string(model).graph
        (last,) = (node for node in graph.node if OUTPUT in node.output)
        assert last.op_type == "Gemm"


@pytest.mark.parametrize("recipe", [CPU, TENSORRT])
def test_layers_that_are_named_stay_in_floats(
    recipe: Recipe, resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8], tmp_path: Path
) -> None:
    model = resnet_graph if recipe.symmetric else norms_as_convolutions(resnet_graph)
    layers = [node for node in quantizable(model, recipe) if node.op_type in WEIGHTED]
    ranges = ranges_of(model, recipe, colours)
    stay = {layers[0].name, layers[2].name}
    found = quantize(model, ranges, recipe, fp32_nodes=stay)
    graph = onnx.load_from_string(found).graph
    kept = {
        node.name for node in graph.node if node.op_type in WEIGHTED and node.input[1] in constants(graph)
    }
    assert kept == stay
    expected = runner(resnet_graph.SerializeToString())(colours)
    everything = quantize(
        model, ranges, recipe, fp32_nodes={node.name for node in quantizable(model, recipe)}
    )
    assert np.abs(runner(everything)(colours) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert np.abs(runner(found)(colours) - expected).mean() < 0.04 * np.abs(expected).max()


def test_the_prefix_is_no_layer(resnet_graph: onnx.ModelProto) -> None:
    for recipe in (CPU, TENSORRT):
        assert not {"Cast", "Transpose", "Sub", "Div"} & {
            n.op_type for n in quantizable(resnet_graph, recipe)
        }


def test_it_asks_for_every_range_and_not_for_one_more(
    cpu_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    ranges = ranges_of(cpu_graph, CPU, colours)
    del ranges[ranged_tensors(cpu_graph, CPU)[5]]
    with pytest.raises(ValueError, match="Quantization parameters are not specified"):
        quantize(cpu_graph, ranges, CPU)


def dead(weight: NDArray[np.float32], *, gemm: bool) -> tuple[onnx.ModelProto, NDArray[np.uint8]]:
    """A layer whose whole output are the logits but for a sum behind it, with biases of many digits."""
    bias = np.array([0.123456, -0.337, 0.0519], np.float32)
    head = [
        helper.make_node("Cast", [INPUT], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["x"], perm=[0, 3, 1, 2]),
    ]
    if gemm:
        head += [helper.make_node("Flatten", ["x"], ["flat"])]
        head += [helper.make_node("Gemm", ["flat", "weight", "bias"], [OUTPUT], transB=weight.shape[0] == 3)]
    else:
        head += [helper.make_node("Conv", ["x", "weight", "bias"], [OUTPUT])]
    graph = helper.make_graph(
        head,
        "dead",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", 4, 4, 1])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    return prepared(proto.SerializeToString()), images


@pytest.mark.parametrize("form", ["conv", "gemm", "gemm transposed", "all dead"])
def test_the_bias_of_a_dead_channel_keeps_its_digits(form: str) -> None:
    """Its weights are zero, so that the quantiser's step for them says nothing of its bias."""
    rng = np.random.default_rng(1)
    shape = {"gemm": (16, 3), "gemm transposed": (3, 16)}.get(form, (3, 1, 4, 4))
    weight = rng.normal(scale=1e-3, size=shape).astype(np.float32)
    weight[(..., 1) if form == "gemm" else 1] = 0.0
    if form == "all dead":
        weight[:] = 0.0
    model, images = dead(weight, gemm="gemm" in form)
    expected = runner(model.SerializeToString())(images)
    found = runner(quantize(model, ranges_of(model, CPU, images), CPU))(images)
    assert found.reshape(8, 3)[:, 1] == pytest.approx(-0.337, rel=1e-3)
    assert found == pytest.approx(expected, abs=0.02)


def test_an_activation_that_is_never_alive_is_no_trouble(
    cpu_graph: onnx.ModelProto, resnet_graph: onnx.ModelProto, colours: NDArray[np.uint8]
) -> None:
    for model, recipe in ((cpu_graph, CPU), (resnet_graph, TENSORRT)):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        relu = next(node for node in copy.graph.node if node.op_type == "Relu")
        conv = next(node for node in copy.graph.node if relu.input[0] in node.output)
        bias = next(tensor for tensor in copy.graph.initializer if tensor.name == conv.input[2])
        drowned = numpy_helper.to_array(bias) - np.float32(1e4)
        bias.CopyFrom(numpy_helper.from_array(drowned, bias.name))
        expected = runner(copy.SerializeToString())(colours)
        found = runner(quantize(copy, ranges_of(copy, recipe, colours), recipe))(colours)
        assert np.isfinite(found).all()
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
