"""From whatever an image file holds to opaque, upright 8-bit pixels, grey or RGB.

The policy; `preprocess.PreprocessSpec` holds what can be chosen:

=====================  ================================================================================
formats                those of `FORMATS`, told apart by their signature, never by the file's name
damaged or truncated   refused, never filled up
too large              refused above Pillow's `MAX_IMAGE_PIXELS` (where Pillow itself only warns) and
                       above 65,535 pixels on a side
animation, pages       the first frame; of a PIL image the frame it stands at
orientation            EXIF (or XMP) orientation 1 to 8 as `PIL.ImageOps.exif_transpose`; unreadable EXIF
                       counts as none. TIFF is always upright: Pillow turns it while decoding
16-bit grey            round(v / 257); a TIFF of n bits per sample round(v * 255 / (2**n - 1)), inverted
                       where it says that white is zero
16-bit colour, LA      the high byte of each sample (Pillow's)
32-bit integer, float  refused: no stated range. Only PNG and PPM may arrive as Pillow's mode "I", which
                       they use for 16 bits
colour profile         as `PreprocessSpec.color_profile` says: ignored, or ICC to sRGB, perceptual
                       intent; alpha is left alone. Refused: a broken profile, or one for another
                       colour space than the image's (an RGB profile on a grey image is applied)
alpha                  RGBA, LA, PA, premultiplied RGBa and La, a transparent colour, grey or palette entry:
                       composited on `background` in RGB: round((a * value + (255 - a) * background) / 255)
CMYK                   r = 255 - k - c * (255 - k) / 255 (Pillow's), unless a profile is applied
1-bit, palette         0 and 255; the palette's colours
YCbCr, HSV, LAB, RGBX  Pillow's conversion to RGB; X is dropped
grey (`channels` 1)    ITU-R 601-2 luma of the RGB: (19595 R + 38470 G + 7471 B + 32768) >> 16
=====================  ================================================================================

Source: Pillow's handbook, "Concepts" and "Image file formats" (https://pillow.readthedocs.io).
"""

from __future__ import annotations

import functools
import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, features

from .errors import ImageError

if TYPE_CHECKING:
    from .preprocess import PreprocessSpec

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF", "ICO", "QOI")
_MAX_SIDE = 65_535  # the resampling filter's table grows with the side
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF 6.0, section 8
_COLOR_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
_GREY_MODES = ("1", "L", "LA", "La")
_PROFILED = {  # which modes an ICC profile of a colour space says something about
    "RGB": (*_GREY_MODES, "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "YCbCr"),
    "GRAY": _GREY_MODES,
    "CMYK": ("CMYK",),
}


def load_image(source: ImageSource, spec: PreprocessSpec) -> Image.Image:
    """An image in its own size, upright, opaque, in mode "L" or "RGB" as `spec.channels` says.

    Args:
        source: as in `preprocess`.
        spec: its sizes matter only where `draft` is on.

    Raises:
        ImageError: as in `preprocess`; the message names the file.
    """
    name = source_name(source)
    try:
        if isinstance(source, np.ndarray):
            return _to_channels(_from_array(source), spec.channels)
        if isinstance(source, Image.Image):
            return _develop(source, spec)
        if not isinstance(source, str | os.PathLike | bytes):
            raise ImageError("expected a path, the bytes of a file, a PIL image or a uint8 array")
        with _opened(source, spec) as image:
            return _develop(image, spec)
    except Exception as error:  # a decoder that is fed a hostile file raises anything
        raise ImageError(f"{name}: {_explain(error)}") from error


def source_name(source: ImageSource) -> str:
    """What messages and results call an image: its path where it has one, else what it is."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes):
        return "image bytes"
    if isinstance(source, np.ndarray):
        return f"{source.dtype} array {source.shape}"
    return str(getattr(source, "filename", "")) or type(source).__name__


def decoder_version() -> str:
    """Which Pillow and which lossy codecs decode here: another may decode the same file to other pixels.

    Returns:
        such as "pillow 13.0.0 libjpeg-turbo 3.2.0 libwebp 1.6.0".
    """
    turbo = features.version("libjpeg_turbo")
    parts = [
        f"pillow {features.version('pil')}",
        f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}",
    ]
    parts += [f"lib{codec} {version}" for codec in ("webp", "avif") if (version := features.version(codec))]
    return " ".join(parts)


@contextmanager
def _opened(source: str | os.PathLike[str] | bytes, spec: PreprocessSpec) -> Iterator[Image.Image]:
    """The image of a file or its bytes, header read, pixels not."""
    with io.BytesIO(source) if isinstance(source, bytes) else _open_file(source) as stream:
        if not stream.read(1):
            raise ImageError("is empty (0 bytes): replace the file")
        with Image.open(stream, formats=_readable_formats()) as image:
            pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if limit is not None and pixels > limit:
                raise Image.DecompressionBombError(
                    f"Image size ({pixels} pixels) exceeds limit of {limit} pixels"
                )
            if image.format == "PNG":
                _scale_transparency(image)
            if spec.draft:
                size = (spec.resize_size or spec.width, spec.resize_size or spec.height)
                turned = spec.exif_orientation and _orientation(image) >= 5
                image.draft(None, size[::-1] if turned else size)
            yield image


def _open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file for reading; a pipe would make the reader wait for ever."""
    mode = Path(path).stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ImageError("is no regular file but a pipe, socket or device")
    return Path(path).open("rb")


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _scale_transparency(image: Image.Image) -> None:
    """Brings a PNG's transparent colour to the 8 bits of the pixels: Pillow leaves it in the file's depth.

    16-bit grey keeps its depth until `_grey8`.
    """
    key: Any = image.info.get("transparency")
    if key is None:
        return
    rawmode = image.tile[0][3]  # type: ignore[attr-defined]
    if rawmode == "1":
        image.info["transparency"] = 255 if key else 0
    elif rawmode in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if rawmode == "L;2" else 17)
    elif rawmode == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _develop(image: Image.Image, spec: PreprocessSpec) -> Image.Image:
    """From a file's own pixels to "L" or "RGB", by the policy above."""
    if max(image.size) > _MAX_SIDE or min(image.size) < 1:
        raise ImageError(f"is {image.width}x{image.height} pixels, expected 1 to {_MAX_SIDE} on a side")
    image.load()  # before the metadata: a PNG may hold it behind the pixels, a TIFF is turned here
    turn = _TURN.get(_orientation(image)) if spec.exif_orientation else None
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey8(image)
    if image.mode not in (*_COLOR_MODES, *_ALPHA_MODES):
        raise ImageError(
            f"has pixels of mode {image.mode}, which have no stated range: save it with 8 bits a channel"
        )
    if turn is not None:
        image = image.transpose(turn)
    if spec.color_profile == "srgb" and image.info.get("icc_profile"):
        image = _to_srgb(image)
    if image.has_transparency_data:
        rgba = _to_rgba(image)
        image = Image.new("RGB", rgba.size, spec.background)
        image.paste(rgba, (0, 0), rgba)
    return _to_channels(image, spec.channels)


