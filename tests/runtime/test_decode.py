"""The policy of pixels, on images small enough to work out by hand."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from shipnet.runtime.decode import load_image
from shipnet.runtime.errors import ImageError
from shipnet.runtime.preprocess import ImageSource, PreprocessSpec, preprocess

BACKGROUND = (10, 20, 30)
RGB = PreprocessSpec(height=4, width=4, channels=3, background=BACKGROUND)
GREY = PreprocessSpec(height=4, width=4, channels=1, background=BACKGROUND)
SRGB = PreprocessSpec(height=4, width=4, channels=3, background=BACKGROUND, color_profile="srgb")


def pixels(source: ImageSource, spec: PreprocessSpec = RGB) -> list[list[object]]:
    return np.asarray(load_image(source, spec)).tolist()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(size: tuple[int, int], depth: int, color: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file, byte by byte: Pillow does not write every kind."""
    head = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + body


def blend(value: int, alpha: int, background: int) -> int:
    return round((alpha * value + (255 - alpha) * background) / 255)


STORED = np.array([[1, 2, 3], [4, 5, 6]], np.uint8) * 20
SHOWN = {  # which corner of the stored rows and columns is up: EXIF 2.32, 4.6.4, tag 274
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: STORED[::-1].T,
    7: STORED[::-1, ::-1].T,
    8: STORED[:, ::-1].T,
}


class TestOrientation:
    def tagged(self, orientation: int, kind: str = "PNG") -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return encoded(Image.fromarray(STORED), kind, exif=exif)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_each_is_turned_upright(self, orientation: int) -> None:
        assert pixels(self.tagged(orientation), GREY) == SHOWN[orientation].tolist()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_agrees_with_pillow_on_jpeg(self, orientation: int) -> None:
        data = self.tagged(orientation, "JPEG")
        with Image.open(io.BytesIO(data)) as image:
            assert pixels(data, GREY) == np.asarray(ImageOps.exif_transpose(image)).tolist()

    def test_can_be_turned_off(self) -> None:
        spec = PreprocessSpec(height=4, width=4, channels=1, exif_orientation=False)
        assert pixels(self.tagged(6), spec) == STORED.tolist()

    @pytest.mark.parametrize("orientation", [0, 9, 200])
    def test_nonsense_counts_as_none(self, orientation: int) -> None:
        assert pixels(self.tagged(orientation), GREY) == STORED.tolist()

    def test_unreadable_exif_counts_as_none(self) -> None:
        data = encoded(Image.fromarray(STORED), "PNG", exif=b"Exif\0\0no tiff header")
        assert pixels(data, GREY) == STORED.tolist()

    def test_xmp_counts_too(self) -> None:
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
        assert pixels(encoded(Image.fromarray(STORED), "PNG", pnginfo=info), GREY) == SHOWN[3].tolist()

    def test_the_callers_image_is_left_alone(self) -> None:
        with Image.open(io.BytesIO(self.tagged(6))) as image:
            assert pixels(image, GREY) == SHOWN[6].tolist()
            assert image.size == (3, 2)
            assert pixels(image, GREY) == SHOWN[6].tolist()

    @pytest.mark.parametrize("on", [True, False])
    def test_tiff_is_always_upright(self, on: bool) -> None:
        spec = PreprocessSpec(height=4, width=4, channels=1, exif_orientation=on)
        data = encoded(Image.fromarray(STORED), "TIFF", tiffinfo={0x0112: 6})
        assert pixels(data, spec) == SHOWN[6].tolist()


RAMP = np.array([[0, 128, 129, 257, 32_896, 65_535]], np.uint16)
SCALED = [[0, 0, 1, 1, 128, 255]]  # round(v / 257)


