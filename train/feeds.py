"""Batches for training and validation: from memory, or decoded by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from shipnet.runtime.errors import ShipnetError

from .augment import BatchAugment, augment_photo
from .config import TrainConfig
from .images import Dataset, pixels
from .order import epoch_order
from .photos import Photos
from .recipe import Recipe, settings
from .splits import Indices

Batch = tuple[Tensor, Tensor]  # uint8 (B, H, W, C), int64 (B,)
# Small images: more does not evaluate faster on a CPU, and activations stay in its cache.
EVALUATION_BATCH = 1_000


class Feed(Protocol):
    """Where batches come from. An epoch's order and augmentation depend on seed and epoch alone."""

    steps: int

    def train(self, epoch: int) -> Iterator[Batch]:
        """`steps` augmented batches of equal size, on the device; what is left over sits the epoch out."""

    def names(self, epoch: int, step: int) -> tuple[str, ...]:
        """Of the images in one training batch; both numbers count from 1."""

    def valid(self, indices: Indices | None = None) -> Iterator[Batch]:
        """Every validation image once, or those at `indices`, in order, on the device."""


def open_feed(
    dataset: Dataset, config: TrainConfig, device: torch.device, *, photos: Photos | None = None
) -> Feed:
    """The feed that fits the data; `config` as `recipe.resolve` gives it, `photos` as `read_images`.

    Raises:
        ImageError: a file that is no image.
    """
    if dataset.in_memory:
        return MemoryFeed(dataset, config, device)
    return FileFeed(dataset, config, device, photos=photos)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """A CPU generator whose stream belongs to one epoch of one run."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> 1))


class MemoryFeed:
    """Small images as tensors on the device."""

    def __init__(self, dataset: Dataset, config: TrainConfig, device: torch.device) -> None:
        assert config.batch_size is not None and config.flip is not None
        self.device, self.seed, self.batch_size = device, config.seed, config.batch_size
        self.train_set, self.balance = dataset.train, config.balance
        self.steps = len(dataset.train) // config.batch_size
        self.labels = torch.from_numpy(dataset.train.labels).to(device)
        images = torch.from_numpy(pixels(dataset.train, dataset.spec)).to(device)
        self.augment = BatchAugment(images, settings(config))
        self.valid_images = torch.from_numpy(pixels(dataset.valid, dataset.spec)).to(device)
        self.valid_labels = torch.from_numpy(dataset.valid.labels).to(device)

    def train(self, epoch: int) -> Iterator[Batch]:
        """As `Feed.train`."""
        generator = epoch_generator(self.seed, epoch)
        order = epoch_order(self.train_set.labels, generator, balance=self.balance).to(self.device)
        for step in range(self.steps):
            chosen = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield self.augment(chosen, generator), self.labels[chosen]

    def names(self, epoch: int, step: int) -> tuple[str, ...]:
        """As `Feed.names`."""
        order = epoch_order(self.train_set.labels, epoch_generator(self.seed, epoch), balance=self.balance)
        chosen = order[(step - 1) * self.batch_size : step * self.batch_size]
        return tuple(self.train_set.names[index] for index in chosen.tolist())

    def valid(self, indices: Indices | None = None) -> Iterator[Batch]:
        """As `Feed.valid`."""
        images, labels = self.valid_images, self.valid_labels
        if indices is not None:
            chosen = torch.from_numpy(indices).to(self.device)
            images, labels = images[chosen], labels[chosen]
        for start in range(0, len(labels), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            yield images[part], labels[part]


Item = tuple[int, int | None]  # an image's index, and the seed of its augmentation (None: validation)


class FileFeed:
    """Photographs, prepared by one pool of worker processes that serves training and validation."""

    def __init__(
        self, dataset: Dataset, config: TrainConfig, device: torch.device, *, photos: Photos | None = None
    ) -> None:
        assert config.batch_size is not None and config.flip is not None and config.workers is not None
        self.device, self.seed, self.batch_size = device, config.seed, config.batch_size
        self.train_set, self.balance = dataset.train, config.balance
        self.valid_count = len(dataset.valid)
        self.steps = len(dataset.train) // config.batch_size
        self.plan = _Plan()
        self.loader: DataLoader[Any] = DataLoader(
            _Photographs(dataset, photos or Photos(dataset), settings(config)),
            batch_sampler=self.plan,
            collate_fn=_collate,
            num_workers=config.workers,
            persistent_workers=config.workers > 0,
            pin_memory=device.type == "cuda",
        )

    def train(self, epoch: int) -> Iterator[Batch]:
        """As `Feed.train`."""
        generator = epoch_generator(self.seed, epoch)
        order = epoch_order(self.train_set.labels, generator, balance=self.balance)
        order = order[: self.steps * self.batch_size]
        seeds = torch.randint(2**62, (len(order),), generator=generator)
        items: list[Item] = list(zip(order.tolist(), seeds.tolist(), strict=True))
        return self._batches(items, self.batch_size)

    def names(self, epoch: int, step: int) -> tuple[str, ...]:
        """As `Feed.names`."""
        order = epoch_order(self.train_set.labels, epoch_generator(self.seed, epoch), balance=self.balance)
        chosen = order[(step - 1) * self.batch_size : step * self.batch_size]
        return tuple(self.train_set.names[index] for index in chosen.tolist())

    def valid(self, indices: Indices | None = None) -> Iterator[Batch]:
        """As `Feed.valid`."""
        chosen = range(self.valid_count) if indices is None else indices.tolist()
        return self._batches([(index, None) for index in chosen], self.batch_size)

    def _batches(self, items: list[Item], size: int) -> Iterator[Batch]:
        self.plan.batches = [items[start : start + size] for start in range(0, len(items), size)]
        for batch in self.loader:
            if isinstance(batch, ShipnetError):
                raise batch
            images, labels = batch
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)


class _Plan:
    """A batch sampler whose list is set before each pass, so that the workers live on."""

    def __init__(self) -> None:
        self.batches: list[list[Item]] = []

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Photographs(TorchDataset[Any]):
    """What a worker does: one photograph to pixels. An error is a value, so that it arrives as it was raised."""

    def __init__(self, dataset: Dataset, photos: Photos, recipe: Recipe) -> None:
        self.photos, self.recipe, self.spec = photos, recipe, dataset.spec
        self.train_labels, self.valid_labels = dataset.train.labels, dataset.valid.labels

    def __getitem__(self, item: Item) -> tuple[NDArray[np.uint8], int] | ShipnetError:
        index, seed = item
        try:
            if seed is None:
                return self.photos.valid(index), int(self.valid_labels[index])
            flip, trivial = self.recipe.flip, self.recipe.trivial_augment
            image = augment_photo(self.photos.train(index), self.spec, flip=flip, trivial=trivial, seed=seed)
            return image, int(self.train_labels[index])
        except ShipnetError as error:
            return error


def _collate(items: list[tuple[NDArray[np.uint8], int] | ShipnetError]) -> Batch | ShipnetError:
    good = []
    for item in items:
        if isinstance(item, ShipnetError):
            return item
        good.append(item)
    images, labels = zip(*good, strict=True)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)
