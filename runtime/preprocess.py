"""The one implementation of pixels: an image file becomes a uint8 array here and nowhere else."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

Byte = Annotated[int, Meta(ge=0, le=255)]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


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
        draft: lets the JPEG decoder scale down while decoding. Changes pixels; off by default.
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
