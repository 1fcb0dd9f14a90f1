"""What a training run reports while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec


@dataclass(frozen=True, slots=True)
class Started:
    """The data is read and the network stands.

    Attributes:
        device: the hardware, and whether it was chosen automatically.
        data: the data set's name.
        steps: optimiser steps in each epoch.
        start: what was done with the weights that training starts from, a sentence each.
    """

    arch: str
    parameters: int
    device: str
    data: str
    train_images: int
    valid_images: int
    epochs: int
    steps: int
    start: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LrFound:
    """`max_lr` was "auto", and a sweep over training images has found it.

    Attributes:
        max_lr: that was found, by the valley rule.
        steps: of the sweep.
        wall_s: seconds of the sweep.
    """

    max_lr: float
    steps: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Reading:
    """So many of all images are decoded, before training begins."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class StepDone:
    """One optimiser step; both numbers count from 1."""

    epoch: int
    step: int


class EpochDone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One pass over the training images, measured on all validation images in fp32.

    Attributes:
        epoch: counts from 1.
        train_loss: mean cross-entropy of the augmented training batches, while the weights changed.
        valid_loss, accuracy: of the weights at the epoch's end.
        learning_rate: at the epoch's last step.
        wall_s: seconds, validation included.
    """

    epoch: int
    train_loss: float
    valid_loss: float
    accuracy: float
    learning_rate: float
    wall_s: float


Event: TypeAlias = Reading | LrFound | Started | StepDone | EpochDone
OnEvent: TypeAlias = Callable[[Event], None]
