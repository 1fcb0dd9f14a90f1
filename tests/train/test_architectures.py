"""The networks: their sizes, the order of their layers, what they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shipnet.runtime import UsageError
from shipnet.train.architectures import build
from shipnet.train.config import ARCHITECTURES, RESNETS, SMALL_NETS


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def kinds(net: nn.Module) -> list[str]:
    return [type(module).__name__ for module in net.modules() if not any(module.children())]


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [("basic_cnn", 12_126), ("conv_cnn", 12_044), ("mnist_resnet", 41_132), ("mnist_densenet", 52_940)],
)
def test_small_networks_have_the_known_number_of_parameters(arch: str, parameters: int) -> None:
    assert count(build(arch, channels=1, num_classes=10, image_size=28)) == parameters


# As torchvision documents them for 1,000 classes and three channels.
@pytest.mark.parametrize(
    ("arch", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
    ],
)
def test_resnets_have_the_documented_number_of_parameters(arch: str, parameters: int) -> None:
    with torch.device("meta"):
        net = build(arch, channels=3, num_classes=1000, image_size=224)
    assert count(net) == parameters


def test_layers_stand_in_the_stated_order() -> None:
    basic = kinds(build("basic_cnn", channels=1, num_classes=10, image_size=28))
    assert basic == ["Conv2d", "BatchNorm2d", "ReLU"] * 4 + ["Conv2d", "BatchNorm2d", "Flatten"]
    conv = kinds(build("conv_cnn", channels=1, num_classes=10, image_size=28))
    assert conv == ["Conv2d", "ReLU", "BatchNorm2d"] * 4 + ["Conv2d", "BatchNorm2d", "Flatten"]
    for arch in ("mnist_resnet", "mnist_densenet"):
        residual = kinds(build(arch, channels=1, num_classes=10, image_size=28))
        assert residual == ["Conv2d", "ReLU", "BatchNorm2d"] * 12 + ["Conv2d", "BatchNorm2d", "Flatten"]


@pytest.mark.parametrize("arch", SMALL_NETS)
def test_convolutions_have_the_stated_widths_strides_and_biases(arch: str) -> None:
    net = build(arch, channels=1, num_classes=10, image_size=28)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    halving = [conv for conv in convs if conv.stride == (2, 2)]
    assert [conv.out_channels for conv in halving] == [8, 16, 32, 16, 10]
    assert {conv.bias is not None for conv in convs} == {arch == "basic_cnn"}
    assert {conv.kernel_size for conv in convs} == {(3, 3)}


def test_a_dense_block_gives_its_input_and_its_output() -> None:
    dense = build("mnist_densenet", channels=1, num_classes=10, image_size=28).get_submodule("block1")
    plain = build("mnist_resnet", channels=1, num_classes=10, image_size=28).get_submodule("block1")
    x = torch.randn(2, 8, 14, 14)
    assert torch.equal(dense(x)[:, :8], x)
    assert torch.allclose(plain(x), x + plain.get_submodule("layers")(x))


@pytest.mark.parametrize("arch", SMALL_NETS)
@pytest.mark.parametrize("size", [8, 9, 28, 32, 33, 65, 100])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_networks_take_any_size_and_channels(arch: str, size: int, channels: int) -> None:
    net = build(arch, channels=channels, num_classes=7, image_size=size).eval()
    assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)
    assert any(isinstance(module, nn.AdaptiveAvgPool2d) for module in net.modules()) == (size > 32)


@pytest.mark.parametrize("arch", RESNETS)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 4), (64, 1), (64, 3)])
def test_resnets_take_any_size_and_channels(arch: str, size: int, channels: int) -> None:
    with torch.device("meta"):
        net = build(arch, channels=channels, num_classes=7, image_size=size).eval()
        assert net(torch.zeros(2, channels, size, size)).shape == (2, 7)
    stem = net.get_submodule("conv1")
    assert isinstance(stem, nn.Conv2d)
    assert stem.stride == ((1, 1) if size < 64 else (2, 2))
    assert isinstance(net.get_submodule("maxpool"), nn.Identity) == (size < 64)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("resnet", 28, r"arch is 'resnet' \(did you mean '.*'\?\); expected one of"),
        ("mnist_resnet", 7, r"image_size is 7; expected a whole number from 8"),
    ],
)
def test_what_cannot_be_built_is_refused(arch: str, size: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(arch, channels=1, num_classes=10, image_size=size)


def test_every_name_builds() -> None:
    with torch.device("meta"):
        for arch in ARCHITECTURES:
            assert count(build(arch, channels=3, num_classes=2, image_size=32)) > 10_000


@pytest.mark.parametrize(("arch", "same"), [("mnist_resnet", True), ("mnist_densenet", False)])
def test_residual_blocks_start_as_the_identity(arch: str, same: bool) -> None:
    net = build(arch, channels=1, num_classes=10, image_size=28).eval()
    width = 8
    x = torch.rand(2, width, 14, 14)
    out = net.block1(x)  # type: ignore[operator]
    assert torch.equal(out[:, :width], x)
    assert same == (out.shape == x.shape)
    if not same:
        assert out[:, width:].abs().max() > 0
