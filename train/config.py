"""What a training run is asked to do, as frozen values. Imports no torch: the command line reads this first."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Literal

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
Keep = Literal["last", "best"]
RECIPES = ("notebook", "fast", "photo", "finetune")


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
        strict: whether a damaged image stops; otherwise it is named, left out and counted.
    """

    data: str = "digits"
    data_root: str | None = None
    val_fraction: float = 0.2
    image_size: int | None = None
    seed: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        if not self.data:
            raise UsageError(f"data is empty; expected a folder or one of: {', '.join(BUILT_IN)}")
        check_number("val_fraction", self.val_fraction, low=0.01, high=0.99)
        check_number("image_size", self.image_size, low=SMALLEST_IMAGE, high=4096, whole=True)
        check_number("seed", self.seed, low=0, high=2**32 - 1, whole=True)


class CacheConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where decoded photographs are kept. It changes the time that training takes and no pixel.

    Attributes:
        folder: of the caches; "none" keeps nothing; None: `shipnet/photographs` in the user's cache folder.
        limit_gb: how much all of them may take, in 10^9 bytes; the least recently used go first.
    """

    folder: str | None = None
    limit_gb: float = 20.0

    def __post_init__(self) -> None:
        if self.folder == "":
            raise UsageError("cache is empty; expected a folder, or none")
        check_number("cache_limit", self.limit_gb, low=0.0, high=1e6)


class TrainConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One training run, whole. None means: the recipe decides from the data (see `shipnet.train.recipe`).

    Attributes:
        data: the images.
        recipe: one of `RECIPES`. None: `finetune` where training starts from weights, else `photo` for a
            ResNet on photographs, else `notebook`.
        arch: one of `ARCHITECTURES`.
        pretrained: whether training starts from torchvision's weights for the architecture.
        weights: the file of weights, or the run, that training starts from.
        weights_sha256: of that file; `resolve` fills it in.
        epochs, max_lr, batch_size and the other numbers down to `lr_div`: as in `shipnet.train.recipe.Recipe`.
            `max_lr` "auto" is what `shipnet.train.find_lr` finds on the training images, by its valley rule.
        seed: of the initial weights, the order of images and their augmentation.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        mean, std: per channel in units of [0, 1]; None: of the weights that training starts from where
            they are known, else of the training images.
        balance: whether every class is seen equally often: an epoch draws images with replacement,
            each with a probability of one over its class's size.
        compile: whether training steps run through `torch.compile`.
        keep: whether the run holds the last epoch's weights or the best epoch's. The best is the most
            accurate on the selection half of the validation images; accuracy is then stated on the other half.
        patience: training stops after so many epochs without a better one, on that same half; None: never.
        deterministic: whether torch may only use algorithms that give the same bits twice on one machine.
        workers: processes that prepare photographs; 0: the training process does.
    """

    data: DataConfig = field(default_factory=DataConfig)
    recipe: str | None = None
    arch: str | None = None
    pretrained: bool = False
    weights: str | None = None
    weights_sha256: str | None = None
    epochs: int | None = None
    max_lr: float | Literal["auto"] | None = None
    batch_size: int | None = None
    weight_decay: float | None = None
    label_smoothing: float | None = None
    pct_start: float | None = None
    div_factor: float | None = None
    final_div_factor: float | None = None
    base_momentum: float | None = None
    max_momentum: float | None = None
    beta2: float | None = None
    ema_decay: float | None = None
    crop_padding: float | None = None
    affine_degrees: float | None = None
    affine_scale: float | None = None
    flip: bool | None = None
    trivial_augment: bool | None = None
    freeze_epochs: int | None = None
    lr_div: float | None = None
    seed: int = 0
    device: str = "auto"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    balance: bool = False
    compile: bool = False
    keep: Keep = "last"
    patience: int | None = None
    deterministic: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        for name, names in (("arch", ARCHITECTURES), ("recipe", RECIPES)):
            if (value := getattr(self, name)) is not None:
                check_name(name, value, names)
        for name, (least, most) in _WHOLE.items():
            check_number(name, getattr(self, name), low=least, high=most, whole=True)
        for name, (low, high) in _REAL.items():
            if not (name == "max_lr" and self.max_lr == "auto"):
                check_number(name, getattr(self, name), low=low, high=high)
        check_name("keep", self.keep, ("last", "best"))
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", self.device):
            check_name("device", self.device, ("auto", "cpu", "cuda", "mps"))
        if self.pretrained and self.weights is not None:
            raise UsageError("pretrained and weights exclude each other: training starts from one of them")
        self._check_statistics()

    @property
    def starts_from_weights(self) -> bool:
        """Whether the network begins as another one ended."""
        return self.pretrained or self.weights is not None

    @property
    def chooses(self) -> bool:
        """Whether something is chosen on validation images: the epoch that is kept, or when to stop."""
        return self.keep == "best" or self.patience is not None

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


# What a field of `TrainConfig` may be, both ends included.
_WHOLE: dict[str, tuple[int, int]] = {
    "epochs": (1, 100_000),
    "batch_size": (2, 65_536),
    "freeze_epochs": (0, 100_000),
    "seed": (0, 2**32 - 1),
    "patience": (1, 100_000),
    "workers": (0, 256),
}
_REAL: dict[str, tuple[float, float]] = {
    "max_lr": (1e-8, 100.0),
    "weight_decay": (0.0, 10.0),
    "label_smoothing": (0.0, 0.9),
    "pct_start": (0.01, 0.99),
    "div_factor": (1.0, 1e6),
    "final_div_factor": (1.0, 1e9),
    "base_momentum": (0.0, 0.999),
    "max_momentum": (0.0, 0.999),
    "beta2": (0.5, 0.99999),
    "ema_decay": (0.0, 0.99999),
    "crop_padding": (0.0, 0.5),
    "affine_degrees": (0.0, 180.0),
    "affine_scale": (0.0, 0.9),
    "lr_div": (1.0, 1e6),
}


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
