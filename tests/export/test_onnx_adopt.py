"""A foreign graph behind the bundle's prefix gives the same logits, whatever it took and called its values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from foreign_nets import MEAN, STD, LinearDigits, model_of
from shipnet.export import ForeignConfig
from shipnet.export.onnx_adopt import Ending, adopt, ending, with_logits
from shipnet.export.onnx_file import OnnxError
from shipnet.export.onnx_reader import ForeignGraph, read_graph
from shipnet.runtime import PreprocessSpec
from shipnet.runtime.manifest import Normalization

Save = Callable[[onnx.ModelProto], Path]
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8
SPEC = PreprocessSpec(height=8, width=8, channels=3, resize="fit")


@pytest.fixture
def read(save: Save) -> Callable[[onnx.ModelProto], ForeignGraph]:
    return lambda model: read_graph(save(model), ForeignConfig(labels=("a", "b"), val="unused"))


Read = Callable[[onnx.ModelProto], ForeignGraph]


def adopted(found: ForeignGraph, *, spec: PreprocessSpec = SPEC) -> onnx.ModelProto:
    normalization = None if found.uint8 else Normalization(mean=MEAN, std=STD)
    data = adopt(
        found,
        ending(found),
        spec=spec,
        normalization=normalization,
        classes=10,
        metadata={"shipnet.name": "net"},
    )
    return onnx.load_model_from_string(data)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["logits"], {"images": images})[0]  # type: ignore[type-arg]
    return found


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


PREFIX = ["Cast", "Transpose", "Sub", "Div"]


@pytest.mark.parametrize(
    ("dtype", "layout", "begin", "first"),
    [
        ("float32", "NCHW", "", [*PREFIX, "Flatten"]),
        ("float32", "NHWC", "", [*PREFIX, "Transpose", "Flatten"]),
        ("float32", "NHWC", "transpose", [*PREFIX, "Flatten"]),  # its transpose and the prefix's are one
        ("uint8", "NCHW", "", ["Cast", "Transpose", "Sub", "Div", "Flatten"]),  # its cast moves to the front
        ("uint8", "NHWC", "", ["Cast", "Sub", "Div", "Flatten"]),  # as it is
        ("uint8", "NHWC", "transpose", ["Cast", "Transpose", "Sub", "Div", "Flatten"]),
    ],
)
def test_the_prefix_leads_to_whatever_the_graph_takes(
    read: Read,
    linear_digits: LinearDigits,
    drawn: np.ndarray,  # type: ignore[type-arg]
    dtype: str,
    layout: str,
    begin: str,
    first: list[str],
) -> None:
    model = adopted(read(linear_digits.graph(dtype=dtype, layout=layout, begin=begin)))
    assert operators(model) == [*first, "Gemm"]
    for count in (1, 2, 9):
        expected = linear_digits.logits(drawn[:count])
        assert np.abs(run(model, drawn[:count]) - expected).max() < 1e-5 * np.abs(expected).max()


def test_bytes_that_are_used_as_bytes_are_made_again(
    read: Read,
    drawn: np.ndarray,  # type: ignore[type-arg]
) -> None:
    """A graph that begins with no cast: it looks the bytes up."""
    table = np.random.default_rng(2).normal(size=256).astype(np.float32)
    weight = np.random.default_rng(3).normal(size=(192, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "index"], ["seen"]),
        helper.make_node("Flatten", ["seen"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["y"]),
    ]
    model = model_of(
        nodes,
        {"table": table, "weight": weight},
        inputs={"x": (UINT8, ["n", 8, 8, 3])},
        outputs={"y": (FLOAT, ["n", 10])},
    )
    found = adopted(read(model))
    assert operators(found)[:4] == ["Cast", "Transpose", "Transpose", "Cast"]
    expected = table[drawn].reshape(len(drawn), -1) @ weight
    assert np.allclose(run(found, drawn), expected, rtol=1e-4, atol=1e-4)


def test_an_input_that_several_nodes_take_stays_whole(
    read: Read,
    drawn: np.ndarray,  # type: ignore[type-arg]
) -> None:
    """Two transposes to NCHW are the prefix's; a transpose and another operator are not."""
    weight = np.random.default_rng(4).normal(size=(192, 10)).astype(np.float32)

    def graph(*, second: str) -> onnx.ModelProto:
        other = {"perm": [0, 3, 1, 2]} if second == "Transpose" else {}
        nodes = [
            helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
            helper.make_node(second, ["x"], ["b"], **other),
            helper.make_node("Flatten", ["a"], ["fa"]),
            helper.make_node("Flatten", ["b"], ["fb"]),
            helper.make_node("MatMul", ["fa", "weight"], ["ya"]),
            helper.make_node("MatMul", ["fb", "weight"], ["yb"]),
            helper.make_node("Sub", ["ya", "yb"], ["half"]),
            helper.make_node("Add", ["half", "ya"], ["y"]),
        ]
        io = {"inputs": {"x": (FLOAT, ["n", 8, 8, 3])}, "outputs": {"y": (FLOAT, ["n", 10])}}
        return model_of(nodes, {"weight": weight}, **io)  # type: ignore[arg-type]

    pixels = (drawn / 255.0 - np.array(MEAN)) / np.array(STD)
    nchw = pixels.transpose(0, 3, 1, 2).reshape(len(drawn), -1) @ weight
    nhwc = np.abs(pixels).reshape(len(drawn), -1) @ weight
    same, different = (adopted(read(graph(second=name))) for name in ("Transpose", "Abs"))
    assert operators(same).count("Transpose") == 1
    assert operators(different).count("Transpose") == 3
    assert np.allclose(run(same, drawn), nchw, rtol=1e-4, atol=1e-3)
    assert np.allclose(run(different, drawn), 2 * nchw - nhwc, rtol=1e-4, atol=1e-3)


