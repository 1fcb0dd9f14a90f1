"""Sizes: how an image is brought to height x width, and what a spec may say."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shipnet.runtime.errors import ImageError
from shipnet.runtime.preprocess import PreprocessSpec, decoder_version, preprocess

FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def spec(**changes: object) -> PreprocessSpec:
    return msgspec.convert({"height": 8, "width": 8, "channels": 3} | changes, PreprocessSpec)


def crop_spec(height: int, width: int, size: int, **changes: object) -> PreprocessSpec:
    return spec(height=height, width=width, resize="shorter_side_crop", resize_size=size, **changes)


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


def resize_then_crop(image: Image.Image, wanted: PreprocessSpec) -> np.ndarray:
    """torchvision's Resize(size) and CenterCrop, written out with Pillow, the horizontal pass first."""
    assert wanted.resize_size is not None
    short = min(image.size)
    width, height = (int(wanted.resize_size * side / short) for side in image.size)
    resample = Image.Resampling[wanted.interpolation.upper()]
    whole = image.resize((width, image.height), resample).resize((width, height), resample)
    left, top = round((width - wanted.width) / 2), round((height - wanted.height) / 2)
    return np.asarray(whole.crop((left, top, left + wanted.width, top + wanted.height)))


def difference(left: np.ndarray, right: np.ndarray) -> int:
    return int(np.abs(left.astype(int) - right.astype(int)).max())


