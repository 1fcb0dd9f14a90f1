"""What a configuration leaves open, decided from the data: four recipes, each a whole set of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import torch
from msgspec import Struct

from shipnet.runtime.errors import UsageError
from shipnet.runtime.machine import available_cores

from .config import SMALL_NETS, TrainConfig
from .devices import threads_for
from .images import Dataset

# Peaks of one cycle with AdamW, found by trying; the small networks, all batch norm, take a high one.
SMALL_NET_LR = 0.03
RESNET_LR = 2e-3
LEAST_STEPS = 1_320
FAST_STEPS = 1_170


class Recipe(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a network is trained, every number of it. The defaults are fast.ai's `fit_one_cycle`.

    The learning rate rises from `max_lr / div_factor` to `max_lr` over the share `pct_start` of all
    steps and falls to `max_lr / div_factor / final_div_factor`, both along a cosine; Adam's first beta
    goes from `max_momentum` to `base_momentum` and back against it.

    Source: L. Smith, N. Topin, Super-Convergence, arXiv:1708.07120; the numbers are fast.ai's, beta2 too.

    Attributes:
        epochs: passes over the training images, the frozen ones included.
        max_lr: the peak of the one-cycle learning rate.
        batch_size: images per optimiser step.
        weight_decay: decoupled (AdamW), on the weights of convolutions and linear layers only.
        label_smoothing: the share of a label that is spread over all classes.
        pct_start, div_factor, final_div_factor, base_momentum, max_momentum, beta2: see above.
        ema_decay: per step, of an exponential moving average of the weights, which is what is then
            measured and kept; 0: none.
        crop_padding: zero padding on each side, as a share of it, out of which small images are cropped.
        affine_degrees: small images are turned by up to so much, both ways.
        affine_scale: small images are scaled by a factor of up to 1 plus or minus this.
        flip: whether images are mirrored left to right at random.
        trivial_augment: whether one random operation of TrivialAugmentWide changes each photograph.
        freeze_epochs: so many epochs train the head alone, on a body as it was loaded.
        lr_div: the first stage of the network learns with `max_lr / lr_div`, the head with `max_lr`,
            those between in geometric steps; 1: all with `max_lr`.
    """

    epochs: int
    max_lr: float
    batch_size: int
    flip: bool
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    pct_start: float = 0.25
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    base_momentum: float = 0.85
    max_momentum: float = 0.95
    beta2: float = 0.99
    ema_decay: float = 0.0
    crop_padding: float = 0.0
    affine_degrees: float = 0.0
    affine_scale: float = 0.0
    trivial_augment: bool = False
    freeze_epochs: int = 0
    lr_div: float = 1.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a recipe looks at.

    Attributes:
        small_net: whether the network is one of the four small ones.
        in_memory: whether the images are small, so kept in memory; otherwise they are photographs.
        mirrored: whether they show the same mirrored.
        batch_size: images per step.
        steps: of an epoch.
        epochs: as asked for; None: the recipe decides.
    """

    small_net: bool
    in_memory: bool
    mirrored: bool
    batch_size: int
    steps: int
    epochs: int | None

    @property
    def max_lr(self) -> float:
        """For training from fresh weights."""
        return SMALL_NET_LR if self.small_net else RESNET_LR

    @property
    def crop_padding(self) -> float:
        """2 pixels on MNIST's 28. Photographs are cropped by area instead."""
        return 2 / 28 if self.in_memory else 0.0


def notebook(facts: Facts) -> Recipe:
    """What a fast.ai notebook does: one cycle of AdamW and random crops.

    On digits, 22 steps an epoch, 30 epochs reach 96 to 98 %, 60 epochs 97 to 98 %.
    """
    by_steps = min(max(12, round(LEAST_STEPS / facts.steps)), 60) if facts.in_memory else 20
    return Recipe(
        epochs=facts.epochs or by_steps,
        max_lr=facts.max_lr,
        batch_size=facts.batch_size,
        flip=facts.mirrored,
        crop_padding=facts.crop_padding,
    )


