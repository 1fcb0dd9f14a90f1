"""What a configuration leaves open, decided from the data."""

from __future__ import annotations

import os

import msgspec
from shipnet.runtime.errors import UsageError

from .config import TrainConfig
from .images import Dataset


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
    return msgspec.structs.replace(
        config,
        arch=config.arch or ("mnist_resnet" if small else "resnet18"),
        epochs=config.epochs or (12 if small else 10),
        max_lr=config.max_lr or (0.02 if small else 2e-3),
        batch_size=config.batch_size or _batch_size(count, small=small),
        flip=(not small or dataset.name == "cifar10") if config.flip is None else config.flip,
        workers=_workers(config.workers, small=small),
    )


def _batch_size(count: int, *, small: bool) -> int:
    """A power of two that makes some 50 steps an epoch, from 16 up; small images to 256, photographs to 64."""
    size = 16
    while size * 100 <= count and size < (256 if small else 64):
        size *= 2
    return min(size, count)


def _workers(asked: int | None, *, small: bool) -> int:
    if small:
        return 0
    return min(8, available_cpus()) if asked is None else asked


def available_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
