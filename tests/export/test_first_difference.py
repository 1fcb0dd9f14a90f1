"""The layer that was changed is the layer that is named."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shipnet.export.build import REPORT, export_source
from shipnet.export.config import ExportConfig
from shipnet.export.first_difference import first_difference
from shipnet.export.onnx_graph import exported_program, to_onnx
from shipnet.export.parity_report import FirstDifference, ParityReport
from shipnet.export.source import Source, from_run
from shipnet.runtime import ParityError
from shipnet.runtime.encoding import decode
from shipnet.train import load_run

Images = NDArray[np.uint8]
Change = Callable[[onnx.ModelProto], None]


def quiet(what: str, done: int, total: int) -> None:
    del what, done, total


@pytest.fixture(scope="module")
def source(digits_run: Path) -> Source:
    return from_run(load_run(digits_run), ExportConfig(), dataset=None, on_progress=quiet)


@pytest.fixture(scope="module")
def images(source: Source) -> Images:
    return source.evidence_images(3)


@pytest.fixture(scope="module")
def model(source: Source, images: Images) -> bytes:
    return source.to_onnx(images, {})


@pytest.fixture(scope="module")
def program(source: Source, images: Images) -> torch.export.ExportedProgram:
    assert source.network is not None
    return exported_program(source.network, images)


@pytest.fixture(scope="module")
def find(
    source: Source, images: Images, model: bytes, program: torch.export.ExportedProgram
) -> Callable[[Change], FirstDifference | None]:
    """What is found in the run's graph after a change."""

    def run(change: Change) -> FirstDifference | None:
        proto = onnx.load_from_string(model)
        change(proto)
        assert source.network is not None
        return first_difference(
            proto.SerializeToString(), source.network, program=program, images=images, indices=(5, 6, 7)
        )

    return run


def scaled(name: str, factor: float) -> Change:
    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
        values = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))

    return change


def test_the_graph_as_it_was_exported_differs_nowhere(
    find: Callable[[Change], FirstDifference | None],
) -> None:
    assert find(lambda _: None) is None


@pytest.mark.parametrize(
    ("weights", "layers", "op_type"),
    [
        ("pixel_mean", ("normalization",), "Sub"),
        ("pixel_std", ("normalization",), "Div"),
        ("net.conv1.0.weight", ("net.conv1.0",), "Conv"),
        ("net.conv1.2.running_mean", ("net.conv1.2",), "BatchNormalization"),
        ("net.conv2.2.running_var", ("net.conv2.2",), "BatchNormalization"),
        ("net.conv3.0.weight", ("net.conv3.0",), "Conv"),
        ("net.conv3.2.bias", ("net.conv3.2",), "BatchNormalization"),
        ("net.conv4.2.weight", ("net.conv4.2",), "BatchNormalization"),
        ("net.head.0.weight", ("net.head.0", "net.head.1"), "Conv"),
        ("net.head.0.weight_bias", ("net.head.0", "net.head.1"), "Conv"),
    ],
)
def test_one_per_cent_is_found_where_it_is(
    find: Callable[[Change], FirstDifference | None], weights: str, layers: tuple[str, ...], op_type: str
) -> None:
    found = find(scaled(weights, 1.01))
    assert found is not None
    assert (found.layers, found.op_type, found.differing) == (layers, op_type, 1)
    assert weights in found.weights
    assert found.image in (5, 6, 7)
    assert found.found is not None
    assert 2e-5 < found.max_relative_difference < 0.1
    assert f"the first layer that differs is {' with '.join(layers)} (ONNX node " in str(found)


def test_both_values_are_told(
    find: Callable[[Change], FirstDifference | None], source: Source, images: Images
) -> None:
    found = find(scaled("net.conv1.0.weight", 1.01))
    assert found is not None and source.network is not None
    kept: list[Tensor] = []
    with torch.no_grad():
        layer = source.network.get_submodule("net.conv1.0")
        handle = layer.register_forward_hook(lambda _module, _args, out: kept.append(out))
        source.network(torch.from_numpy(images))
        handle.remove()
    (values,) = kept
    value = values[found.image - 5][found.place]
    assert found.expected == pytest.approx(float(value))
    assert found.found == pytest.approx(1.01 * float(value), rel=1e-5)
    assert abs(value) == values.abs().max()


def test_an_attribute_is_seen_too(find: Callable[[Change], FirstDifference | None]) -> None:
    def change(model: onnx.ModelProto) -> None:
        norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
        (epsilon,) = (attribute for attribute in norms[1].attribute if attribute.name == "epsilon")
        epsilon.f = 1e-2

    found = find(change)
    assert found is not None
    assert found.layers == ("net.conv2.2",)


