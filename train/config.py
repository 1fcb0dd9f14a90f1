"""What a training run is asked to do, as frozen values. Imports no torch: the command line reads this first."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence

from msgspec import Struct, field

from shipnet.runtime.errors import UsageError

BUILT_IN = ("digits", "mnist", "fashion-mnist", "cifar10")
SMALL_NETS = ("basic_cnn", "conv_cnn", "mnist_resnet", "mnist_densenet")
RESNETS = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
ARCHITECTURES = SMALL_NETS + RESNETS
SMALLEST_IMAGE = 8


class DataConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which images, and how they are divided.

    Attributes:
        data: the name of a built-in data set, or the path of a folder of images.
        data_root: where the files of `mnist`, `fashion-mnist` or `cifar10` lie; None means the
            environment variable SHIPNET_DATA, then a download.
        val_fraction: the share of each class that validates, where the data has no such division.
        image_size: side of the square that the network sees, in pixels; None: as the images are.
        seed: of the division into training and validation. It is not the training's seed, so
            that runs of different seeds are measured on the same images.
    """

    data: str = "digits"
    data_root: str | None = None
    val_fraction: float = 0.2
    image_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError(f"data is empty; expected a folder or one of: {', '.join(BUILT_IN)}")
        check_number("val_fraction", self.val_fraction, low=0.01, high=0.99)
        check_number("image_size", self.image_size, low=SMALLEST_IMAGE, high=4096, whole=True)
        check_number("seed", self.seed, low=0, high=2**32 - 1, whole=True)


class TrainConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training run, whole. None means: the data decides (see `shipnet.train.recipe`).

    Attributes:
        data: the images.
        arch: one of `ARCHITECTURES`.
        epochs: passes over the training images.
        max_lr: the peak of the one-cycle learning rate.
        batch_size: images per optimiser step.
        weight_decay: decoupled (AdamW), on the weights of convolutions and linear layers only.
        seed: of the initial weights, the order of images and their augmentation.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        mean, std: per channel in units of [0, 1]; None: of the training images.
        flip: whether training mirrors images left to right at random.
        workers: processes that decode photographs; 0 decodes in the training process.
    """

    data: DataConfig = field(default_factory=DataConfig)
    arch: str | None = None
    epochs: int | None = None
    max_lr: float | None = None
    batch_size: int | None = None
    weight_decay: float = 0.01
    seed: int = 0
    device: str = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    flip: bool | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.arch is not None:
            check_name("arch", self.arch, ARCHITECTURES)
        check_number("epochs", self.epochs, low=1, high=100_000, whole=True)
        check_number("max_lr", self.max_lr, low=1e-8, high=100.0)
        check_number("batch_size", self.batch_size, low=2, high=65_536, whole=True)
        check_number("weight_decay", self.weight_decay, low=0.0, high=10.0)
        check_number("seed", self.seed, low=0, high=2**32 - 1, whole=True)
        check_number("workers", self.workers, low=0, high=256, whole=True)
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            check_name("device", self.device, ("auto", "cpu", "cuda", "mps"))
        self._check_statistics()

    def _check_statistics(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise UsageError("mean and std go together: give both, or neither to take them from the data")
        for value in self.mean or ():
            check_number("mean", value, low=0.0, high=1.0)
        for value in self.std or ():
            check_number("std", value, low=1e-4, high=10.0)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise UsageError(f"{name} has {len(values)} values; expected one per channel, so 1 or 3")


def check_number(field: str, value: float | None, *, low: float, high: float, whole: bool = False) -> None:
    """Refuses what is no number, or none in [low, high]. None passes.

    Raises:
        UsageError: naming the field, the value and the range.
    """
    if value is None:
        return
    kinds = int if whole else (int, float)
    good = isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise UsageError(f"{field} is {value!r}; expected {kind} from {low:g} to {high:g}")


def check_name(field: str, value: str, names: Sequence[str]) -> None:
    """Refuses a name that is not in the list.

    Raises:
        UsageError: naming the field, the value, the nearest name and all of them.
    """
    if value not in names:
        raise UsageError(
            f"{field} is {value!r}{did_you_mean(value, names)}; expected one of: {', '.join(names)}"
        )


def did_you_mean(value: str, names: Sequence[str]) -> str:
    """A clause with the nearest name, or nothing."""
    near = difflib.get_close_matches(value.lower(), names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
