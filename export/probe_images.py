"""Image files that probe a decoder: each in a form that some software reads wrongly."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageDraw

from shipnet.runtime import PreprocessSpec

_QUALITY: Final = 85
# Odd JPEG files are somewhat larger than what is made of them, odd PNG files stay small.
_JPEG_MARGIN: Final = 1.1
_PNG_SIDE: Final = 128
_ENLARGED: Final = 3
_ICC_CREATED: Final = slice(24, 36)  # of the header. Source: ICC.1:2022, section 7.2, table 17
_DRAWINGS: Final = ("gradient", "shapes", "noise")


class Picture(NamedTuple):
    """An encoded image.

    Attributes:
        kind: what it is, or what is odd about it.
        data: the file's bytes.
        extension: that such files bear.
    """

    kind: str
    data: bytes
    extension: str


def odd_pictures(bases: list[Image.Image], spec: PreprocessSpec) -> Iterator[Picture]:
    """One file of every odd kind, made from some images in turn.

    Args:
        bases: in mode "L" or "RGB", one or more.
        spec: of the network: its size, and whether it sees colours.
    """
    shorter = max(spec.resize_size or 0, spec.height, spec.width)
    for place, (kind, make) in enumerate(_MAKERS.items()):
        base = bare(bases[place % len(bases)].convert("RGB"))
        if spec.channels == 1:
            base = _tinted(base)  # or the luma's weights would not matter
        if kind == "enlarged":
            scale = _ENLARGED * shorter / min(base.size)
        else:
            side = math.ceil(_JPEG_MARGIN * shorter) if kind.endswith("jpeg") else min(shorter, _PNG_SIDE)
            scale = min(1.0, side / min(base.size))
        data, extension = make(_scaled(base, scale))
        yield Picture(kind, data, extension)


def bare(image: Image.Image) -> Image.Image:
    """The pixels of an image in mode "L" or "RGB" without what a file said beside them, which would be saved again."""
    return Image.fromarray(np.asarray(image))


def as_png(image: Image.Image, **options: Any) -> bytes:
    """An image as a PNG file, lossless, without metadata."""
    return _encoded(image, "PNG", optimize=True, **options)


def as_jpeg(image: Image.Image, **options: Any) -> bytes:
    """An image as a JPEG file, without metadata."""
    return _encoded(image, "JPEG", quality=_QUALITY, optimize=True, **options)


def draw(seed: int, spec: PreprocessSpec) -> Image.Image:
    """A drawing that is the same wherever it is drawn: a gradient, shapes, or noise; "L" or "RGB"."""
    rng = np.random.default_rng(seed)
    side = max(8, math.ceil(_JPEG_MARGIN * max(spec.resize_size or 0, spec.height, spec.width)))
    width, height = (side, math.ceil(side * 1.25)) if seed % 2 else (math.ceil(side * 1.25), side)
    match _DRAWINGS[seed % len(_DRAWINGS)]:
        case "gradient":
            array = _gradient(rng, width, height)
        case "shapes":
            array = _shapes(rng, width, height)
        case _:
            coarse = rng.integers(0, 256, (max(2, height // 4), max(2, width // 4), 3), np.uint8)
            rows, columns = np.arange(height) % len(coarse), np.arange(width) % coarse.shape[1]
            array = coarse[np.sort(rows)][:, np.sort(columns)]
    image = Image.fromarray(np.ascontiguousarray(array))
    return image.convert("L") if spec.channels == 1 else image


def _gradient(rng: np.random.Generator, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Linear between four corner colours, in integers, so that every machine draws the same."""
    corners = rng.integers(0, 256, (2, 2, 3))
    x, y = np.arange(width)[None, :, None], np.arange(height)[:, None, None]
    top = corners[0, 0] * (width - 1 - x) + corners[0, 1] * x
    bottom = corners[1, 0] * (width - 1 - x) + corners[1, 1] * x
    mixed = (top * (height - 1 - y) + bottom * y) // max((width - 1) * (height - 1), 1)
    return np.asarray(mixed, np.uint8)


