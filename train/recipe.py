"""What a configuration leaves open, decided from the data."""

from __future__ import annotations

import msgspec
import numpy as np

from shipnet.runtime.errors import UsageError
from shipnet.runtime.machine import available_cores

from .config import SMALL_NETS, TrainConfig
from .images import Dataset

# Peaks of one cycle with AdamW, found by trying; the small networks, all batch norm, take a high one.
SMALL_NET_LR = 0.05
RESNET_LR = 2e-3
LEAST_STEPS = 1_320
LEAST_PIXELS_TO_SHARE = 16_384  # in one batch


def resolve(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The configuration with every open choice made, mean and std excepted. It is what `run.json` holds.

    Raises:
        UsageError: a batch larger than the training data has images, or statistics that do not fit its channels.
    """
    small = dataset.in_memory
    count = len(dataset.train)
    channels = dataset.spec.channels
    if config.mean is not None and len(config.mean) != channels:
        raise UsageError(
            f"mean and std have {len(config.mean)} value(s), but the images of {dataset.name} {channels}"
        )
    if config.batch_size is not None and config.batch_size > count:
        raise UsageError(f"batch_size is {config.batch_size}, but {dataset.name} has {count} training images")
    arch = config.arch or ("mnist_resnet" if small else "resnet18")
    batch_size = config.batch_size or _batch_size(count, small=small)
    return msgspec.structs.replace(
        config,
        arch=arch,
        epochs=config.epochs or _epochs(count // batch_size, small=small),
        max_lr=config.max_lr or (SMALL_NET_LR if arch in SMALL_NETS else RESNET_LR),
        batch_size=batch_size,
        flip=_flip(config, dataset) if config.flip is None else config.flip,
        workers=_workers(config.workers, small=small),
    )


def _flip(config: TrainConfig, dataset: Dataset) -> bool:
    """Photographs and cifar10 show the same mirrored; digits and other small images may not."""
    photographs = not dataset.in_memory and not isinstance(dataset.train.sources, np.ndarray)
    return photographs or config.data.data == "cifar10"


def _batch_size(count: int, *, small: bool) -> int:
    """A power of two that makes some 100 steps an epoch: small images 64 to 512, photographs 16 to 64.

    On MNIST 12 epochs at a peak of 0.05 reach 99.53 % with batches of 512, the notebook's, and 99.39 % with 256.
    """
    size, largest = (64, 512) if small else (16, 64)
    while size < largest and size * (100 if small else 200) <= count:
        size *= 2
    return min(size, count)


def _epochs(steps: int, *, small: bool) -> int:
    """Enough steps to converge. On digits, 22 steps an epoch, 30 epochs reach 96 to 98 %, 60 epochs 97 to 98 %."""
    return min(max(12, round(LEAST_STEPS / steps)), 60) if small else 20


def _workers(asked: int | None, *, small: bool) -> int:
    if small:
        return 0
    return min(8, available_cores().usable) if asked is None else asked


def cpu_threads(config: TrainConfig, dataset: Dataset, *, most: int) -> int:
    """How many threads a step on the CPU uses; `config` as `resolve` gives it.

    One where a batch is so small that threads mostly wait for each other: at 64 images of 8x8 pixels
    one thread trains as fast as two on an idle machine, and 17 times as fast beside a busy neighbour.

    Args:
        config: the batch size is read from it.
        dataset: the image size is read from it.
        most: what the library was told to use at most, by OMP_NUM_THREADS or `torch.set_num_threads`.
    """
    batch_pixels = int(config.batch_size or 1) * dataset.spec.height * dataset.spec.width
    return 1 if batch_pixels < LEAST_PIXELS_TO_SHARE else min(most, available_cores().usable)