class TestDeepGrey:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_files_are_scaled_not_clipped(self, kind: str) -> None:
        assert pixels(encoded(Image.fromarray(RAMP), kind), GREY) == SCALED

    def test_big_endian_tiff(self) -> None:
        image = Image.frombytes("I;16B", (6, 1), RAMP.astype(">u2").tobytes())
        assert pixels(encoded(image, "TIFF"), GREY) == SCALED

    @pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
    def test_images_in_memory(self, mode: str) -> None:
        kind = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
        image = Image.frombytes(mode, (6, 1), RAMP.astype(kind).tobytes())
        assert pixels(image, GREY) == SCALED
        assert pixels(image, RGB) == [[[value] * 3 for value in SCALED[0]]]

    def test_portable_greymap(self) -> None:
        assert pixels(b"P5 6 1 65535 " + RAMP.astype(">u2").tobytes(), GREY) == SCALED
        assert pixels(b"P5 2 1 1000 " + struct.pack(">2H", 500, 1000), GREY) == [[128, 255]]

    def test_12_bit_tiff_is_scaled_from_its_own_range(self) -> None:
        tags = [(256, 3, 2), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1)]
        tags += [(278, 3, 1), (279, 4, 3)]
        entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
        data = b"II*\0" + struct.pack("<I", 12) + b"\x80\x0f\xff\0"  # samples 0x800 and 0xfff
        data += struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
        assert pixels(data, GREY) == [[128, 255]]

    def test_white_is_zero(self) -> None:
        data = encoded(Image.fromarray(RAMP), "TIFF", tiffinfo={262: 0})
        assert pixels(data, GREY) == [[255 - value for value in SCALED[0]]]

    @pytest.mark.parametrize("mode", ["I", "F"])
    @pytest.mark.parametrize("kind", [None, "TIFF"])
    def test_no_stated_range_is_refused(self, mode: str, kind: str | None) -> None:
        image = Image.new(mode, (2, 2), 7)
        with pytest.raises(ImageError, match="which have no stated range: save it with 8"):
            load_image(encoded(image, kind) if kind else image, GREY)

    def test_colour_keeps_its_high_byte(self) -> None:
        data = png((1, 1), 16, 2, b"\0" + struct.pack(">3H", 0x01FF, 0x8000, 0xFFFF))
        assert pixels(data) == [[[1, 128, 255]]]


