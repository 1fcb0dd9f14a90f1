"""A small network with everything that a ResNet on photographs has, as a graph, with pictures for it."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shipnet.export.onnx_graph import to_onnx
from shipnet.export.rewrite import prepared
from shipnet.train.normalize import Deployable


class SmallResnet(nn.Module):
    """Convolution, pool, a residual block with a projection, a batch norm behind a ReLU, mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.block = nn.Sequential(
            nn.Conv2d(8, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
        )
        self.projection = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.late = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(16))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(self.block(x) + self.projection(x))
        logits: Tensor = self.head(self.late(x).mean(dim=(2, 3)))
        return logits


@cache
def colours() -> NDArray[np.uint8]:
    """Smooth pictures, uint8 (96, 24, 24, 3), whose channels have means far apart."""
    coarse = np.random.default_rng(0).uniform(0, 255, (96, 6, 6, 3))
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2) * (0.9, 0.5, 0.2) + (20, 60, 10)
    return smooth.astype(np.uint8)


@cache
def small_resnet() -> nn.Module:
    """Fresh weights, with the statistics that its batch norms find on the pictures, and some negative factors."""
    torch.manual_seed(0)
    network = SmallResnet()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.0, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            module.momentum = None  # the plain average
    deployable = Deployable(network, mean=(0.52, 0.48, 0.14), std=(0.3, 0.2, 0.08))
    network.train()
    with torch.no_grad():
        deployable(torch.from_numpy(colours()))
        network.head.weight *= 20
        network.head.bias -= deployable.eval()(torch.from_numpy(colours())).mean(
            dim=0
        )  # so that no class is the rule
    return deployable


@cache
def resnet_onnx() -> bytes:
    """Its fp32 graph, as a bundle carries it."""
    return to_onnx(small_resnet(), colours()[:2], metadata={"shipnet.name": "small"})


@cache
def _prepared() -> bytes:
    return bytes(prepared(resnet_onnx()).SerializeToString())


def resnet_graph() -> onnx.ModelProto:
    """The same, prepared for other precisions: a copy of one's own."""
    return onnx.load_from_string(_prepared())
