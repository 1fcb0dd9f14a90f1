"""Writes the probes of a bundle: images, their pixels, and what every variant answers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shipnet.runtime import ParityError, PreprocessSpec, preprocess
from shipnet.runtime.backends.ort import PROVIDERS, OrtBackend
from shipnet.runtime.encoding import encode
from shipnet.runtime.evidence import (
    INDEX,
    LOGITS,
    PICTURES,
    TENSORS,
    TENSORS_NAME,
    Probe,
    ProbeIndex,
    answers,
    logit_scale,
    tensor_sha256,
)
from shipnet.runtime.manifest import Variant
from shipnet.runtime.preprocess import decoder_version, load_image
from shipnet.runtime.replay import ask

from .assemble import write_into
from .config import ExportConfig
from .probe_images import KINDS, Picture, as_jpeg, as_png, bare, draw, odd_pictures
from .source import Indices, OnProgress, Source

# Beside some twenty odd ones; more where there are more classes.
FEWEST_IMAGES: Final = 20
MOST_IMAGES: Final = 256
# A larger file is not shipped: what is shipped in its place is scaled down to so many times the network's input.
LARGEST_FILE_BYTES: Final = 512 * 1024
_SHRUNK: Final = 2


class _Probe(NamedTuple):
    name: str
    file: str
    picture: Picture
    tensor: NDArray[np.uint8]


def write_probes(
    folder: Path,
    source: Source,
    config: ExportConfig,
    *,
    variants: tuple[Variant, ...],
    on_progress: OnProgress,
) -> None:
    """Writes probes into `evidence/`, with what each variant answers on the CPU, every image alone.

    The fp32 answers are held against the validated network, as odd images are not among those it was proved on.

    Args:
        folder: of the bundle that is being made; the variants' files lie in it.
        source: the validated network and its images.
        config: says whether probes are validation images or drawn.
        variants: that will be in the bundle.
        on_progress: called as variants are asked.

    Raises:
        ParityError: fp32 answers a probe otherwise than the validated network, or a variant gives
            NaN or infinite logits.
    """
    probes = [
        _Probe(name, f"{PICTURES}{name}.{picture.extension}", picture, preprocess(picture.data, source.spec))
        for name, picture in _named(_pictures(source, config))
    ]
    tensors = np.stack([probe.tensor for probe in probes])
    logits = {}
    for done, variant in enumerate(variants):
        on_progress("probes", done, len(variants))
        logits[variant.precision] = _ask_file(folder / variant.file, tensors)
        _refuse_not_finite(probes, variant.precision, logits[variant.precision])
    _refuse_other_answers(probes, source, config, tensors=tensors, found=logits["fp32"])
    answered = [answers(precision, rows, source.labels) for precision, rows in logits.items()]
    index = ProbeIndex(
        origin=config.probes,
        decoder=decoder_version(),
        probes=tuple(
            Probe(
                name=probe.name,
                kind=probe.picture.kind,
                file=probe.file,
                tensor_sha256=tensor_sha256(probe.tensor),
                answers=tuple(rows[place] for rows in answered),
            )
            for place, probe in enumerate(probes)
        ),
    )
    for probe in probes:
        write_into(folder, probe.file, probe.picture.data)
    write_into(folder, INDEX, encode(index))
    write_into(folder, TENSORS, pack({TENSORS_NAME: tensors}))
    write_into(folder, LOGITS, pack(logits))
    on_progress("probes", len(variants), len(variants))


def pack(arrays: dict[str, NDArray[np.uint8]] | dict[str, NDArray[np.float32]]) -> bytes:
    """Arrays as a compressed npz file; the same arrays give the same bytes, as its timestamps are fixed."""
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def spread(labels: NDArray[np.int64], preferred: Indices, *, count: int) -> Indices:
    """Chooses images so that every class has one before any has two, and two before any has three.

    Args:
        labels: int64 (N,), of all images.
        preferred: indices of those to choose from, in the order wanted. Of a class that has none among
            them, the first of all images is taken.
        count: how many to choose, where there are so many.
    """
    missing = np.setdiff1d(np.unique(labels), np.unique(labels[preferred]))
    candidates = np.concatenate([preferred, *(np.flatnonzero(labels == label)[:1] for label in missing)])
    seen: dict[int, int] = {}
    ranks = []
    for label in labels[candidates].tolist():
        ranks.append(seen.get(label, 0))
        seen[label] = ranks[-1] + 1
    chosen: Indices = candidates[np.argsort(ranks, kind="stable")][:count]
    return chosen


def _pictures(source: Source, config: ExportConfig) -> Iterator[Picture]:
    """Plain images, then odd ones made from them."""
    count = min(max(FEWEST_IMAGES, len(source.labels)), MOST_IMAGES)
    spec, bases = source.spec, []
    if config.probes == "synthetic":
        for number in range(FEWEST_IMAGES):
            image = draw(source.provenance.split_seed + number, spec)
            bases.append(image)
            yield Picture("drawing", as_png(image), "png")
    else:
        for index in spread(source.valid.labels, source.evidence, count=count).tolist():
            original = source.valid[index]
            yield _real(original, spec)
            if len(bases) < len(KINDS):
                bases.append(_shrunk(original, spec))
    yield from odd_pictures(bases, spec)


def _named(pictures: Iterator[Picture]) -> Iterator[tuple[str, Picture]]:
    for number, picture in enumerate(pictures):
        yield f"{number:03}-{picture.kind}", picture


def _real(original: Path | NDArray[np.uint8], spec: PreprocessSpec) -> Picture:
    """A validation image as a file: its own bytes, so that what is decoded is what users have."""
    if isinstance(original, np.ndarray):
        return Picture("image", as_png(load_image(original, spec)), "png")
    if original.stat().st_size <= LARGEST_FILE_BYTES:
        data = original.read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            form = (image.format or "image").lower()
        return Picture("image", data, "jpg" if form == "jpeg" else form)
    return Picture("shrunk-image", as_jpeg(_shrunk(original, spec)), "jpg")


def _shrunk(original: Path | NDArray[np.uint8], spec: PreprocessSpec) -> Image.Image:
    """An image's own pixels, where they are not many; upright, without what the file says beside them."""
    image = bare(load_image(original, spec))
    side = _SHRUNK * max(spec.resize_size or 0, spec.height, spec.width)
    scale = side / min(image.size)
    if scale >= 1.0:
        return image
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC)