class TestAlpha:
    def test_rgba(self) -> None:
        image = Image.new("RGBA", (1, 1), (200, 100, 0, 51))
        assert pixels(image) == [[[blend(200, 51, 10), blend(100, 51, 20), blend(0, 51, 30)]]]
        assert pixels(image) == [[[48, 36, 24]]]

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
    def test_opaque_and_transparent(self, mode: str) -> None:
        image = Image.new(mode, (2, 1))
        color = {"RGBA": (90, 90, 90), "LA": (90,), "PA": (1,)}[mode]
        if mode == "PA":
            image.putpalette([0, 0, 0, 90, 90, 90])
        image.putpixel((0, 0), (*color, 255))
        image.putpixel((1, 0), (*color, 0))
        assert pixels(image) == [[[90, 90, 90], [10, 20, 30]]]

    def test_grey_with_alpha_becomes_grey_of_the_composite(self) -> None:
        image = Image.new("LA", (1, 1), (0, 0))
        assert pixels(image, GREY) == [[(19595 * 10 + 38470 * 20 + 7471 * 30 + 32768) >> 16]] == [[18]]

    @pytest.mark.parametrize("mode", ["RGBa", "La"])
    def test_premultiplied(self, mode: str) -> None:
        image = Image.new("RGBA" if mode == "RGBa" else "LA", (1, 1), (200,) * (len(mode) - 1) + (51,))
        assert np.allclose(pixels(image.convert(mode)), [[[48, 56, 64]]], atol=1)

    @pytest.mark.parametrize("transparency", [1, b"\xff\x33"])
    def test_palette(self, transparency: int | bytes) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([200, 100, 0, 0, 0, 255])
        image.putpixel((1, 0), 1)
        alpha = 0 if transparency == 1 else 0x33
        shown = [blend(value, alpha, back) for value, back in zip((0, 0, 255), BACKGROUND, strict=True)]
        assert pixels(encoded(image, "PNG", transparency=transparency)) == [[[200, 100, 0], shown]]

    @pytest.mark.parametrize(
        ("depth", "row", "key", "shown"),
        [
            (1, b"\x40", 1, [0, None]),
            (2, b"\x60", 2, [85, None]),
            (4, b"\x5f", 15, [85, None]),
            (8, b"\x05\x0f", 15, [5, None]),
            (16, struct.pack(">2H", 300, 301), 301, [1, None]),
        ],
    )
    def test_a_transparent_grey_of_every_depth(
        self, depth: int, row: bytes, key: int, shown: list[int | None]
    ) -> None:
        data = png((2, 1), depth, 0, b"\0" + row, (b"tRNS", struct.pack(">H", key)))
        expected = [list(BACKGROUND) if value is None else [value] * 3 for value in shown]
        assert pixels(data) == [expected]

    @pytest.mark.parametrize("depth", [8, 16])
    def test_a_transparent_colour_of_every_depth(self, depth: int) -> None:
        kind, scale = (">6B", 1) if depth == 8 else (">6H", 257)
        row = struct.pack(kind, *(value * scale for value in (1, 2, 3, 4, 5, 6)))
        key = struct.pack(">3H", *(value * scale for value in (4, 5, 6)))
        assert pixels(png((2, 1), depth, 2, b"\0" + row, (b"tRNS", key))) == [[[1, 2, 3], [10, 20, 30]]]

    def test_16_bit_grey_with_alpha(self) -> None:
        data = png((2, 1), 16, 4, b"\0" + struct.pack(">4H", 0x8000, 0xFFFF, 0x8000, 0))
        assert pixels(data) == [[[128, 128, 128], [10, 20, 30]]]


class TestOtherModes:
    def test_one_bit(self) -> None:
        image = Image.new("1", (2, 1))
        image.putpixel((1, 0), 1)
        assert pixels(encoded(image, "PNG"), GREY) == [[0, 255]]
        assert pixels(image, RGB) == [[[0, 0, 0], [255, 255, 255]]]

    def test_luma(self) -> None:
        image = Image.new("RGB", (1, 1), (10, 200, 77))
        assert pixels(image, GREY) == [[(19595 * 10 + 38470 * 200 + 7471 * 77 + 32768) >> 16]]

    def test_palette_of_a_grey_result_is_not_its_index(self) -> None:
        image = Image.new("P", (1, 1))
        image.putpalette([100, 100, 100])
        assert pixels(image, GREY) == [[100]]

    def test_cmyk(self) -> None:
        image = Image.new("CMYK", (2, 1), (51, 102, 255, 0))
        image.putpixel((1, 0), (0, 0, 0, 55))
        assert pixels(image) == [[[204, 153, 0], [200, 200, 200]]]

    def test_cmyk_tiff_file(self) -> None:
        assert pixels(encoded(Image.new("CMYK", (1, 1), (0, 255, 0, 0)), "TIFF")) == [[[255, 0, 255]]]

    @pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX"])
    @pytest.mark.parametrize("spec", [RGB, GREY])
    def test_colour_spaces_convert_as_pillow_does(self, mode: str, spec: PreprocessSpec) -> None:
        image = Image.new(mode, (1, 1), (120, 130, 140, 0)[: len(Image.new(mode, (1, 1)).getbands())])
        expected = image.convert("RGB").convert("L" if spec.channels == 1 else "RGB")
        assert pixels(image, spec) == np.asarray(expected).tolist()

    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_the_first_frame_counts(self, kind: str) -> None:
        frames = [Image.new("RGB", (2, 2), color) for color in ("#ff0000", "#00ff00", "#0000ff")]
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert pixels(data) == [[[255, 0, 0]] * 2] * 2

    def test_a_stereo_photograph_shows_its_first_picture(self) -> None:
        frames = [Image.new("RGB", (16, 16), color) for color in ("#808080", "#000000")]
        data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
        assert pixels(data) == [[[128, 128, 128]] * 16] * 16

    def test_of_a_pil_image_the_frame_it_stands_at(self) -> None:
        frames = [Image.new("RGB", (2, 2), color) for color in ("#ff0000", "#00ff00")]
        with Image.open(
            io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
        ) as image:
            image.seek(1)
            assert pixels(image) == [[[0, 255, 0]] * 2] * 2


