"""In which order an epoch shows its images."""

from __future__ import annotations

import torch
from torch import Tensor

from .splits import Indices


def epoch_order(labels: Indices, generator: torch.Generator, *, balance: bool) -> Tensor:
    """Indices into the training images, int64 (N,).

    Args:
        labels: of the N images, int64 (N,).
        generator: on the CPU; decides.
        balance: draw with replacement, each image with a probability of one over its class's size, so
            that every class is expected equally often; else every image once.
    """
    if not balance:
        return torch.randperm(len(labels), generator=generator)
    classes = torch.from_numpy(labels)
    weights = 1 / torch.bincount(classes)[classes].double()
    return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
