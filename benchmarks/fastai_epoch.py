"""Epochs of the notebook's ResNet as fastai 2 users write it. Runs in an environment with fastai, without shipnet.

    python benchmarks/fastai_epoch.py FOLDER --epochs 1

FOLDER holds `training/CLASS/*.png` and `testing/CLASS/*.png` (`against_fastai.py` writes it). Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import time

import fastai
import torch
from fastai.vision.all import (
    CategoryBlock,
    CropPad,
    DataBlock,
    GrandparentSplitter,
    ImageBlock,
    Learner,
    PILImageBW,
    RandomCrop,
    accuracy,
    get_image_files,
    parent_label,
)
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(width, width, 1), conv(width, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


def conv(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(width)
    )


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 1
    for width in (8, 16, 32, 16):
        layers += [conv(channels, width, 2), Block(width)]
        channels = width
    return nn.Sequential(
        *layers, nn.Conv2d(channels, 10, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(10), nn.Flatten()
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=1)
    arguments = parser.parse_args()
    block = DataBlock(
        blocks=(ImageBlock(PILImageBW), CategoryBlock),
        get_items=get_image_files,
        splitter=GrandparentSplitter("training", "testing"),
        get_y=parent_label,
        item_tfms=[CropPad(34), RandomCrop(28)],
    )
    loaders = block.dataloaders(arguments.folder, bs=512, num_workers=2)
    learner = Learner(loaders, network(), loss_func=nn.CrossEntropyLoss(), metrics=accuracy)
    seconds = []
    with learner.no_bar(), learner.no_logging():
        for _ in range(arguments.epochs):
            start = time.perf_counter()
            learner.fit_one_cycle(1, 0.05)
            seconds.append(time.perf_counter() - start)
    print(json.dumps({"epoch_s": seconds, "fastai": fastai.__version__, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