class TestProfiles:
    """The profile that littlecms makes for sRGB changes nothing; one with swapped primaries would show."""

    S_RGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def test_ignored_unless_asked_for(self) -> None:
        data = encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", icc_profile=b"rubbish")
        assert pixels(data) == [[[1, 2, 3]]]
        with pytest.raises(
            ImageError, match=r"image bytes: has an ICC profile that cannot be applied .*: save it"
        ):
            load_image(data, SRGB)

    @pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
    def test_srgb_stays(self, mode: str) -> None:
        image = Image.new("RGB", (1, 1), (200, 200, 200)).convert(mode, dither=Image.Dither.NONE)
        image.info["icc_profile"] = self.S_RGB
        assert np.allclose(pixels(image, SRGB), pixels(image, RGB), atol=1)

    def test_alpha_is_left_alone(self) -> None:
        image = Image.new("RGBA", (2, 1), (200, 100, 50, 51))
        image.putpixel((1, 0), (200, 100, 50, 0))
        image.info["icc_profile"] = self.S_RGB
        assert np.allclose(pixels(image, SRGB), pixels(image, RGB), atol=1)
        assert pixels(image, SRGB)[0][1] == list(BACKGROUND)

    def test_another_gamma_is_converted(self) -> None:
        image = Image.new("L", (1, 1), 128)
        image.info["icc_profile"] = self.grey_profile(gamma=1.0)
        assert np.allclose(pixels(image, SRGB), 188, atol=1)  # half of the light: sRGB IEC 61966-2-1

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    def test_a_profile_for_another_colour_space_is_refused(self, mode: str) -> None:
        image = Image.new(mode, (1, 1))
        image.info["icc_profile"] = self.grey_profile(gamma=2.2)
        with pytest.raises(
            ImageError, match=f"has an ICC profile for GRAY on pixels of mode {mode}: save it without"
        ):
            load_image(image, SRGB)

    @staticmethod
    def grey_profile(gamma: float) -> bytes:
        """A grey ICC profile with two tags. Source: ICC.1:2001-04, sections 6.1, 6.5.2 and 6.5.22."""
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
        white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
        tags = (
            struct.pack(">I", 2)
            + b"wtpt"
            + struct.pack(">II", 156, 20)
            + b"kTRC"
            + struct.pack(">II", 176, 14)
        )
        head = struct.pack(">I4sI", 192, bytes(4), 0x02400000) + b"mntrGRAYXYZ " + bytes(12) + b"acsp"
        head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
        return head.ljust(128, b"\0") + tags + white + curve


