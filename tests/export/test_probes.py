"""Probes cover every class and every odd kind of file, and synthetic ones keep everybody's images out of the bundle."""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ExifTags, Image

from shipnet.export import ExportConfig, export
from shipnet.export.probe_images import KINDS, as_png, draw, odd_pictures
from shipnet.export.probes import FEWEST_IMAGES, LARGEST_FILE_BYTES, MOST_IMAGES, _real, pack, spread
from shipnet.runtime import Bundle, PreprocessSpec, preprocess
from shipnet.runtime.evidence import Probes, load_probes
from shipnet.runtime.verify import verify
from shipnet.train import DataConfig, Dataset, Run, TrainConfig, fit, load_data, load_run, pixels
from shipnet.train.splits import split_halves

CLASSES = ("blue", "green", "red")
SIDE = 24


def read(bundle: Bundle) -> Probes:
    probes = load_probes(bundle)
    assert probes is not None
    return probes


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of three colours in PNG and JPEG files: no stretch of pixels stands in two of them."""
    root, rng = tmp_path_factory.mktemp("private") / "people", np.random.default_rng(11)
    for channel, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(40):
            noise = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) // 2
            noise[:, :, 2 - channel] += 100
            exif = Image.Exif()
            exif[ExifTags.Base.ImageDescription] = f"PRIVATE {name} {number}"
            form = "png" if number % 2 else "jpg"
            Image.fromarray(noise).save(root / name / f"{number}.{form}", exif=exif, quality=95)
    return root


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = TrainConfig(
        data=DataConfig(data=str(photos), image_size=16, val_fraction=0.5),
        arch="conv_cnn",
        epochs=4,
        batch_size=16,
        device="cpu",
        flip=False,
        affine_degrees=0.0,
    )
    return fit(config, out=tmp_path_factory.mktemp("private-run") / "run")


@pytest.fixture(scope="module")
def dataset(trained: Run) -> Dataset:
    return load_data(trained.record.config.data)


@pytest.fixture(scope="module")
def synthetic(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With everything that a bundle may hold."""
    config = ExportConfig(
        probes="synthetic", variants=("fp16", "int8-cpu"), accept_uncertified=True, batch_sizes=(1, 2, 7)
    )
    return export(trained, config, out=tmp_path_factory.mktemp("synthetic") / "bundle")


