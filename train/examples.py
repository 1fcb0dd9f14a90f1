"""A few images as the network gets them, taken from the feed that training uses."""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from .config import TrainConfig
from .feeds import Batch, open_feed
from .images import Dataset
from .splits import Indices


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Images with their classes.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: the class of each, by name.
    """

    images: NDArray[np.uint8]
    labels: tuple[str, ...]


def draw_examples(dataset: Dataset, config: TrainConfig, count: int) -> tuple[Examples, Examples]:
    """Training images as augmentation leaves them, and validation images as they are measured.

    Both come out of a `Feed` over a few images, of as many classes as there is room for.

    Args:
        dataset: of which the images are.
        config: as `recipe.resolve` gives it; its seed chooses.
        count: how many of each kind at most, 2 or more.

    Returns:
        (training, validation), each by class.

    Raises:
        ImageError: a file that is no image.
    """
    train = dataset.train.subset(spread(dataset.train.labels, count, seed=config.seed))
    valid = dataset.valid.subset(spread(dataset.valid.labels, count, seed=config.seed))
    few = replace(dataset, train=train, valid=valid, test=None)
    config = msgspec.structs.replace(config, batch_size=len(train), balance=False, workers=0)
    feed = open_feed(few, config, torch.device("cpu"))
    return _examples(next(feed.train(1)), dataset.labels), _examples(next(feed.valid()), dataset.labels)


def spread(labels: Indices, count: int, *, seed: int) -> Indices:
    """Indices of `count` images, or of all, by class: no class has two more than another that has images left."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)  # how many of its class come before each
    for label in np.unique(labels):
        members = np.flatnonzero(labels[shuffled] == label)
        turn[members] = np.arange(len(members))
    chosen = shuffled[np.argsort(turn, kind="stable")[:count]]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _examples(batch: Batch, names: tuple[str, ...]) -> Examples:
    images, labels = batch[0].numpy(), batch[1].numpy()
    order = np.argsort(labels, kind="stable")
    return Examples(images[order], tuple(names[label] for label in labels[order]))