class TestDraft:
    DRAFT = PreprocessSpec(height=20, width=10, channels=3, draft=True)

    def jpeg(self, size: tuple[int, int], orientation: int = 1) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return encoded(Image.effect_noise(size, 50), "JPEG", exif=exif)

    @pytest.mark.parametrize(
        ("size", "orientation", "decoded"),
        [((80, 160), 1, (10, 20)), ((79, 160), 1, (20, 40)), ((160, 80), 6, (10, 20)), ((9, 9), 1, (9, 9))],
    )
    def test_decodes_no_smaller_than_the_resize_needs(
        self, size: tuple[int, int], orientation: int, decoded: tuple[int, int]
    ) -> None:
        assert load_image(self.jpeg(size, orientation), self.DRAFT).size == decoded

    def test_crops_are_led_by_the_shorter_side(self) -> None:
        spec = PreprocessSpec(
            height=8, width=8, channels=1, resize="shorter_side_crop", resize_size=10, draft=True
        )
        assert load_image(self.jpeg((1000, 40)), spec).size == (250, 10)

    def test_is_off_by_default_and_for_other_formats(self) -> None:
        assert load_image(self.jpeg((80, 160)), RGB).size == (80, 160)
        assert load_image(encoded(Image.new("L", (80, 160)), "PNG"), self.DRAFT).size == (80, 160)


class TestRefusals:
    JPEG = encoded(Image.effect_noise((64, 64), 50), "JPEG")

    @pytest.mark.parametrize(
        ("name", "data", "message"),
        [
            ("empty.jpg", b"", r"empty.jpg: is empty \(0 bytes\): replace the file"),
            (
                "text.jpg",
                b"not an image\n",
                r"text.jpg: is no image in a format that is read here \(JPEG, PNG",
            ),
            ("page.svg", b"<svg/>", r"page.svg: is no image in a format"),
            (
                "drawing.eps",
                b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
                r"drawing.eps: is no image",
            ),
            (
                "cut.jpg",
                JPEG[: len(JPEG) // 2],
                r"cut.jpg: is damaged or breaks its format \(OSError: .*truncated",
            ),
            ("head.jpg", JPEG[:30], r"head.jpg: is damaged or breaks|head.jpg: is no image"),
        ],
    )
    def test_files_that_are_no_images(self, tmp_path: Path, name: str, data: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=message):
            preprocess(tmp_path / name, RGB)
        with pytest.raises(ImageError, match=r"^image bytes: "):
            preprocess(data, RGB)

    def test_paths_that_are_no_files(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"nowhere.png: no such file"):
            preprocess(tmp_path / "nowhere.png", RGB)
        with pytest.raises(ImageError, match="is a folder, expected an image file"):
            preprocess(str(tmp_path), RGB)
        with pytest.raises(ImageError, match="cannot be read: File name too long"):
            preprocess("x" * 5000, RGB)
        with pytest.raises(ImageError, match="null byte"):
            preprocess("a\0b", RGB)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match=r"pipe.png: is no regular file but a pipe, socket or device"):
            preprocess(tmp_path / "pipe.png", RGB)

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
    def test_a_file_without_permission(self, tmp_path: Path) -> None:
        (tmp_path / "locked.png").write_bytes(self.JPEG)
        (tmp_path / "locked.png").chmod(0)
        with pytest.raises(ImageError, match=r"locked.png: may not be read: check its permissions"):
            preprocess(tmp_path / "locked.png", RGB)

    @pytest.mark.parametrize(
        ("size", "count"), [((10_000, 10_000), 100_000_000), ((60_000, 60_000), 3_600_000_000)]
    )
    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.filterwarnings("default")
    def test_bombs_are_refused_where_pillow_only_warns(
        self, size: tuple[int, int], count: int, strict: bool
    ) -> None:
        bomb = png(size, 8, 0, b"")
        with (
            warnings.catch_warnings(),
            pytest.raises(ImageError, match=rf"\({count} pixels\) exceeds limit of"),
        ):
            warnings.simplefilter("error" if strict else "ignore")
            preprocess(bomb, RGB)

    def test_a_side_may_be_too_long(self) -> None:
        with pytest.raises(ImageError, match="is 70000x1 pixels, expected 1 to 65535 on a side"):
            preprocess(png((70_000, 1), 8, 0, bytes(70_001)), RGB)

    @pytest.mark.parametrize("source", [None, 3, ["a.png"], {"path": "a.png"}])
    def test_other_objects(self, source: object) -> None:
        with pytest.raises(
            ImageError, match="expected a path, the bytes of a file, a PIL image or a uint8 array"
        ):
            preprocess(source, RGB)  # type: ignore[arg-type]

    def test_pillows_own_settings_stay(self) -> None:
        before = Image.MAX_IMAGE_PIXELS
        with pytest.raises(ImageError):
            preprocess(self.JPEG[:500], RGB)
        assert before == Image.MAX_IMAGE_PIXELS


MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "La", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV")
DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@st.composite
def specs(draw: st.DrawFn) -> PreprocessSpec:
    height, width = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    crop = draw(st.booleans())
    interpolation = draw(st.sampled_from(("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")))
    return PreprocessSpec(
        height=height,
        width=width,
        channels=draw(st.sampled_from((1, 3))),
        resize="shorter_side_crop" if crop else "fit",
        resize_size=max(height, width) + draw(st.integers(0, 5)) if crop else None,
        interpolation=interpolation,
        exif_orientation=draw(st.booleans()),
        color_profile=draw(st.sampled_from(("ignore", "srgb"))),
        reducing_gap=draw(st.sampled_from((None, 1.0, 2.5))) if interpolation != "nearest" else None,
        draft=draw(st.booleans()),
    )


class TestWhateverComes:
    """Right pixels or `ImageError`, never anything else."""

    @staticmethod
    def answer(source: ImageSource, spec: PreprocessSpec) -> bool:
        try:
            result = preprocess(source, spec)
        except ImageError:
            return False
        assert result.shape == (spec.height, spec.width, spec.channels)
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous
        return True

    @given(
        mode=st.sampled_from(MODES + DEEP),
        size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
        spec=specs(),
        orientation=st.integers(0, 9),
        info=st.sampled_from(({}, {"transparency": 3}, {"transparency": b"\x01\x80"}, {"icc_profile": b"?"})),
    )
    @settings(max_examples=400, deadline=None)
    def test_images_in_memory(
        self,
        mode: str,
        size: tuple[int, int],
        spec: PreprocessSpec,
        orientation: int,
        info: dict[str, object],
    ) -> None:
        image = Image.new(mode, size)
        image.getexif()[0x0112] = orientation
        image.info.update(info)
        answered = self.answer(image, spec)
        if mode in MODES and not info:
            assert answered

    @given(data=st.data(), spec=specs())
    @settings(max_examples=300, deadline=None)
    def test_damaged_files(self, data: st.DataObject, spec: PreprocessSpec) -> None:
        kind, mode = data.draw(
            st.sampled_from((("JPEG", "RGB"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "LA"), ("PNG", "I;16"),
                             ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "I;16"), ("WEBP", "RGBA"),
                             ("PPM", "RGB"), ("ICO", "RGBA"), ("JPEG2000", "RGB")))
        )  # fmt: skip
        file = bytearray(encoded(Image.new(mode, (17, 11)), kind))
        for _ in range(data.draw(st.integers(0, 6))):
            file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
        with warnings.catch_warnings():
            warnings.simplefilter(data.draw(st.sampled_from(("ignore", "error"))))
            self.answer(bytes(file[: data.draw(st.integers(0, len(file)))]), spec)

    @given(data=st.binary(max_size=200), spec=specs())
    @settings(max_examples=200, deadline=None)
    def test_any_bytes(self, data: bytes, spec: PreprocessSpec) -> None:
        self.answer(data, spec)

    @given(
        shape=st.lists(st.integers(0, 6), min_size=0, max_size=4),
        dtype=st.sampled_from(("u1", "i1", "u2", "f4", "?", "O")),
        spec=specs(),
    )
    def test_any_array(self, shape: list[int], dtype: str, spec: PreprocessSpec) -> None:
        array = np.zeros(shape, dtype)
        valid = (
            dtype == "u1" and 0 not in shape and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))
        )
        assert self.answer(array, spec) == valid