@pytest.fixture(scope="module")
def real(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(trained, ExportConfig(interop=False), out=tmp_path_factory.mktemp("real") / "bundle")


def blobs(name: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """A file's bytes; those of what it packs; and pixels where it is an image."""
    yield name, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.namelist():
                yield from blobs(f"{name}/{member}", archive.read(member))
    elif name.endswith((".json", ".md")):
        yield f"{name} without spaces", b"".join(data.split())
    else:
        try:
            with Image.open(io.BytesIO(data)) as image:
                yield f"{name} decoded", np.asarray(image).tobytes()
        except OSError:
            pass


class Trace(NamedTuple):
    what: str
    data: bytes


def traces(dataset: Dataset, photos: Path, name: str) -> Iterator[Trace]:
    """What would be found of one image, were it in a bundle in any of the usual forms."""
    images = dataset.valid if name in dataset.valid.names else dataset.train
    place = images.names.index(name)
    data = (photos / name).read_bytes()
    yield Trace("file", data[len(data) // 2 :][:64])
    yield Trace("note", data[data.index(b"PRIVATE") :][:16])
    tensor = pixels(images, dataset.spec, np.array([place]))[0]
    with Image.open(photos / name) as image:
        original = np.asarray(image)
    for what, array in (("pixels", original), ("tensor", tensor)):
        row = array[len(array) // 2]
        yield Trace(f"{what}, NHWC", row.tobytes())
        yield Trace(f"{what}, NCHW", np.ascontiguousarray(row[:, 1]).tobytes())
        for scale in (1.0, 255.0):
            yield Trace(f"{what}, floats", (row.astype(np.float32) / np.float32(scale)).tobytes())
        yield Trace(f"{what}, digits", ",".join(map(str, row.ravel()[:8].tolist())).encode())


def found_in(bundle: Bundle, dataset: Dataset, photos: Path) -> Counter[str]:
    """How often which trace of which image stands in which file."""
    contents = [
        item
        for path in sorted(bundle.path.rglob("*"))
        if path.is_file()
        for item in blobs(path.relative_to(bundle.path).as_posix(), path.read_bytes())
    ]
    assert len(contents) > 50
    found: Counter[str] = Counter()
    for name in (*dataset.valid.names, *dataset.train.names):
        for trace in traces(dataset, photos, name):
            found.update(f"{trace.what} in {where}" for where, data in contents if trace.data in data)
    return found


def test_no_image_is_in_a_bundle_with_synthetic_probes(
    synthetic: Bundle, dataset: Dataset, photos: Path
) -> None:
    """Neither file nor pixels, training images included, whatever is unpacked or decoded to look for them."""
    assert {entry.format for entry in synthetic.manifest.interop} == {"torchscript", "pt2", "safetensors"}
    shipped = {variant.precision for variant in synthetic.manifest.variants}
    assert shipped >= {"fp32", "int8-cpu"}, synthetic.manifest.left_out
    assert found_in(synthetic, dataset, photos) == Counter()


def test_the_search_finds_what_is_there(real: Bundle, dataset: Dataset, photos: Path) -> None:
    """Or the test above could not fail."""
    kinds = {key.partition(" in ")[0]: key for key in found_in(real, dataset, photos)}
    assert {"file", "note", "pixels, NHWC", "tensor, NHWC"} <= set(kinds)
    assert "evidence/tensors.npz" in kinds["tensor, NHWC"]


@pytest.mark.parametrize(
    ("form", "what"),
    [
        (lambda row: row.tobytes(), "tensor, NHWC"),
        (lambda row: np.ascontiguousarray(row.transpose(1, 0)).tobytes(), "tensor, NCHW"),
        (lambda row: (row.astype(np.float32) / np.float32(255)).tobytes(), "tensor, floats"),
        (lambda row: json.dumps(row.ravel().tolist(), indent=1).encode(), "tensor, digits"),
    ],
)
def test_the_search_knows_every_form(
    dataset: Dataset, photos: Path, form: Callable[[NDArray[np.uint8]], bytes], what: str
) -> None:
    name = dataset.valid.names[3]
    row = pixels(dataset.valid, dataset.spec, np.array([3]))[0, 8]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("parity.json", b"before " + form(row) + b" behind")
    contents = [data for _, data in blobs("x.pt2", stream.getvalue())]
    hits = {
        trace.what for trace in traces(dataset, photos, name) if any(trace.data in data for data in contents)
    }
    assert what in hits


def test_names_of_images_and_folders_stay_out(synthetic: Bundle, photos: Path) -> None:
    everything = b"".join(
        data
        for path in synthetic.path.rglob("*")
        if path.is_file()
        for _, data in blobs(path.name, path.read_bytes())
    )
    assert str(photos).encode() not in everything
    assert str(photos.parent).encode() not in everything
    for name in ("red/1.png", "blue/2.jpg"):
        assert (photos / name).is_file()
        assert name.encode() not in everything


def test_synthetic_probes_verify_and_say_what_they_are(synthetic: Bundle) -> None:
    probes = read(synthetic)
    assert probes.index.origin == "synthetic"
    assert Counter(probe.kind for probe in probes.index.probes) == Counter(
        {"drawing": FEWEST_IMAGES, **dict.fromkeys(KINDS, 1)}
    )
    report = verify(synthetic.path, device="cpu")
    assert report.passed and report.probes == len(probes) >= 32
    assert "synthetic probes decode" in next(c.detail for c in report.checks if c.name == "pixels")


def test_real_probes_are_of_the_evidence_half_and_cover_every_class(
    real: Bundle, dataset: Dataset, trained: Run, photos: Path
) -> None:
    probes = read(real)
    assert len(probes) >= 32 and probes.index.origin == "real"
    _, evidence = split_halves(dataset.valid.labels, trained.record.evaluation.split_seed)
    files = {(photos / dataset.valid.names[i]).read_bytes(): dataset.valid.labels[i] for i in evidence}
    labels = []
    for probe in probes.index.probes:
        if probe.kind == "image":
            data = real.read(probe.file)
            assert data in files, f"{probe.name} is not of the evidence half"
            labels.append(files[data])
            assert probe.file.endswith((".jpg", ".png"))
    assert len(labels) == FEWEST_IMAGES
    counts = np.bincount(labels, minlength=3)
    assert counts.min() >= counts.max() - 1, counts
    assert {probe.kind for probe in probes.index.probes} == {"image", *KINDS}


def test_digits_become_files_that_are_the_digits(digits_bundle: Path, digits_run: Path) -> None:
    """An image that was an array is shipped as a PNG file of the same pixels."""
    bundle, run = Bundle.open(digits_bundle), load_run(digits_run)
    data = load_data(run.record.config.data)
    _, evidence = split_halves(data.valid.labels, run.record.evaluation.split_seed)
    images = {pixels(data.valid, data.spec, np.array([i])).tobytes(): data.valid.labels[i] for i in evidence}
    probes = read(bundle)
    labels = {
        images[tensor.tobytes()]
        for probe, tensor in zip(probes.index.probes, probes.tensors, strict=True)
        if probe.kind == "image"
    }
    assert labels == set(range(10))


SPECS = [
    PreprocessSpec(width=8, height=8, channels=1),
    PreprocessSpec(width=32, height=16, channels=3),
    PreprocessSpec(width=64, height=64, channels=3, resize="shorter_side_crop", resize_size=73),
]


def mode_of(data: bytes) -> tuple[str, str | None]:
    with Image.open(io.BytesIO(data)) as image:
        return image.mode, image.format


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.width}x{spec.height}x{spec.channels}")
def test_every_odd_file_is_what_its_kind_says(spec: PreprocessSpec) -> None:
    made = {picture.kind: picture for picture in odd_pictures([draw(0, spec), draw(1, spec)], spec)}
    assert tuple(made) == KINDS
    expected = {
        "grey-jpeg": ("L", "JPEG"),
        "cmyk-jpeg": ("CMYK", "JPEG"),
        "grey-16-bit": ("I;16", "PNG"),
        "alpha": ("RGBA", "PNG"),
        "grey-alpha": ("LA", "PNG"),
        "palette-transparent": ("P", "PNG"),
        "one-bit": ("1", "PNG"),
        "animation": ("P", "GIF"),
    }
    for kind, (mode, form) in expected.items():
        assert mode_of(made[kind].data) == (mode, form), kind
    for value in range(2, 9):
        with Image.open(io.BytesIO(made[f"exif-orientation-{value}-jpeg"].data)) as image:
            assert image.getexif()[ExifTags.Base.Orientation] == value
    with Image.open(io.BytesIO(made["animation"].data)) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(made["icc-jpeg"].data)) as image:
        assert image.info["icc_profile"]
    with Image.open(io.BytesIO(made["progressive-jpeg"].data)) as image:
        assert image.info["progressive"]
    sizes = {}
    for kind in ("one-pixel", "tiny", "wide", "tall", "enlarged"):
        with Image.open(io.BytesIO(made[kind].data)) as image:
            sizes[kind] = image.size
    assert (sizes["one-pixel"], sizes["tiny"]) == ((1, 1), (2, 3))
    assert sizes["wide"][0] == 8 * sizes["wide"][1] and sizes["tall"][1] == 8 * sizes["tall"][0]
    assert min(sizes["enlarged"]) >= 3 * max(spec.resize_size or 0, spec.height, spec.width)
    for picture in made.values():
        array = preprocess(picture.data, spec)
        assert (array.dtype, array.shape) == (np.uint8, (spec.height, spec.width, spec.channels))


@pytest.mark.parametrize(
    "kind",
    ["grey-16-bit", "alpha", "grey-alpha", "palette-transparent", "cmyk-jpeg", "icc-jpeg", "animation"],
)
def test_an_odd_file_shows_who_reads_it_wrongly(kind: str) -> None:
    """What other software commonly does with the file gives clearly other pixels."""
    spec = SPECS[1]
    made = {picture.kind: picture.data for picture in odd_pictures([draw(1, spec)], spec)}
    wrong_spec = {
        "alpha": {"background": (0, 0, 0)},
        "grey-alpha": {"background": (0, 0, 0)},
        "palette-transparent": {"background": (0, 0, 0)},
        "icc-jpeg": {"color_profile": "srgb"},
    }
    right = preprocess(made[kind], spec).astype(int)
    with Image.open(io.BytesIO(made[kind])) as image:
        if kind in wrong_spec:
            wrong = preprocess(made[kind], msgspec.structs.replace(spec, **wrong_spec[kind]))
        elif kind == "grey-16-bit":
            clipped = np.minimum(np.asarray(image), 255).astype(np.uint8)
            wrong = preprocess(as_png(Image.fromarray(clipped)), spec)
        elif kind == "cmyk-jpeg":
            inverted = image.point(lambda value: 255 - value)
            wrong = preprocess(as_png(inverted.convert("RGB")), spec)
        else:
            image.seek(1)
            wrong = preprocess(as_png(image.convert("RGB")), spec)
    assert np.abs(right - wrong.astype(int)).max() > 64


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.width}x{spec.height}x{spec.channels}")
def test_drawings_and_odd_files_are_the_same_each_time(spec: PreprocessSpec) -> None:
    first, second = (
        [picture.data for picture in odd_pictures([draw(seed, spec) for seed in range(3)], spec)]
        for _ in range(2)
    )
    assert first == second
    drawings = [as_png(draw(seed, spec)) for seed in range(6)]
    assert len(set(drawings)) == 6
    assert draw(0, spec).mode == ("L" if spec.channels == 1 else "RGB")


def test_metadata_of_an_image_is_not_saved_again(photos: Path) -> None:
    spec = SPECS[1]
    with Image.open(photos / "red" / "0.jpg") as image:
        image.load()
        assert image.getexif()
        made = list(odd_pictures([image], spec))
    assert not any(b"PRIVATE" in picture.data for picture in made)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_class_has_two_before_each_has_one(data: st.DataObject) -> None:
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=40)))
    preferred = np.array(
        data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1, max_size=40, unique=True))
    )
    count = data.draw(st.integers(1, 40))
    chosen = spread(labels, preferred, count=count)
    assert len(set(chosen.tolist())) == len(chosen) <= count
    counts = Counter(labels[chosen].tolist())
    if count >= len(set(labels.tolist())):
        assert set(counts) == set(labels.tolist()), "a class has no probe"
    available = Counter(labels[preferred].tolist())
    for label, number in counts.items():
        for other in counts:
            assert number <= counts[other] + 1 or counts[other] >= max(1, available[other]), (label, other)


def test_a_large_file_is_scaled_down_before_it_is_shipped(trained: Run, photos: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3), np.uint8)
    Image.fromarray(noise).save(large)
    assert large.stat().st_size > LARGEST_FILE_BYTES
    picture = _real(large, SPECS[1])
    assert (picture.kind, picture.extension) == ("shrunk-image", "jpg")
    with Image.open(io.BytesIO(picture.data)) as image:
        assert image.size == (64, 77)
    small = _real(photos / "red" / "1.png", SPECS[1])
    assert small.data == (photos / "red" / "1.png").read_bytes()
    assert MOST_IMAGES * LARGEST_FILE_BYTES <= 1 << 27


def test_arrays_are_packed_to_the_same_bytes() -> None:
    arrays = {"a": np.arange(100, dtype=np.uint8), "b": np.zeros((3, 3), np.uint8)}
    assert pack(arrays) == pack(arrays)
    with np.load(io.BytesIO(pack(arrays))) as file:
        assert np.array_equal(file["a"], arrays["a"])