def test_an_operation_left_out_is_seen(find: Callable[[Change], FirstDifference | None]) -> None:
    def change(model: onnx.ModelProto) -> None:
        (relu,) = (node for node in model.graph.node if node.name == "node_relu_1")
        relu.op_type = "Identity"

    found = find(change)
    assert found is not None
    assert (found.layers, found.op_type) == (("net.conv2.1",), "Identity")


def test_of_several_the_first_is_named_and_the_others_counted(
    find: Callable[[Change], FirstDifference | None],
) -> None:
    def change(model: onnx.ModelProto) -> None:
        scaled("net.head.0.weight", 1.5)(model)
        scaled("net.conv3.0.weight", 1.01)(model)

    found = find(change)
    assert found is not None
    assert (found.layers, found.differing) == (("net.conv3.0",), 2)
    assert str(found).endswith(f"; 1 later of {found.compared} layers too")


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_no_number_is_a_difference(find: Callable[[Change], FirstDifference | None], factor: float) -> None:
    found = find(scaled("net.conv2.0.weight", factor))
    assert found is not None
    assert (found.layers, found.found) == (("net.conv2.0",), None)
    assert "it gives NaN or infinity where PyTorch gives" in str(found)


@pytest.mark.slow
def test_a_program_that_is_not_the_network_is_held_against_the_network(
    source: Source, images: Images, digits_run: Path
) -> None:
    """The graph does what the exporter's own program does; the validated network decides."""
    changed = load_run(digits_run).network().eval()
    with torch.no_grad():
        changed.get_parameter("net.conv2.0.weight").mul_(1.01)
    model, program = to_onnx(changed, images, metadata={}), exported_program(changed, images)
    assert source.network is not None
    found = first_difference(model, source.network, program=program, images=images, indices=(0, 1, 2))
    assert found is not None
    assert found.layers == ("net.conv2.0",)


class Functional(nn.Module):
    """A network that is no `Deployable`, with operations between its layers and a layer called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = images.to(torch.float32).permute(0, 3, 1, 2).contiguous() / 255
        x = torch.relu(self.layer(x)) * 0.5
        x = self.layer(x) + x
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


@pytest.mark.slow
def test_operations_between_layers_belong_to_the_module_that_calls_them() -> None:
    torch.manual_seed(0)
    network = Functional().eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), np.uint8)
    model, program = to_onnx(network, images, metadata={}), exported_program(network, images)

    def found(change: Change) -> FirstDifference | None:
        proto = onnx.load_from_string(model)
        change(proto)
        return first_difference(
            proto.SerializeToString(), network, program=program, images=images, indices=(0, 1)
        )

    def swap(before: str, after: str) -> Change:
        def change(proto: onnx.ModelProto) -> None:
            next(node for node in proto.graph.node if node.op_type == before).op_type = after

        return change

    assert found(lambda _: None) is None
    for change, op_type in ((swap("Mul", "Add"), "Add"), (swap("Add", "Sub"), "Sub")):
        between = found(change)
        assert between is not None
        assert (between.layers, between.op_type) == (("Functional",), op_type)
    called_twice = found(scaled("layer.weight", 1.01))
    assert called_twice is not None
    assert (called_twice.layers, called_twice.differing) == (("layer",), 2)


def test_a_failed_export_names_the_layer(source: Source, tmp_path: Path) -> None:
    def broken(images: Images, metadata: object) -> bytes:
        del metadata
        model = onnx.load_from_string(source.to_onnx(images, {}))
        scaled("net.conv3.0.weight", 1.01)(model)
        return bytes(model.SerializeToString())

    config = ExportConfig(interop=False)
    with pytest.raises(ParityError, match=r"first layer that differs is net\.conv3\.0 \(ONNX node") as caught:
        export_source(replace(source, to_onnx=broken), config, out=tmp_path / "b", on_progress=quiet)
    report = decode((tmp_path / REPORT).read_bytes(), ParityReport, where="report")
    assert report == caught.value.report
    assert report.first_difference is not None
    assert report.first_difference.image in {item.index for item in report.formats[0].worst}
    assert not (tmp_path / "b").exists()
    foreign = replace(source, to_onnx=broken, network=None)
    with pytest.raises(ParityError, match=r"see .*parity-report\.json") as caught:
        export_source(foreign, config, out=tmp_path / "b", on_progress=quiet)
    assert isinstance(caught.value.report, ParityReport)
    assert caught.value.report.first_difference is None
