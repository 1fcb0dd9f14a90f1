"""The ranges that a network's activations have on real images, measured in one pass and in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from shipnet.runtime import ImageError
from shipnet.runtime.errors import require
from shipnet.runtime.machine import available_cores
from shipnet.runtime.manifest import Method
from shipnet.train import pixels

from .onnx_graph import INPUT
from .parity import Images
from .rewrite import CannotMakeError
from .source import Indices, OnProgress, Source

logger = logging.getLogger(__name__)

METHODS: Final[tuple[Method, ...]] = ("minmax", "percentile", "entropy")
Ranges = dict[str, tuple[float, float]]
_BINS: Final = 2048  # on each side of zero
_LEVELS: Final = 128  # that int8 has on one side of zero
# Values that never exceed this count as zeros: bins as narrow as theirs are beyond float32.
_NOTHING: Final = 1e-30
_STRIDE: Final = 16  # between two clipping points that the entropy is computed at
# Of the values of a tensor, that a range holds.
# Source: H. Wu et al., "Integer Quantization for Deep Learning Inference", arXiv:2004.09602, section 5.2.
_PERCENTILE: Final = 99.99
# Activations of so many bytes are kept at a time.
_BATCH_BYTES: Final = 64 << 20
_LARGEST_BATCH: Final = 64
_READ: Final = 64


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the calibration images showed.

    Attributes:
        ranges: for each method, the lowest and highest value that each tensor is given.
        images: that it was measured on.
        unreadable_images: how many more could not be read and were passed over; each is logged by its name.
    """

    ranges: dict[Method, Ranges]
    images: int
    unreadable_images: int


