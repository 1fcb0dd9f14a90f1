"""The one implementation of pixels: an image file becomes a uint8 array here and nowhere else.

How a file's own pixels are read is the policy at the head of `decode`; what is then made of them is data,
a `PreprocessSpec`. The resize comes last and touches nothing where the size is right already; its pixels are the
same on every Pillow from 10.4 to 13.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray
from PIL import Image

from .decode import ImageSource, decoder_version, load_image, source_name

__all__ = [
    "ImageSource",
    "Interpolation",
    "PreprocessSpec",
    "decoder_version",
    "load_image",
    "preprocess",
    "source_name",
]

Byte = Annotated[int, Meta(ge=0, le=255)]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
# How far the filters reach, in pixels of the result. Source: Pillow, src/libImaging/Resample.c
_SUPPORT = {"box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}


class PreprocessSpec(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a file becomes pixels, as data that travels in the bundle.

    Attributes:
        height, width: of the result, in pixels.
        channels: 1 for grey (ITU-R 601-2 luma), 3 for RGB.
        resize: "shorter_side_crop" scales the shorter side to `resize_size` and takes the
            centre; "fit" scales to height x width and so may change the aspect ratio.
        resize_size: in pixels; given with "shorter_side_crop" and only there.
        interpolation: Pillow's filter; all but "nearest" are antialiased.
        background: RGB that transparent pixels are composited on.
        exif_orientation: whether the EXIF orientation tag is applied before anything else.
        color_profile: "ignore" takes the stored values as they are; "srgb" converts an embedded
            ICC profile to sRGB.
        reducing_gap: Pillow's fast reduction before resizing. Changes pixels; None turns it off.
        draft: lets the JPEG decoder scale files and bytes down while decoding, to no less than
            the resize needs. Changes pixels; off by default.

    Raises:
        ValueError: fields that contradict each other.
    """

    height: Annotated[int, Meta(ge=1, le=65535)]
    width: Annotated[int, Meta(ge=1, le=65535)]
    channels: Literal[1, 3]
    resize: Literal["shorter_side_crop", "fit"] = "fit"
    resize_size: Annotated[int, Meta(ge=1, le=65535)] | None = None
    interpolation: Interpolation = "bilinear"
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    exif_orientation: bool = True
    color_profile: Literal["ignore", "srgb"] = "ignore"
    reducing_gap: Annotated[float, Meta(ge=1.0)] | None = None
    draft: bool = False

    def __post_init__(self) -> None:
        if self.resize == "fit" and self.resize_size is not None:
            raise ValueError(f"resize_size is {self.resize_size}, but resize is 'fit': leave resize_size out")
        if self.resize == "shorter_side_crop":
            least = max(self.height, self.width)
            if self.resize_size is None or self.resize_size < least:
                raise ValueError(
                    f"resize_size is {self.resize_size}, expected {least} or more: "
                    f"a crop of {self.height}x{self.width} must lie inside the resized image"
                )
        if self.reducing_gap is not None and self.interpolation == "nearest":
            raise ValueError("reducing_gap does nothing with interpolation 'nearest': leave one of them out")


def preprocess(source: ImageSource, spec: PreprocessSpec) -> NDArray[np.uint8]:
    """The pixels of an image, as the network was trained on.

    Args:
        source: a path, the bytes of an image file, a PIL image, or a uint8 array (H, W),
            (H, W, 1) or (H, W, 3) of grey or RGB pixels.
        spec: what to make of it.

    Returns:
        uint8 (H, W, C), contiguous, writable and the caller's own; H, W and C as `spec` says.

    Raises:
        ImageError: no image, damaged, too large, or its pixels have no stated meaning.

    Example:
        >>> spec = PreprocessSpec(height=224, width=224, channels=3)
        >>> preprocess("photo.jpg", spec).shape
        (224, 224, 3)
    """
    image = load_image(source, spec)
    resized = _resize(image, _crop_box(image.size, spec), spec)
    return np.array(resized, dtype=np.uint8).reshape(spec.height, spec.width, spec.channels)


def _crop_box(size: tuple[int, int], spec: PreprocessSpec) -> tuple[float, float, float, float]:
    """What part of an image of `size` (width, height) the result shows, in its own pixels.

    The centre crop's exact pre-image: resizing from it gives what resizing the whole and cropping gives, within one
    level on photographs and two on noise ("nearest" and "box" pick the neighbour where a rounding decides on which
    side of an edge they are).

    Source: torchvision.transforms, Resize (int size: the longer side is rounded down) and CenterCrop.
    """
    width, height = size
    if spec.resize_size is None:
        return (0, 0, width, height)
    short = min(width, height)
    scaled_width = int(spec.resize_size * width / short)
    scaled_height = int(spec.resize_size * height / short)
    left = round((scaled_width - spec.width) / 2)
    top = round((scaled_height - spec.height) / 2)
    return (
        left * width / scaled_width,
        top * height / scaled_height,
        min((left + spec.width) * width / scaled_width, width),
        min((top + spec.height) * height / scaled_height, height),
    )


def _resize(image: Image.Image, box: tuple[float, float, float, float], spec: PreprocessSpec) -> Image.Image:
    """Scales what lies in `box` to the size wanted: the horizontal pass first, then the vertical.

    Pillow up to 12 has that order; 13 takes the other where it is faster, which changes pixels, as values are
    rounded to 8 bits in between. With a reducing gap the order is Pillow's own.

    Source: https://github.com/python-pillow/Pillow/pull/9549
    """
    size, resample = (spec.width, spec.height), Image.Resampling[spec.interpolation.upper()]
    if spec.interpolation == "nearest" or spec.reducing_gap is not None:
        return image.resize(size, resample, box, spec.reducing_gap)
    left, top, right, bottom = box
    reach = _SUPPORT[spec.interpolation] * max((bottom - top) / spec.height, 1.0)
    first, last = max(math.floor(top - reach), 0), min(math.ceil(bottom + reach), image.height)
    if last - first < image.height:  # the rows that the vertical pass will ask for
        image = image.crop((0, first, image.width, last))
    narrow = image.resize((spec.width, image.height), resample, (left, 0, right, image.height))
    return narrow.resize(size, resample, (0, top - first, spec.width, bottom - first))