def _ask_file(path: Path, tensors: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What the engine answers on the CPU, one image after the other, on one thread."""
    backend = OrtBackend.open(path.read_bytes(), provider=PROVIDERS["cpu"])
    try:
        return ask(backend.run, tensors)
    finally:
        backend.close()


def _refuse_not_finite(probes: list[_Probe], precision: str, found: NDArray[np.float32]) -> None:
    broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
    if len(broken):
        raise ParityError(
            f"{precision} gives NaN or infinite logits on {len(broken)} of {len(probes)} probes, the first is "
            f"{probes[int(broken[0])].name}, no bundle was written: export without {precision}"
        )


def _refuse_other_answers(
    probes: list[_Probe],
    source: Source,
    config: ExportConfig,
    *,
    tensors: NDArray[np.uint8],
    found: NDArray[np.float32],
) -> None:
    expected = ask(source.reference, tensors)
    relative = np.abs(found - expected).max(axis=1) / logit_scale(expected)
    worst = int(np.nan_to_num(relative, nan=np.inf).argmax())
    if not relative[worst] <= config.max_relative_difference:
        raise ParityError(
            f"the exported network is not the trained one, no bundle was written: on the probe {probes[worst].name} "
            f"logits differ by {relative[worst]:.2g} of their scale, budget {config.max_relative_difference:.2g}"
        )
