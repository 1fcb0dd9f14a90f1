"""How pixels are made for a network that was not trained here: as told, else by a default that is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from shipnet.runtime import PreprocessSpec
from shipnet.runtime.errors import UsageError
from shipnet.runtime.manifest import Normalization

from .foreign_config import ForeignConfig

Values = tuple[float, ...]
SMALL_SIDE: Final = (
    64  # below it a network's images are no photographs, and ImageNet's convention is not meant
)


@dataclass(frozen=True, slots=True)
class Preset:
    """What a family of networks was validated with.

    Attributes:
        origin: whose it is, for people.
        crop, resize: in pixels: the shorter side becomes `resize`, the centre of side `crop` is taken.
        mean, std: of red, green and blue, in units of [0, 1].
    """

    origin: str
    crop: int
    resize: int
    interpolation: str
    mean: Values
    std: Values


# Source: torchvision.transforms._presets.ImageClassification, and its classification reference.
IMAGENET: Final = Preset(
    "ImageNet's convention", 224, 256, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
)


def torchvision_preset(weights: Any) -> Preset:
    """What torchvision says its own weights were validated with."""
    transforms = weights.transforms()
    return Preset(
        origin=f"torchvision's for {weights}",
        crop=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
    )


@dataclass(frozen=True, slots=True)
class Input:
    """What the network itself says of its input.

    Attributes:
        channels: 1 or 3.
        size: (height, width) in pixels; None: it takes any.
        normalized: whether it wants normalised pixels; False: it takes them as they are.
        photographs: whether ImageNet's convention is meant; False for networks of small images.
    """

    channels: int
    size: tuple[int, int] | None = None
    normalized: bool = True
    photographs: bool = True


def choose_preprocess(
    config: ForeignConfig, network: Input, preset: Preset = IMAGENET
) -> tuple[PreprocessSpec, Normalization | None, str]:
    """The preprocessing and the normalisation, and a sentence that says where each comes from.

    Raises:
        UsageError: fields that contradict each other or the network, or one that has no default.
    """
    (height, width), size_from = _size(config, network, preset)
    resize, resize_size, resize_from = _resize(config, network, preset, side=max(height, width))
    normalization, normalization_from = _normalization(config, network, preset)
    interpolation = config.interpolation or preset.interpolation
    try:
        spec = PreprocessSpec(
            height=height,
            width=width,
            channels=network.channels,  # type: ignore[arg-type]
            resize=resize,  # type: ignore[arg-type]
            resize_size=resize_size,
            interpolation=interpolation,  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise UsageError(f"preprocessing: {error}") from error
    how = f"shorter side to {resize_size}, then the centre" if resize_size else "fit"
    colour = "grey" if network.channels == 1 else "RGB"
    told = (
        f"preprocessing: {height} x {width} {colour} ({size_from}); {how} ({resize_from}); {interpolation} "
        f"({'given' if config.interpolation else preset.origin}); {normalization_from}"
    )
    return spec, normalization, told


def _size(config: ForeignConfig, network: Input, preset: Preset) -> tuple[tuple[int, int], str]:
    asked = config.image_size and (config.image_size, config.image_size)
    if network.size is not None:
        if asked and asked != network.size:
            raise UsageError(
                f"image_size is {config.image_size}, but the graph takes {network.size[0]} x {network.size[1]} pixels: "
                "leave image_size out"
            )
        return network.size, "the graph's"
    if asked:
        return asked, "given"
    if not network.photographs:
        raise UsageError(
            "this network has no image size by convention: give --image-size, as it was trained with"
        )
    return (preset.crop, preset.crop), preset.origin


def _resize(
    config: ForeignConfig, network: Input, preset: Preset, *, side: int
) -> tuple[str, int | None, str]:
    """The rule, the shorter side, and where they come from; a margin is scaled with the side."""
    resize = config.resize or ("shorter_side_crop" if network.photographs else "fit")
    origin = "given" if config.resize or config.resize_size else preset.origin
    if resize == "fit":
        if config.resize_size is not None:
            raise UsageError(
                f"resize_size is {config.resize_size}, but resize is fit, which has none: leave one of them out"
            )
        return resize, None, "given" if config.resize else "small images"
    return resize, config.resize_size or round(side * preset.resize / preset.crop), origin


def _normalization(config: ForeignConfig, network: Input, preset: Preset) -> tuple[Normalization | None, str]:
    if not network.normalized:
        if config.mean is not None:
            raise UsageError(
                "mean and std: the graph takes uint8 pixels, so it normalises by itself: leave them out"
            )
        return None, "the graph takes uint8 pixels and normalises by itself"
    if config.mean is not None and config.std is not None:
        mean, std = (_spread(values, network.channels) for values in (config.mean, config.std))
        origin = "given"
    elif network.channels == 3 and network.photographs:
        mean, std, origin = preset.mean, preset.std, preset.origin
    else:
        what = "grey images" if network.channels == 1 else "networks of small images"
        raise UsageError(
            f"mean and std: there is no convention for {what}: give --mean and --std as they were trained with"
        )
    return Normalization(mean=mean, std=std), f"mean {_list(mean)}, std {_list(std)} ({origin})"


def _spread(values: Values, channels: int) -> Values:
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    raise UsageError(f"mean and std have {len(values)} values, but the network has {channels} channel(s)")


def _list(values: Values) -> str:
    return ", ".join(f"{value:g}" for value in values)