def _orientation(image: Image.Image) -> int:
    """EXIF or XMP orientation, 1 to 8; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, EOFError, OSError, OverflowError, struct.error):
        return 1
    return value if isinstance(value, int) else 1


def _grey8(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, scaled to "L", or "LA" where one grey is transparent."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        raise ImageError("has 32-bit integer pixels, which have no stated range: save it with 8 or 16 bits")
    tags = getattr(image, "tag_v2", {})
    maximum = (1 << tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1
    values = np.asarray(image).astype(np.uint32)
    alpha = np.where(values == image.info.get("transparency", -1), 0, 255)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = maximum - values
    scaled = (values * 255 + maximum // 2) // maximum  # rounds; ties cannot be, as maximum is odd
    grey = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:
        grey = Image.merge("LA", (grey, Image.fromarray(alpha.astype(np.uint8))))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey


def _to_srgb(image: Image.Image) -> Image.Image:
    """Applies the embedded ICC profile; "RGB", or "RGBA" where some pixels are transparent."""
    from PIL import ImageCms

    icc, mode = image.info["icc_profile"], image.mode
    alpha = None
    if image.has_transparency_data:
        image = _to_rgba(image)
        alpha = image.getchannel("A")
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        space = profile.profile.xcolor_space.strip()
        if mode not in _PROFILED.get(space, ()):
            raise ImageError(f"has an ICC profile for {space} on pixels of mode {mode}: save it without")
        image = image.convert("L" if space == "GRAY" else space)
        srgb = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise ImageError(f"has an ICC profile that cannot be applied ({error}): save it without") from error
    assert srgb is not None  # only in-place conversion gives None
    if alpha is not None:
        srgb.putalpha(alpha)
    return srgb


def _to_rgba(image: Image.Image) -> Image.Image:
    """An image with transparency of whatever kind as "RGBA"."""
    if image.mode == "La":
        image = image.convert("LA")
    return image.convert("RGBA")


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    """An opaque image as "L" or "RGB"."""
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    """Decoded grey or RGB pixels as an image."""
    grey = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1)
    if array.dtype != np.uint8 or not (grey or (array.ndim == 3 and array.shape[2] == 3)):
        raise ImageError("expected uint8 of shape (H, W), (H, W, 1) or (H, W, 3), values 0 to 255")
    if not 1 <= min(array.shape[:2]) <= max(array.shape[:2]) <= _MAX_SIDE:
        raise ImageError(f"expected 1 to {_MAX_SIDE} pixels on a side")
    return Image.fromarray(array.reshape(array.shape[:2]) if grey else array)


def _explain(error: Exception) -> str:
    """What went wrong with an image and what to do, for the end of a message that names it."""
    match error:
        case ImageError():
            return str(error)
        case FileNotFoundError():
            return "no such file"
        case IsADirectoryError():
            return "is a folder, expected an image file"
        case PermissionError():
            return "may not be read: check its permissions"
        case UnidentifiedImageError():
            return f"is no image in a format that is read here ({', '.join(_readable_formats())})"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return f"{error}: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if the source is trusted"
        case OSError(strerror=str(reason)):
            return f"cannot be read: {reason}"
        case _:
            return f"is damaged or breaks its format ({type(error).__name__}: {error}): replace the file"