@dataclass(slots=True)
class Histogram:
    """How often a tensor has which value: bins of one width around zero, which doubles as values grow.

    Attributes:
        low, high: the exact extremes.
        top: the bins reach from `-top` to `top`, a power of two.
        counts: int64 (2 * 2048,).
    """

    low: float = 0.0
    high: float = 0.0
    top: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * _BINS, np.int64))

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts float32 values of any shape, all finite."""
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        peak = max(-low, high)
        if not self.top:
            if peak < _NOTHING:
                self.counts[_BINS] += values.size
                return
            self.top = float(2.0 ** np.ceil(np.log2(peak)))
        while self.top < peak:
            self._double()
        places = ((values.ravel() + np.float32(self.top)) * np.float32(_BINS / self.top)).astype(np.int64)
        self.counts += np.bincount(np.minimum(places, 2 * _BINS - 1), minlength=2 * _BINS)

    def _double(self) -> None:
        """Merges the bins in pairs; none of the counts is lost."""
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(2 * _BINS, np.int64)
        self.counts[_BINS // 2 : _BINS // 2 + _BINS] = merged
        self.top *= 2

    def range(self, method: Method) -> tuple[float, float]:
        """The lowest and highest value that are told apart by a method of `METHODS`; zero lies between."""
        if method == "minmax" or not self.top:
            return self.low, self.high
        if method == "percentile":
            return self._percentile()
        clip = self._entropy_clip()
        return max(self.low, -clip), min(self.high, clip)

    def _percentile(self) -> tuple[float, float]:
        tail = (1 - _PERCENTILE / 100) / 2 * self.counts.sum()
        below = np.cumsum(self.counts)
        edges = np.linspace(-self.top, self.top, 2 * _BINS + 1)
        low = edges[int(np.searchsorted(below, tail, side="right"))]
        high = edges[min(int(np.searchsorted(below, below[-1] - tail)) + 1, 2 * _BINS)]
        return max(self.low, min(float(low), 0.0)), min(self.high, max(float(high), 0.0))

    def _entropy_clip(self) -> float:
        """The absolute value to clip at so that 128 levels lose the least information.

        Zeros, of which a ReLU makes most, count as often as the smallest values.

        Source: S. Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017.
        """
        counts = (self.counts[_BINS:] + self.counts[:_BINS][::-1]).astype(np.float64)
        counts[0] = counts[1]
        if not counts.any():
            return self.top
        sizes = range(_LEVELS, _BINS + 1, _STRIDE)
        losses = [_information_lost(counts, size) for size in sizes]
        return self.top * sizes[int(np.argmin(losses))] / _BINS


def _information_lost(counts: NDArray[np.float64], size: int) -> float:
    """The divergence of the first `size` bins, told apart by 128 levels, from all values clipped into them."""
    clipped = counts[:size].copy()
    clipped[-1] += counts[size:].sum()
    level = np.arange(size) * _LEVELS // size
    filled = counts[:size] > 0
    members = np.maximum(np.bincount(level, weights=filled, minlength=_LEVELS), 1)
    spread = np.where(
        filled, (np.bincount(level, weights=counts[:size], minlength=_LEVELS) / members)[level], 0
    )
    if not spread.any():
        return float("inf")
    tiny = 1e-9
    found, wanted = spread / spread.sum() + tiny, clipped / clipped.sum() + tiny
    return float((wanted * np.log(wanted / found)).sum())


def measure(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[Images]
) -> dict[str, Histogram]:
    """Runs a graph on images and counts the values of some of its tensors.

    Args:
        model: the fp32 graph, its shapes inferred.
        tensors: names of float32 tensors.
        batches: uint8 (N, H, W, C) each; they are run in smaller ones, so that 64 MiB of activations are
            held at a time, or those of one image.

    Raises:
        CannotMakeError: an activation is NaN or infinite.
    """
    session = expose(model, tensors)
    found = {name: Histogram() for name in tensors}
    size = 1
    for images in batches:
        first = 0
        while first < len(images):
            batch = images[first : first + size]
            values = session.run(list(tensors), {INPUT: batch})
            first += len(batch)
            size = _batch_size(sum(value.nbytes for value in values) // len(batch))
            for name, value in zip(tensors, values, strict=True):
                if not np.isfinite(value).all():
                    raise CannotMakeError(f"{name} is NaN or infinite on calibration images")
                found[name].add(value)
    return found


def calibrate(
    model: onnx.ModelProto, tensors: Sequence[str], source: Source, *, images: int, on_progress: OnProgress
) -> Calibration:
    """Measures every range on calibration images, as many of each class where there are labels.

    A file that cannot be read is passed over and counted, as training does.

    Args:
        model: the fp32 graph, its shapes inferred.
        tensors: that ranges are wanted of.
        source: holds the calibration images and the seed.
        images: how many, at most.
        on_progress: called as the images go by.

    Raises:
        CannotMakeError: there is no calibration image that can be read.
    """
    chosen = stratified(source.calibration.labels, images, source.provenance.split_seed)
    unreadable: list[str] = []
    histograms = measure(model, tensors, _readable(source, chosen, unreadable, on_progress))
    if len(unreadable) == len(chosen):
        why = f": {len(unreadable)} cannot be read, such as {unreadable[0]}" if unreadable else ""
        raise CannotMakeError(f"there is no calibration image{why}: ranges are measured on training images")
    return Calibration(
        ranges={
            method: {name: histogram.range(method) for name, histogram in histograms.items()}
            for method in METHODS
        },
        images=len(chosen) - len(unreadable),
        unreadable_images=len(unreadable),
    )


def stratified(labels: NDArray[np.int64], count: int, seed: int) -> Indices:
    """Indices of at most `count` images, as many of each label as can be, drawn at random, sorted."""
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        of_label = order[labels[order] == label]
        turn[of_label] = np.arange(len(of_label))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:count])


def _readable(
    source: Source, chosen: Indices, unreadable: list[str], on_progress: OnProgress
) -> Iterator[Images]:
    """The pixels of those images that can be read; the names of the others go into `unreadable`."""
    for first in range(0, len(chosen), _READ):
        on_progress("calibrate", first, len(chosen))
        part = chosen[first : first + _READ]
        try:
            yield pixels(source.calibration, source.spec, part)
        except ImageError:
            for index in part:
                try:
                    image = pixels(source.calibration, source.spec, np.array([index]))
                except ImageError as error:
                    unreadable.append(source.calibration.names[index])
                    logger.warning("left out of calibration: %s", error)
                else:
                    yield image
    on_progress("calibrate", len(chosen), len(chosen))


def _batch_size(image_bytes: int) -> int:
    """How many images are run at a time whose activations have so many bytes each."""
    return min(max(_BATCH_BYTES // max(image_bytes, 1), 1), _LARGEST_BATCH)


def expose(model: onnx.ModelProto, tensors: Sequence[str]) -> Any:
    """A session of onnxruntime on the CPU that gives out the named float32 tensors."""
    ort = require("onnxruntime")
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    outputs = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in tensors
        if name not in outputs
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_cores().usable
    options.log_severity_level = 3
    return ort.InferenceSession(
        exposed.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
    )
