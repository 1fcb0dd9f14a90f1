"""Every architecture exports to a graph that keeps the bundle's rules and computes what the network does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from shipnet.export.onnx_graph import to_onnx, versions
from shipnet.runtime import ParityError
from shipnet.runtime.backends.ort import OrtBackend
from shipnet.train import Deployable
from shipnet.train.architectures import build


def random_images(size: int, channels: int, count: int = 5) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("arch", "size", "channels", "classes"),
    [
        ("basic_cnn", 28, 1, 10),
        ("conv_cnn", 8, 3, 2),
        ("mnist_resnet", 28, 1, 10),
        ("mnist_resnet", 70, 3, 4),
        ("mnist_densenet", 28, 1, 10),
        ("resnet18", 32, 3, 5),
        ("resnet18", 64, 3, 5),
        ("resnext50_32x4d", 64, 3, 3),
    ],
)
def test_an_architecture_exports_whole(arch: str, size: int, channels: int, classes: int) -> None:
    torch.manual_seed(0)
    net = build(arch, channels=channels, num_classes=classes, image_size=size)
    network = Deployable(net, [0.4] * channels, [0.3] * channels).eval()
    images = random_images(size, channels)
    model = to_onnx(network, images[:2], metadata={"key": "value"})
    graph = onnx.load_from_string(model).graph
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    assert [node.op_type for node in graph.node[:2]] == ["Cast", "Transpose"]
    assert not {node.op_type for node in graph.node} & {"Shape", "Gather", "Loop", "If", "Range"}
    assert versions(model) == (18, 10)
    backend = OrtBackend.open(model, provider="CPUExecutionProvider")
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    for count in (1, 2, 3, 5):
        found = backend.run(images[:count])
        assert found.dtype == np.float32
        assert np.abs(found - expected[:count]).max() <= 1e-4 * np.abs(expected).max()


class TwoReaders(nn.Module):
    """Reads its input twice, which TensorRT refuses of a uint8 input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        both = images.to(torch.float32).permute(0, 3, 1, 2) + images.to(torch.float64).permute(0, 3, 1, 2)
        return both.float().flatten(1)


class EarlyScale(nn.Module):
    """Normalises before it transposes."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.to(torch.float32) / 255).permute(0, 3, 1, 2).flatten(1)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (TwoReaders(), r"the input feeds \['Cast', 'Cast'\], expected one Cast"),
        (EarlyScale(), "the graph does not begin with Cast and Transpose"),
    ],
)
def test_a_graph_that_breaks_the_rules_is_refused(network: nn.Module, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        to_onnx(network.eval(), random_images(8, 1), metadata={})
