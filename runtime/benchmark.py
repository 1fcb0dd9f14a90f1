"""How fast a bundle is on this machine: every sample, and what they were taken on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .classifier import Classifier
from .errors import UsageError
from .machine import Hardware, hardware
from .plan import ExecutionPlan

_SEED: Final = 0
_MAX_RUNS: Final = 10_000  # a report stays readable where a run takes microseconds


class BenchSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the samples were taken.

    Attributes:
        measured: what one sample times.
        images: what was run on.
        warmup: runs before the first sample, at each batch size.
        min_runs, min_seconds: samples were taken until there were so many and they lasted so long together,
        max_runs: but no more than this.
    """

    measured: str
    images: str
    warmup: int
    min_runs: int
    min_seconds: float
    max_runs: int


class BatchTiming(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The latency of one batch size, in milliseconds, and the rate that follows.

    Attributes:
        batch_size: images per run.
        runs: samples taken.
        images_per_s: all images over the sum of all samples.
        samples_ns: every sample in order, in nanoseconds.
    """

    batch_size: int
    runs: int
    mean_ms: float
    median_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float
    images_per_s: float
    samples_ns: tuple[int, ...]


class BenchReport(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A measurement and all that is needed to read it: when, what ran, on which machine, how it was taken."""

    created_utc: str
    plan: ExecutionPlan
    hardware: Hardware
    settings: BenchSettings
    batches: tuple[BatchTiming, ...]


def benchmark(
    classifier: Classifier,
    batch_sizes: Sequence[int] = (1, 8, 32),
    *,
    images: NDArray[np.uint8] | None = None,
    warmup: int = 10,
    min_runs: int = 50,
    min_seconds: float = 1.0,
) -> BenchReport:
    """Times `classifier.logits` from uint8 pixels in memory to logits in memory.

    Args:
        classifier: what runs.
        batch_sizes: each is measured once, in this order.
        images: uint8 (N, H, W, C) as `classifier.preprocess` gives them, repeated to fill a batch; None takes
            seeded random pixels, the same every time.
        warmup: runs before the first sample, at each batch size.
        min_runs: samples, at least.
        min_seconds: that all samples of a batch size last together, at least, up to 10,000 samples.

    Raises:
        UsageError: a number below its least value, or no batch size.
        ImageError: images of another shape or dtype.
    """
    _refuse(batch_sizes, images, warmup, min_runs, min_seconds)
    pixels = _random_pixels(classifier, max(batch_sizes)) if images is None else images
    settings = BenchSettings(
        measured="classifier.logits: uint8 pixels in memory to float32 logits in memory",
        images=f"random pixels, seed {_SEED}" if images is None else f"{len(images)} given images",
        warmup=warmup,
        min_runs=min_runs,
        min_seconds=min_seconds,
        max_runs=max(_MAX_RUNS, min_runs),
    )
    timings = []
    for size in dict.fromkeys(batch_sizes):
        batch = pixels[np.arange(size) % len(pixels)]
        timings.append(summarize(size, _sample(classifier, batch, settings)))
    return BenchReport(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        plan=classifier.plan,
        hardware=hardware(),
        settings=settings,
        batches=tuple(timings),
    )


def summarize(batch_size: int, samples_ns: Sequence[int]) -> BatchTiming:
    """The figures of one batch size's samples, at least one.

    Percentiles are interpolated linearly between the two nearest samples.

    Source: R. J. Hyndman and Y. Fan, "Sample Quantiles in Statistical Packages", The American Statistician 50 (1996),
    361-365, definition 7, which is NumPy's default.
    """
    samples_ms = np.asarray(samples_ns, dtype=np.float64) / 1e6
    median, p90, p95, p99 = (float(value) for value in np.percentile(samples_ms, [50, 90, 95, 99]))
    return BatchTiming(
        batch_size=batch_size,
        runs=len(samples_ns),
        mean_ms=float(samples_ms.mean()),
        median_ms=median,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        min_ms=float(samples_ms.min()),
        max_ms=float(samples_ms.max()),
        images_per_s=batch_size * len(samples_ns) / (sum(samples_ns) / 1e9),
        samples_ns=tuple(samples_ns),
    )


def _sample(classifier: Classifier, batch: NDArray[np.uint8], settings: BenchSettings) -> list[int]:
    """Latencies of runs on one batch, in nanoseconds. `logits` returns host memory, so the device is done by then."""
    for _ in range(settings.warmup):
        classifier.logits(batch)
    samples: list[int] = []
    spent, enough = 0, settings.min_seconds * 1e9
    while len(samples) < settings.min_runs or (spent < enough and len(samples) < settings.max_runs):
        start = time.perf_counter_ns()
        classifier.logits(batch)
        samples.append(time.perf_counter_ns() - start)
        spent += samples[-1]
    return samples


def _random_pixels(classifier: Classifier, count: int) -> NDArray[np.uint8]:
    spec = classifier.bundle.manifest.input
    shape = (count, spec.height, spec.width, spec.channels)
    return np.random.default_rng(_SEED).integers(0, 256, shape, dtype=np.uint8)


def _refuse(
    batch_sizes: Sequence[int],
    images: NDArray[np.uint8] | None,
    warmup: int,
    min_runs: int,
    min_seconds: float,
) -> None:
    if not batch_sizes or min(batch_sizes) < 1:
        raise UsageError(f"batch_sizes is {tuple(batch_sizes)}, expected numbers of at least 1")
    if images is not None and len(images) == 0:
        raise UsageError("images is empty, expected at least one")
    for name, value, least in (
        ("warmup", warmup, 0),
        ("min_runs", min_runs, 1),
        ("min_seconds", min_seconds, 0),
    ):
        if not value >= least:  # also a NaN
            raise UsageError(f"{name} is {value}, expected at least {least}")