def test_names_of_the_bundle_are_free_whatever_the_graph_called_its_values(
    read: Read,
    linear_digits: LinearDigits,
    drawn: np.ndarray,  # type: ignore[type-arg]
) -> None:
    model = linear_digits.graph(names=("images", "logits"))
    flat, gemm = model.graph.node
    flat.output[0] = gemm.input[0] = "images.given"
    gemm.input[2] = model.graph.initializer[0].name = "pixel_mean"
    found = adopted(read(model))
    assert [value.name for value in (*found.graph.input, *found.graph.output)] == ["images", "logits"]
    assert np.allclose(run(found, drawn), linear_digits.logits(drawn), rtol=1e-4, atol=1e-3)
    swapped = adopted(read(linear_digits.graph(names=("logits", "images"))))
    assert np.allclose(run(swapped, drawn), linear_digits.logits(drawn), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("end", "dropped"),
    [
        (("Softmax",), "Softmax"),
        (("LogSoftmax",), "LogSoftmax"),
        (("Softmax", "Identity", "Identity"), "Softmax"),
    ],
)
def test_a_softmax_at_the_end_is_taken_off(
    read: Read,
    linear_digits: LinearDigits,
    drawn: np.ndarray,  # type: ignore[type-arg]
    end: tuple[str, ...],
    dropped: str,
) -> None:
    found = read(linear_digits.graph(end=end))
    assert ending(found) == Ending("raw", dropped)
    model = adopted(found)
    assert operators(model)[-1] == "Gemm"
    assert np.allclose(run(model, drawn), linear_digits.logits(drawn), rtol=1e-4, atol=1e-3)
    both = onnx.load_model_from_string(with_logits(found, ending(found)))
    assert [value.name for value in both.graph.output] == ["output", "raw"]