class TestSpec:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"resize_size": 8}, "resize_size is 8, but resize is 'fit': leave resize_size out"),
            ({"resize": "shorter_side_crop"}, "resize_size is None, expected 8 or more"),
            ({"resize": "shorter_side_crop", "resize_size": 7}, "resize_size is 7, expected 8 or more"),
            ({"reducing_gap": 2.0, "interpolation": "nearest"}, "reducing_gap does nothing"),
            ({"channels": 4}, "Invalid enum value 4 - at `\\$.channels`"),
            ({"height": 0}, "Expected `int` >= 1 - at `\\$.height`"),
            ({"background": [0, 0, 256]}, "Expected `int` <= 255"),
            ({"colour": 1}, "unknown field `colour`"),
        ],
    )
    def test_refuses_what_cannot_be(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(msgspec.ValidationError, match=message):
            spec(**changes)

    def test_refuses_contradictions_from_python_too(self) -> None:
        with pytest.raises(ValueError, match="a crop of 8x9 must lie inside the resized image"):
            PreprocessSpec(height=8, width=9, channels=1, resize="shorter_side_crop", resize_size=8)

    def test_survives_json(self) -> None:
        wanted = crop_spec(7, 5, 9, background=[1, 2, 3], reducing_gap=2.0, draft=True, color_profile="srgb")
        assert msgspec.json.decode(msgspec.json.encode(wanted), type=PreprocessSpec) == wanted


class TestPixels:
    @given(
        width=st.integers(1, 60),
        height=st.integers(1, 60),
        out=st.tuples(st.integers(1, 20), st.integers(1, 20)),
        extra=st.integers(0, 10),
        interpolation=st.sampled_from(("bilinear", "bicubic", "lanczos", "hamming")),
    )
    @settings(max_examples=300, deadline=None)
    def test_one_resize_is_resize_then_crop(
        self, width: int, height: int, out: tuple[int, int], extra: int, interpolation: str
    ) -> None:
        wanted = crop_spec(*out, max(out) + extra, interpolation=interpolation)
        image = noise(width, height)
        assert difference(preprocess(image, wanted), resize_then_crop(image, wanted)) <= 2

    @pytest.mark.parametrize("interpolation", ["nearest", "box"])
    @pytest.mark.parametrize("size", [(500, 375), (333, 500), (225, 1000)])
    def test_filters_with_edges_differ_only_there(self, size: tuple[int, int], interpolation: str) -> None:
        wanted = crop_spec(224, 224, 256, interpolation=interpolation)
        image = noise(*size)
        theirs = resize_then_crop(image, wanted).astype(int)
        differs = (np.abs(preprocess(image, wanted).astype(int) - theirs) > 1).any(axis=2)
        assert differs.mean() < 0.02

    @pytest.mark.parametrize("interpolation", FILTERS)
    def test_the_right_size_is_left_alone(self, interpolation: str) -> None:
        image = noise(8, 8)
        assert np.array_equal(preprocess(image, spec(interpolation=interpolation)), np.asarray(image))
        larger = noise(12, 10)
        cropped = preprocess(larger, crop_spec(8, 8, 10, interpolation=interpolation))
        assert np.array_equal(cropped, np.asarray(larger)[1:9, 2:10])

    @pytest.mark.parametrize("size", [(31, 17), (17, 31), (6, 200), (200, 6)])
    def test_fit_passes_horizontally_first_on_every_pillow(self, size: tuple[int, int]) -> None:
        image = noise(*size)
        expected = image.resize((8, size[1]), Image.Resampling.BICUBIC).resize(
            (8, 8), Image.Resampling.BICUBIC
        )
        assert np.array_equal(preprocess(image, spec(interpolation="bicubic")), np.asarray(expected))

    def test_reducing_gap_reaches_pillow(self) -> None:
        image = noise(200, 200)
        expected = image.resize((8, 8), Image.Resampling.BILINEAR, reducing_gap=1.0)
        pixels = preprocess(image, spec(reducing_gap=1.0))
        assert np.array_equal(pixels, np.asarray(expected))
        assert not np.array_equal(pixels, preprocess(image, spec()))

    def test_a_thread_of_an_image_needs_no_memory(self) -> None:
        line = Image.new("RGB", (60_000, 1), (9, 9, 9))  # scaled whole it would be 15 million pixels wide
        assert (preprocess(line, crop_spec(224, 224, 256)) == 9).all()

    def test_the_result_belongs_to_the_caller(self) -> None:
        array = np.zeros((8, 8, 3), np.uint8)
        pixels = preprocess(array, spec())
        pixels[:] = 1
        assert pixels.flags.c_contiguous
        assert not array.any()

    @pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
    @pytest.mark.parametrize("channels", [1, 3])
    def test_arrays_are_decoded_pixels(self, shape: tuple[int, ...], channels: int) -> None:
        array = np.full(shape, 77, np.uint8)
        pixels = preprocess(array, spec(channels=channels))
        assert pixels.shape == (8, 8, channels)
        assert (pixels == 77).all()

    def test_arrays_need_not_be_contiguous(self) -> None:
        array = np.asarray(noise(16, 16))[::2, ::-2]
        assert np.array_equal(preprocess(array, spec()), array)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4)), r"float64 array \(4, 4\): expected uint8 of shape"),
            (np.zeros((4, 4), bool), r"bool array \(4, 4\): expected uint8 of shape"),
            (np.zeros((4, 4, 4), np.uint8), r"uint8 array \(4, 4, 4\): expected uint8 of shape"),
            (np.zeros((1, 4, 4, 3), np.uint8), r"\(1, 4, 4, 3\): expected uint8 of shape"),
            (np.zeros(4, np.uint8), r"\(4,\): expected uint8 of shape"),
            (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\): expected 1 to 65535 pixels on a side"),
            (np.zeros((1, 65_536), np.uint8), r"\(1, 65536\): expected 1 to 65535 pixels on a side"),
        ],
    )
    def test_other_arrays_are_refused(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(ImageError, match=message):
            preprocess(array, spec())


def test_decoder_version_names_the_lossy_codecs() -> None:
    assert decoder_version().startswith(f"pillow {Image.__version__} libjpeg")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_agrees_with_torchvision_on_photographs(real_data: Path, interpolation: str) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose([transforms.Resize(256, interpolation=mode), transforms.CenterCrop(224)])
    wanted = crop_spec(224, 224, 256, interpolation=interpolation)
    photographs = sorted((real_data / "flowers" / "val").glob("*/*.jpg"))[::25]
    assert photographs
    for path in photographs:
        with Image.open(path) as image:
            expected = np.asarray(theirs(image.convert("RGB")))
        assert difference(preprocess(path, wanted), expected) <= 1, path