def _shapes(rng: np.random.Generator, width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Rectangles and ellipses one over the other."""
    image = Image.new("RGB", (width, height), _color(rng))
    pen = ImageDraw.Draw(image)
    for number in range(12):
        left, right = sorted(rng.integers(0, width, 2).tolist())
        top, bottom = sorted(rng.integers(0, height, 2).tolist())
        (pen.ellipse if number % 2 else pen.rectangle)((left, top, right, bottom), fill=_color(rng))
    return np.asarray(image)


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def _tinted(base: Image.Image) -> Image.Image:
    """A grey image in colours that differ from place to place; an image in colours as it is."""
    red, green, blue = base.split()
    if red.tobytes() != green.tobytes() or green.tobytes() != blue.tobytes():
        return base
    turned = green.transpose(Image.Transpose.ROTATE_180)
    return Image.merge("RGB", (red, turned.resize(red.size), blue.point(lambda value: 255 - value)))


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1.0:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def _oriented(orientation: int) -> Callable[[Image.Image], tuple[bytes, str]]:
    def make(base: Image.Image) -> tuple[bytes, str]:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        return as_jpeg(base, exif=exif), "jpg"

    return make


def _profiled(base: Image.Image) -> tuple[bytes, str]:
    """The sRGB profile with red and blue exchanged: whoever applies it sees other colours."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[_ICC_CREATED] = bytes(12)  # or no two exports would give the same file
    swapped = (
        bytes(profile).replace(b"rXYZ", b"?XYZ", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"?XYZ", b"bXYZ", 1)
    )
    return as_jpeg(base, icc_profile=swapped), "jpg"


def _grey16(base: Image.Image) -> tuple[bytes, str]:
    values = np.asarray(base.convert("L")).astype(np.uint16)
    return as_png(Image.fromarray(values * 256 + (values ^ 0x5A))), "png"


def _alpha(image: Image.Image) -> Image.Image:
    """From opaque at the left to transparent at the right."""
    row = np.linspace(255, 0, image.width).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(row, (image.height, image.width))))


def _with_alpha(mode: str) -> Callable[[Image.Image], tuple[bytes, str]]:
    def make(base: Image.Image) -> tuple[bytes, str]:
        image = base.convert(mode)
        image.putalpha(_alpha(base))
        return as_png(image), "png"

    return make


def _palette(base: Image.Image) -> tuple[bytes, str]:
    """The commonest colour is transparent."""
    image = base.quantize(16, dither=Image.Dither.NONE)
    counts = np.bincount(np.asarray(image).ravel(), minlength=16)
    return as_png(image, transparency=int(counts.argmax())), "png"


def _animation(base: Image.Image) -> tuple[bytes, str]:
    first = base.quantize(16, dither=Image.Dither.NONE)
    second = base.transpose(Image.Transpose.ROTATE_180).quantize(16, dither=Image.Dither.NONE)
    return _encoded(first, "GIF", save_all=True, append_images=[second], duration=100), "gif"


def _fixed(width: int, height: int) -> Callable[[Image.Image], tuple[bytes, str]]:
    return lambda base: (as_png(base.resize((width, height), Image.Resampling.BICUBIC)), "png")


def _narrow(*, wide: bool) -> Callable[[Image.Image], tuple[bytes, str]]:
    """A strip of eight times the shorter side's length."""

    def make(base: Image.Image) -> tuple[bytes, str]:
        short = max(1, min(base.size) // 3)
        size = (8 * short, short) if wide else (short, 8 * short)
        return as_png(base.resize(size, Image.Resampling.BICUBIC)), "png"

    return make


_MAKERS: Final[dict[str, Callable[[Image.Image], tuple[bytes, str]]]] = {
    **{f"exif-orientation-{value}-jpeg": _oriented(value) for value in range(2, 9)},
    "progressive-jpeg": lambda base: (as_jpeg(base, progressive=True), "jpg"),
    "grey-jpeg": lambda base: (as_jpeg(base.convert("L")), "jpg"),
    "cmyk-jpeg": lambda base: (as_jpeg(base.convert("CMYK")), "jpg"),
    "icc-jpeg": _profiled,
    "enlarged": lambda base: (as_jpeg(base), "jpg"),
    "grey-16-bit": _grey16,
    "alpha": _with_alpha("RGB"),
    "grey-alpha": _with_alpha("L"),
    "palette-transparent": _palette,
    "one-bit": lambda base: (as_png(base.convert("1")), "png"),
    "animation": _animation,
    "wide": _narrow(wide=True),
    "tall": _narrow(wide=False),
    "one-pixel": _fixed(1, 1),
    "tiny": _fixed(2, 3),
}
KINDS: Final = tuple(_MAKERS)