def fast(facts: Facts) -> Recipe:
    """The notebook's accuracy in 7 of its 12 epochs, by the same numbers.

    Smaller batches, other optimisers, schedules, augmentation and averages brought nothing on MNIST in so few
    epochs that five seeds could show, or cost accuracy; see docs/measurements.md.
    """
    by_steps = min(max(7, round(FAST_STEPS / facts.steps)), 30) if facts.in_memory else 10
    return msgspec.structs.replace(notebook(facts), epochs=facts.epochs or by_steps)


def photo(facts: Facts) -> Recipe:
    """A ResNet on photographs from fresh weights: strong augmentation.

    Source: S. Müller, F. Hutter, TrivialAugment, arXiv:2103.10158; He et al., Bag of Tricks for Image
    Classification, arXiv:1812.01187, section 5.2, for the smoothing.
    """
    return Recipe(
        epochs=facts.epochs or 20,
        max_lr=facts.max_lr,
        batch_size=facts.batch_size,
        flip=facts.mirrored,
        label_smoothing=0.1,
        trivial_augment=True,
    )


def finetune(facts: Facts) -> Recipe:
    """From weights that know something: the head alone first, then all, early stages slower.

    Source: J. Howard, S. Ruder, Universal Language Model Fine-tuning, arXiv:1801.06146, sections 3.2
    and 3.3; the divisor and the single frozen epoch are those of fast.ai's `fine_tune`.
    """
    epochs = facts.epochs or 10
    return Recipe(
        epochs=epochs,
        max_lr=0.01 if facts.small_net else RESNET_LR,
        batch_size=facts.batch_size,
        flip=facts.mirrored,
        crop_padding=facts.crop_padding,
        label_smoothing=0.1,
        freeze_epochs=min(1, epochs - 1),
        lr_div=100.0,
    )


_RECIPES: dict[str, Callable[[Facts], Recipe]] = {
    "notebook": notebook,
    "fast": fast,
    "photo": photo,
    "finetune": finetune,
}


def resolve(config: TrainConfig, dataset: Dataset) -> TrainConfig:
    """The configuration with every open choice made. It is what `run.json` holds.

    Mean and standard deviation stay open where they are to be measured.

    Raises:
        UsageError: options that exclude each other, or do not go with the data or the architecture.
        WeightsError, RunError: weights that are not where they should be.
    """
    if config.starts_from_weights:
        config = _with_origin(config, dataset.spec.channels)
    if config.max_lr == "auto":  # stays so, until `fit` has looked for it
        numbers = resolve(msgspec.structs.replace(config, max_lr=None), dataset)
        return msgspec.structs.replace(numbers, max_lr="auto")
    channels, count = dataset.spec.channels, len(dataset.train)
    if config.mean is not None and len(config.mean) != channels:
        raise UsageError(
            f"mean and std have {len(config.mean)} value(s), but the images of {dataset.name} {channels}"
        )
    if config.batch_size is not None and config.batch_size > count:
        raise UsageError(f"batch_size is {config.batch_size}, but {dataset.name} has {count} training images")
    arch = config.arch or ("mnist_resnet" if dataset.in_memory else "resnet18")
    name = config.recipe or _default_recipe(config, arch, in_memory=dataset.in_memory)
    batch_size = config.batch_size or _batch_size(count, small=dataset.in_memory)
    facts = Facts(
        small_net=arch in SMALL_NETS,
        in_memory=dataset.in_memory,
        mirrored=_mirrored(config, dataset),
        batch_size=batch_size,
        steps=count // batch_size,
        epochs=config.epochs,
    )
    proposed = msgspec.structs.asdict(_RECIPES[name](facts))
    open_choices = {field: value for field, value in proposed.items() if getattr(config, field) is None}
    resolved = msgspec.structs.replace(
        config,
        recipe=name,
        arch=arch,
        workers=_workers(config, small=dataset.in_memory),
        **open_choices,
    )
    _check(resolved, dataset)
    return resolved


