"""A foreign ONNX file is read whole, from its own folder alone, and refused by name where it is no plain classifier."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foreign_nets import LinearDigits, model_of
from shipnet.export import ForeignConfig
from shipnet.export.onnx_file import OnnxError
from shipnet.export.onnx_reader import ForeignGraph, read_graph
from shipnet.runtime import UsageError

Save = Callable[[onnx.ModelProto], Path]
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def read(path: Path, **fields: object) -> ForeignGraph:
    return read_graph(path, ForeignConfig(labels=("cat", "dog"), val="unused", **fields))  # type: ignore[arg-type]


def weights_of(found: ForeignGraph) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in found.model.graph.initializer}


@pytest.mark.parametrize(
    ("dtype", "layout"), [("float32", "NCHW"), ("float32", "NHWC"), ("uint8", "NCHW"), ("uint8", "NHWC")]
)
def test_the_input_tells_type_layout_and_size(
    linear_digits: LinearDigits, save: Save, dtype: str, layout: str
) -> None:
    found = read(save(linear_digits.graph(dtype=dtype, layout=layout, names=("pixels", "scores"))))
    assert (found.input, found.output) == ("pixels", "scores")
    assert (found.uint8, found.layout) == (dtype == "uint8", layout)
    assert (found.shape.channels, found.shape.size) == (3, (8, 8))
    assert found.shape.normalized is (dtype == "float32")
    assert found.parameters == 3 * 64 * 10 + 10 + (6 if dtype == "uint8" else 0)


def test_the_batch_axis_may_be_minus_one(linear_digits: LinearDigits, save: Save) -> None:
    """As Paddle's exporter writes it."""
    assert read(save(linear_digits.graph(batch=-1))).shape.size == (8, 8)


def test_small_images_are_no_photographs(linear_digits: LinearDigits, save: Save) -> None:
    assert not read(save(linear_digits.graph())).shape.photographs


def external(model: onnx.ModelProto, path: Path, location: str = "net.data") -> Path:
    """Saves a model with its weights in another file."""
    onnx.save_model(
        model, path, save_as_external_data=True, location=location, size_threshold=0, convert_attribute=True
    )
    return path


def test_weights_beside_the_file_are_taken_into_it(linear_digits: LinearDigits, tmp_path: Path) -> None:
    path = external(linear_digits.graph(), tmp_path / "net.onnx")
    assert path.stat().st_size < 1000
    found = read(path)
    assert np.array_equal(weights_of(found)["weight"], linear_digits.weight)
    assert np.array_equal(weights_of(found)["bias"], linear_digits.bias)
    assert len(found.as_given) > linear_digits.weight.nbytes
    data = bytearray((tmp_path / "net.data").read_bytes())
    data[3] ^= 1
    (tmp_path / "net.data").write_bytes(data)
    assert read(path).sha256 != found.sha256


def test_weights_may_lie_in_a_folder_below(linear_digits: LinearDigits, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    path = external(linear_digits.graph(), tmp_path / "net.onnx", "parts/net.data")
    assert np.array_equal(weights_of(read(path))["weight"], linear_digits.weight)


def test_torchs_exporter_with_two_files_is_read(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).eval()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.rand(2, 3, 8, 8),),
            path,
            dynamo=True,
            external_data=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert (tmp_path / "net.onnx.data").is_file()
    found = read(path)
    assert found.parameters == sum(parameter.numel() for parameter in net.parameters())
    assert any(np.array_equal(value, net[0].weight.detach().numpy()) for value in weights_of(found).values())