def test_the_logits_behind_a_softmax_inside_a_function_are_found(
    read: Read,
    linear_digits: LinearDigits,
    drawn: np.ndarray,  # type: ignore[type-arg]
) -> None:
    model = linear_digits.graph()
    model.graph.node[1].CopyFrom(
        helper.make_node("Head", ["flat", "weight", "bias"], ["output"], domain="mine")
    )
    body = [helper.make_node("Gemm", ["a", "b", "c"], ["d"]), helper.make_node("Softmax", ["d"], ["e"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Head", ["a", "b", "c"], ["e"], body, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    found = read(model)
    session = ort.InferenceSession(with_logits(found, ending(found)), providers=["CPUExecutionProvider"])
    normalised = ((drawn / 255.0 - np.array(MEAN)) / np.array(STD)).astype(np.float32).transpose(0, 3, 1, 2)
    _, logits = session.run(None, {"input": normalised})
    assert np.allclose(logits, linear_digits.logits(drawn), rtol=1e-4, atol=1e-3)
    assert np.allclose(run(adopted(found), drawn), linear_digits.logits(drawn), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("operator", ["Sigmoid", "HardSigmoid"])
def test_classes_that_do_not_exclude_each_other_are_refused(
    read: Read, linear_digits: LinearDigits, operator: str
) -> None:
    with pytest.raises(OnnxError, match=f"ends in {operator}, whose outputs are not one class out of many"):
        ending(read(linear_digits.graph(end=(operator,))))


def test_a_softmax_over_another_axis_is_refused(read: Read, linear_digits: LinearDigits) -> None:
    model = linear_digits.graph(end=("Softmax",))
    model.graph.node[-1].attribute.append(helper.make_attribute("axis", 0))
    with pytest.raises(OnnxError, match="ends in Softmax over axis 0, expected the last"):
        ending(read(model))


def test_nothing_but_the_network_is_left(read: Read, linear_digits: LinearDigits) -> None:
    model = linear_digits.graph(end=("Softmax",))
    model.producer_name, model.doc_string, model.domain = "tool", "/home/me/net.py", "me.org"
    model.metadata_props.add(key="path", value="/home/me")
    model.training_info.add().algorithm.name = "/home/me/adam"
    model.graph.doc_string = model.graph.node[0].doc_string = "/home/me/net.py line 3"
    model.graph.initializer.append(helper.make_tensor("left", FLOAT, [1], [1.0]))
    model.graph.node.insert(0, helper.make_node("Relu", ["input"], ["idle"]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.ir_version = 11
    found = adopted(read(model))
    assert b"/home/me" not in found.SerializeToString()
    assert "Relu" not in operators(found)
    assert {tensor.name for tensor in found.graph.initializer} == {
        "weight",
        "bias",
        "pixel_mean",
        "pixel_std",
    }
    assert [(entry.domain, entry.version) for entry in found.opset_import] == [("", 17)]
    assert found.ir_version == 10
    assert {entry.key: entry.value for entry in found.metadata_props} == {"shipnet.name": "net"}


def test_the_graph_that_was_read_is_not_changed(read: Read, linear_digits: LinearDigits) -> None:
    found = read(linear_digits.graph(end=("Softmax",)))
    before = found.model.SerializeToString(deterministic=True)
    adopted(found)
    assert found.model.SerializeToString(deterministic=True) == before


def test_branches_that_read_the_input_read_the_prefix(
    read: Read,
    linear_digits: LinearDigits,
    drawn: np.ndarray,  # type: ignore[type-arg]
) -> None:
    model = linear_digits.graph(layout="NHWC")
    branch = [
        helper.make_graph(
            [helper.make_node(operator, ["input"], [f"out_{operator}"])],
            operator,
            [],
            [helper.make_tensor_value_info(f"out_{operator}", FLOAT, None)],
        )
        for operator in ("Identity", "Neg")
    ]
    choice = helper.make_node("If", ["yes"], ["chosen"], then_branch=branch[0], else_branch=branch[1])
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    model.graph.node[0].input[0] = "chosen"
    model.graph.node.insert(0, choice)
    found = adopted(read(model))
    assert np.allclose(run(found, drawn), linear_digits.logits(drawn), rtol=1e-4, atol=1e-3)


def test_images_of_another_size_do_not_fit(read: Read, linear_digits: LinearDigits) -> None:
    found = read(linear_digits.graph())
    with pytest.raises(OnnxError, match="does not fit images of 9 x 9 x 3: "):
        adopted(found, spec=PreprocessSpec(height=9, width=9, channels=3, resize="fit"))
