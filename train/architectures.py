"""The networks, by name: four small ones for small images, and torchvision's ResNet family."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from .config import ARCHITECTURES, SMALL_NETS, SMALLEST_IMAGE, check_name, check_number

# Channels after each of the five stride-2 convolutions of the small networks; the fifth has one per class.
WIDTHS = (8, 16, 32, 16)
# Below this side a stride-4 stem would throw most of the image away.
FULL_STEM_FROM = 64


def build(arch: str, *, channels: int, num_classes: int, image_size: int) -> nn.Module:
    """A network with fresh weights: float32 (N, channels, image_size, image_size) -> logits (N, num_classes).

    Example:
        >>> from shipnet.train.architectures import build
        >>> net = build("mnist_resnet", channels=1, num_classes=10, image_size=28)
        >>> sum(parameter.numel() for parameter in net.parameters())
        41132

    Raises:
        UsageError: an unknown name, or a size that the network cannot take.
    """
    check_name("arch", arch, ARCHITECTURES)
    check_number("channels", channels, low=1, high=1024, whole=True)
    check_number("num_classes", num_classes, low=2, high=1_000_000, whole=True)
    check_number("image_size", image_size, low=SMALLEST_IMAGE, high=4096, whole=True)
    if arch in SMALL_NETS:
        return _small_net(arch, channels, num_classes=num_classes, image_size=image_size)
    return _resnet(arch, channels, num_classes=num_classes, image_size=image_size)


class Residual(nn.Module):
    """`x + layers(x)`, or their concatenation along the channels.

    Source: He et al., Deep Residual Learning for Image Recognition, arXiv:1512.03385; Huang et al.,
    Densely Connected Convolutional Networks, arXiv:1608.06993.
    """

    def __init__(self, layers: nn.Module, *, dense: bool = False) -> None:
        super().__init__()
        self.layers = layers
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        """Float32 (N, C, H, W) -> (N, C, H, W), or (N, 2 C, H, W) where dense."""
        return torch.cat((x, self.layers(x)), dim=1) if self.dense else x + self.layers(x)


def _small_net(arch: str, channels: int, *, num_classes: int, image_size: int) -> nn.Module:
    """Five stride-2 stages, then logits: the networks of fast.ai's MNIST lesson (Practical Deep Learning, 2019).

    Each residual block starts as the identity, as torchvision's do below.
    """
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    for number, width in enumerate(WIDTHS, start=1):
        stages[f"conv{number}"] = (
            _basic(channels, width) if arch == "basic_cnn" else _conv(channels, width, stride=2)
        )
        channels = width
        if arch in ("mnist_resnet", "mnist_densenet"):
            dense = arch == "mnist_densenet"
            pair = nn.Sequential(_conv(width, width, stride=1), _conv(width, width, stride=1))
            if not dense:
                nn.init.zeros_(pair.get_parameter("1.2.weight"))
            stages[f"block{number}"] = Residual(pair, dense=dense)
            channels = 2 * width if dense else width
    stages["head"] = nn.Sequential(
        nn.Conv2d(channels, num_classes, 3, stride=2, padding=1, bias=arch == "basic_cnn"),
        nn.BatchNorm2d(num_classes),
    )
    if image_size > 2 ** (len(WIDTHS) + 1):  # five halvings, rounded up, leave more than one pixel
        stages["pool"] = nn.AdaptiveAvgPool2d(1)
    stages["flatten"] = nn.Flatten()
    return nn.Sequential(stages)


def _basic(channels: int, width: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def _conv(channels: int, width: int, *, stride: int) -> nn.Module:
    """Convolution, ReLU, batch norm, in fast.ai's order; the batch norm makes a bias needless."""
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(conv, nn.ReLU(), nn.BatchNorm2d(width))


def _resnet(arch: str, channels: int, *, num_classes: int, image_size: int) -> nn.Module:
    """The network of torchvision without weights. Each block starts as the identity (`zero_init_residual`).

    Source: Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677, section 5.1, for the zero
    start; He et al., arXiv:1512.03385, section 4.2, for a 3x3 stride-1 stem on 32-pixel images.
    """
    net: nn.Module = get_model(arch, weights=None, num_classes=num_classes, zero_init_residual=True)
    if image_size < FULL_STEM_FROM:
        stem = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif channels != 3:
        stem = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    else:
        return net
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    net.conv1 = stem
    return net