def point(path: Path, **entries: str) -> None:
    """Makes a file's first weights point elsewhere."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data}
    del tensor.external_data[:]
    for key, value in {**kept, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"location": "../secret.data"},
            r"lie at '\.\./secret\.data', which leaves its folder: copy that file",
        ),
        ({"location": "../model/../secret.data"}, "which leaves its folder"),
        ({"location": "/etc/hostname"}, "lie at '/etc/hostname', which leaves its folder"),
        ({"location": "gone.data"}, r"lie at 'gone\.data', which is not beside it: copy it there, too"),
        ({"location": ""}, "which is not beside it"),
        ({"location": "a\0b"}, "which is no path"),
        ({"location": "link.data"}, r"'link\.data', which leaves its folder through a link"),
        ({"location": "folder/secret.data"}, "which leaves its folder"),
        ({"offset": "-4"}, "are bytes -4 to"),
        ({"offset": "99999999"}, r"of 'net\.data', which has \d+: it is cut short, or another model's"),
        ({"length": "99999999"}, "it is cut short, or another model's: copy it again"),
        ({"length": "-1"}, "are bytes 0 to -1"),
        ({"offset": "many"}, "have no place in their file: invalid literal"),
        ({"length": "40"}, r"its weights 'bias' are damaged|its weights 'weight' are damaged"),
    ],
)
def test_weights_elsewhere_are_refused(
    linear_digits: LinearDigits, tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    path = external(linear_digits.graph(), folder / "net.onnx")
    for secret in (tmp_path / "secret.data", outside / "secret.data"):
        shutil.copy(folder / "net.data", secret)
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    (folder / "folder").symlink_to(outside)
    point(path, **entries)
    if entries == {
        "length": "40"
    }:  # of the weights, which are larger; the first constant is the bias of 40 bytes
        point(path, length="36")
    with pytest.raises(OnnxError, match=message):
        read(path)


def test_weights_of_local_functions_and_constants_are_held_inside_too(
    linear_digits: LinearDigits, tmp_path: Path
) -> None:
    model = linear_digits.graph()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    constant = helper.make_node("Constant", [], ["weight"], value=weight)
    model.graph.initializer.remove(weight)
    model.graph.node.insert(0, constant)
    path = external(model, tmp_path / "net.onnx")
    inner = onnx.load(path, load_external_data=False)
    entry = next(e for e in inner.graph.node[0].attribute[0].t.external_data if e.key == "location")
    entry.value = "../net.data"
    path.write_bytes(inner.SerializeToString())
    with pytest.raises(OnnxError, match="which leaves its folder"):
        read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no ONNX file, or an empty one"),
        (b"hello, I am a text", "is no ONNX file, or damaged"),
        (None, "no such file; expected an ONNX file"),
    ],
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "net.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OnnxError, match=message):
        read(path)
    with pytest.raises(OnnxError, match="is a folder; expected an ONNX file"):
        read(tmp_path)


def test_a_file_that_is_cut_short_is_refused(linear_digits: LinearDigits, save: Save) -> None:
    path = save(linear_digits.graph())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OnnxError, match="is no ONNX file, or damaged"):
        read(path)


def small(
    *,
    nodes: list[onnx.NodeProto] | None = None,
    constants: dict[str, np.ndarray] | None = None,  # type: ignore[type-arg]
    inputs: dict[str, tuple[int, list[object]]] | None = None,
    outputs: dict[str, tuple[int, list[object]]] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """A graph of one Flatten and one Gemm, of which parts are exchanged."""
    return model_of(
        nodes or [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])],
        constants or {"w": np.ones((192, 2), np.float32)},
        inputs=inputs or {"x": (FLOAT, ["n", 3, 8, 8])},
        outputs=outputs or {"y": (FLOAT, ["n", 2])},
        opset=opset,
    )


def gemm_after(
    operator: str, inputs: list[str], outputs: int = 1, **attributes: object
) -> list[onnx.NodeProto]:
    made = [f"v{number}" for number in range(outputs)]
    return [
        helper.make_node(operator, inputs, made, **attributes),
        helper.make_node("Flatten", ["v0"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["y"]),
    ]


ONE = {"w": np.ones((192, 2), np.float32)}
NORM = {f"b{number}": np.ones(3, np.float32) for number in range(4)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            small(inputs={"x": (FLOAT, [4, 3, 8, 8])}),
            "its batch axis is fixed at 4: export it with a dynamic one",
        ),
        (small(inputs={"x": (FLOAT, ["n", 192])}), "its input 'x' has 2 axes, expected 4: a batch of images"),
        (
            small(inputs={"x": (INT64, ["n", 3, 8, 8])}),
            "its input 'x' takes int64, expected float32 or uint8",
        ),
        (
            small(inputs={"x": (TensorProto.FLOAT16, ["n", 3, 8, 8])}),
            "its input 'x' takes float16, expected float32 or uint8: export the network in float32",
        ),
        (
            small(outputs={"y": (INT64, ["n"])}),
            "gives int64, expected float32 logits: leave ArgMax out of the graph",
        ),
        (
            small(inputs={"x": (FLOAT, ["n", 3, 8, 8]), "mask": (FLOAT, ["n"])}),
            r"2 inputs \(x, mask\): export it with one, the images",
        ),
        (
            small(outputs={"y": (FLOAT, ["n", 2]), "f": (FLOAT, ["n", 192])}),
            r"2 outputs \(y, f\): export it with one, the logits",
        ),
        (small(opset=5), "opset 5, expected 7 to 22"),
        (small(opset=23), "opset 23, expected 7 to 22, .*: export it again, such as with opset_version=18"),
        (
            small(nodes=gemm_after("FusedConv", ["x"], domain="com.microsoft")),
            r"operators outside the ONNX standard \(com\.microsoft\.FusedConv\)",
        ),
        (
            small(nodes=gemm_after("DynamicQuantizeLinear", ["x"], 3)),
            r"it is quantised \(DynamicQuantizeLinear\): give the float32 graph",
        ),
        (
            small(constants={"w": np.ones((192, 2), np.float16)}),
            "its weights are float16: give the float32 graph",
        ),
        (
            small(nodes=gemm_after("RandomNormalLike", ["x"])),
            r"it draws random numbers \(RandomNormalLike\): export it for inference",
        ),
        (
            small(
                nodes=gemm_after("BatchNormalization", ["x", "b0", "b1", "b2", "b3"], 3, training_mode=1),
                constants={**ONE, **NORM},
            ),
            r"its batch norms are in training mode, .*: call model\.eval\(\) before the export",
        ),
        (
            small(constants={"w": np.full((192, 2), np.nan, np.float32)}),
            "its weights 'w' hold 384 NaN of 384 numbers",
        ),
        (
            small(
                nodes=[helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)],
                constants={"unused": np.ones(3, np.int64)},
            ),
            "holds no weights: expected a trained network",
        ),
        (
            small(nodes=[helper.make_node("Gemm", ["nowhere", "w"], ["y"])]),
            "is not valid ONNX: .*nowhere",
        ),
    ],
)
def test_what_is_no_plain_classifier_is_refused(save: Save, model: onnx.ModelProto, message: str) -> None:
    with pytest.raises(OnnxError, match=rf"net\.onnx: .*{message}"):
        read(save(model))


def test_everything_wrong_is_said_at_once(save: Save) -> None:
    model = small(
        opset=23,
        inputs={"x": (FLOAT, ["n", 3, 8, 8]), "mask": (FLOAT, ["n"])},
        constants={"w": np.ones((192, 2), np.float16)},
    )
    with pytest.raises(OnnxError, match=r"opset 23.*; its weights are float16.*; 2 inputs"):
        read(save(model))


def test_infinite_bounds_are_usual(save: Save) -> None:
    nodes = gemm_after("Clip", ["x", "low"])
    low = np.array(-np.inf, np.float32)
    assert read(save(small(nodes=nodes, constants={**ONE, "low": low}))).parameters == 385


def test_old_files_that_list_their_weights_as_inputs_are_read(
    linear_digits: LinearDigits, save: Save
) -> None:
    model = linear_digits.graph()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, FLOAT, tensor.dims))
    assert read(save(model)).input == "input"


@pytest.mark.parametrize(
    ("shape", "fields", "layout", "channels", "size"),
    [
        (["n", None, None, None], {"layout": "NHWC", "channels": 1}, "NHWC", 1, None),
        (["n", 3, None, None], {}, "NCHW", 3, None),
        (["n", None, None, 1], {}, "NHWC", 1, None),
        (["n", 3, 9, 3], {"layout": "NCHW"}, "NCHW", 3, (9, 3)),
        (["n", 3, 9, None], {}, "NCHW", 3, (9, 9)),
        (["n", None, 9, 7], {"layout": "NCHW", "channels": 3}, "NCHW", 3, (9, 7)),
    ],
)
def test_what_the_shape_leaves_open_is_told(
    save: Save,
    shape: list[object],
    fields: dict[str, object],
    layout: str,
    channels: int,
    size: tuple[int, int] | None,
) -> None:
    found = read(save(small(inputs={"x": (FLOAT, shape)})), **fields)
    assert (found.layout, found.shape.channels, found.shape.size) == (layout, channels, size)


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        (
            ["n", None, None, None],
            {},
            r"\? x \? x \? x \?, does not say where the channels are: give --layout",
        ),
        (["n", 3, 8, 3], {}, "does not say where the channels are: give --layout"),
        (["n", None, None, None], {"layout": "NCHW"}, "leaves the channels open: give --channels"),
        (
            ["n", 3, 8, 8],
            {"layout": "NHWC"},
            "as NHWC its input, .*, has 8 channels; expected 1 for grey or 3",
        ),
        (["n", 3, 8, 8], {"channels": 1}, "has 3 channels, but channels is 1"),
        (["n", 4, 8, 8], {"layout": "NCHW"}, "has 4 channels; expected 1 for grey or 3 for RGB"),
    ],
)
def test_a_shape_that_contradicts_or_must_be_told(
    save: Save, shape: list[object], fields: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        read(save(small(inputs={"x": (FLOAT, shape)})), **fields)


def test_local_functions_are_inlined(save: Save) -> None:
    model = small(
        nodes=[
            helper.make_node("Flatten", ["x"], ["f"]),
            helper.make_node("Head", ["f", "w"], ["y"], domain="mine"),
        ]
    )
    body = [helper.make_node("MatMul", ["a", "b"], ["c"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("mine", "Head", ["a", "b"], ["c"], body, opsets))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    found = read(save(model))
    assert [node.op_type for node in found.model.graph.node] == ["Flatten", "MatMul"]
    assert not found.model.functions