def settings(config: TrainConfig) -> Recipe:
    """The numbers of a configuration that `resolve` gave."""
    return msgspec.convert({name: getattr(config, name) for name in Recipe.__struct_fields__}, Recipe)


def _with_origin(config: TrainConfig, channels: int) -> TrainConfig:
    """What the weights that training starts from say about it."""
    from .weights import find_weights, statistics_for

    origin = find_weights(config)
    mean, std = (statistics_for(values, channels) for values in (origin.mean, origin.std))
    return msgspec.structs.replace(
        config,
        arch=config.arch or origin.arch,
        weights_sha256=origin.sha256,
        mean=config.mean or mean,
        std=config.std or std,
    )


def _default_recipe(config: TrainConfig, arch: str, *, in_memory: bool) -> str:
    if config.starts_from_weights:
        return "finetune"
    return "notebook" if in_memory or arch in SMALL_NETS else "photo"


def _check(config: TrainConfig, dataset: Dataset) -> None:
    """What cannot be meant together. Nothing that is asked for may be without effect."""
    chosen = settings(config)
    if not config.starts_from_weights and (config.recipe == "finetune" or chosen.freeze_epochs):
        what = "recipe finetune" if config.recipe == "finetune" else f"freeze_epochs {chosen.freeze_epochs}"
        raise UsageError(f"{what}: training starts from fresh weights: give --pretrained or --weights FILE")
    if chosen.freeze_epochs > chosen.epochs:
        raise UsageError(f"freeze_epochs is {chosen.freeze_epochs}, but there are {chosen.epochs} epochs")
    if chosen.base_momentum > chosen.max_momentum:
        raise UsageError(
            f"base_momentum is {chosen.base_momentum}, above max_momentum, which is {chosen.max_momentum}"
        )
    if dataset.in_memory and chosen.trivial_augment:
        what = "recipe photo" if config.recipe == "photo" else "trivial_augment"
        raise UsageError(
            f"{what}: is for photographs, but the images of {dataset.name} have {dataset.spec.height} pixels: "
            "give --image-size 64 or more, or leave it out"
        )
    for field in ("crop_padding", "affine_degrees", "affine_scale"):
        if getattr(chosen, field) and not dataset.in_memory:
            raise UsageError(
                f"{field}: is for images below 64 pixels; photographs, as in {dataset.name}, are cropped by area"
            )


def _mirrored(config: TrainConfig, dataset: Dataset) -> bool:
    """Photographs and cifar10 show the same mirrored; digits and other small images may not."""
    photographs = not dataset.in_memory and not isinstance(dataset.train.sources, np.ndarray)
    return photographs or config.data.data == "cifar10"


def _batch_size(count: int, *, small: bool) -> int:
    """A power of two that makes some 100 steps an epoch: small images 64 to 256, photographs 16 to 64."""
    size, largest = (64, 256) if small else (16, 64)
    while size < largest and size * (100 if small else 200) <= count:
        size *= 2
    return min(size, count)


def _workers(config: TrainConfig, *, small: bool) -> int:
    """For training on the CPU one, for a GPU one per core, up to eight.

    On two busy cores a ResNet-18 at 160 pixels takes some 20 photographs a second, and one worker prepares 500
    out of the cache or decodes 230: epochs with 0, 1 and 2 workers were as long.
    """
    if small:
        return 0
    if config.workers is not None:
        return config.workers
    on_gpu = torch.cuda.is_available() if config.device == "auto" else config.device != "cpu"
    return min(8, available_cores().usable) if on_gpu else 1


def cpu_threads(config: TrainConfig, dataset: Dataset, *, most: int) -> int:
    """How many threads a step on the CPU uses; `config` as `resolve` gives it.

    Args:
        config: the batch size is read from it.
        dataset: the image size is read from it.
        most: as in `threads_for`.
    """
    return threads_for(int(config.batch_size or 1) * dataset.spec.height * dataset.spec.width, most=most)
