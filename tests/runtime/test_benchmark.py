"""Figures from samples, and reports that say what they were taken on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipnet.runtime import Classifier
from shipnet.runtime.benchmark import BenchReport, benchmark, summarize
from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.errors import ImageError, UsageError
from shipnet.runtime.machine import hardware


@pytest.fixture(scope="module")
def classifier(digits_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(digits_bundle, device="cpu", threads=1) as loaded:
        yield loaded


def test_figures_of_known_samples() -> None:
    timing = summarize(4, [count * 1_000_000 for count in range(1, 102)])
    assert (timing.runs, timing.min_ms, timing.max_ms) == (101, 1.0, 101.0)
    assert (timing.median_ms, timing.mean_ms) == (51.0, 51.0)
    assert (timing.p90_ms, timing.p95_ms, timing.p99_ms) == (91.0, 96.0, 100.0)
    assert timing.images_per_s == pytest.approx(4 * 1000 / 51)
    assert timing.samples_ns[:2] == (1_000_000, 2_000_000)


def test_percentiles_lie_between_samples() -> None:
    timing = summarize(1, [1_000_000, 2_000_000])
    assert (timing.median_ms, timing.p90_ms, timing.p99_ms) == pytest.approx((1.5, 1.9, 1.99))


@given(st.lists(st.integers(1, 10**12), min_size=1))
def test_figures_are_in_order(samples: list[int]) -> None:
    timing = summarize(1, samples)
    figures = [timing.min_ms, timing.median_ms, timing.p90_ms, timing.p95_ms, timing.p99_ms, timing.max_ms]
    assert figures == pytest.approx(sorted(figures))
    assert timing.min_ms <= timing.mean_ms * (1 + 1e-9)
    assert timing.mean_ms <= timing.max_ms * (1 + 1e-9)


def test_a_report_says_what_it_was_taken_on(classifier: Classifier) -> None:
    report = benchmark(classifier, (1, 3, 1), warmup=1, min_runs=5, min_seconds=0.0)
    assert [timing.batch_size for timing in report.batches] == [1, 3]
    for timing in report.batches:
        assert timing.runs == len(timing.samples_ns) == 5
        assert min(timing.samples_ns) > 0
    assert report.plan == classifier.plan
    assert report.hardware == hardware()
    assert report.settings.images == "random pixels, seed 0"
    assert decode(encode(report), BenchReport, where="bench.json") == report


def test_seconds_are_filled_with_runs(classifier: Classifier) -> None:
    (timing,) = benchmark(classifier, [1], warmup=0, min_runs=1, min_seconds=0.05).batches
    assert timing.runs > 1
    assert timing.runs == 10_000 or sum(timing.samples_ns) >= 0.05e9


def test_given_images_are_repeated_to_fill_a_batch(classifier: Classifier, digit_files: Path) -> None:
    images = np.stack([classifier.preprocess(path) for path in sorted(digit_files.glob("*/*.png"))[:2]])
    report = benchmark(classifier, [5], images=images, warmup=0, min_runs=1, min_seconds=0.0)
    assert report.settings.images == "2 given images"
    with pytest.raises(ImageError, match=r"logits: expected a uint8 array"):
        benchmark(classifier, [1], images=images[:, 1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sizes": ()}, r"batch_sizes is \(\), expected numbers of at least 1"),
        ({"batch_sizes": (8, 0)}, r"batch_sizes is \(8, 0\), expected numbers of at least 1"),
        ({"warmup": -1}, "warmup is -1, expected at least 0"),
        ({"min_runs": 0}, "min_runs is 0, expected at least 1"),
        ({"min_seconds": float("nan")}, "min_seconds is nan, expected at least 0"),
        ({"images": np.zeros((0, 1, 1, 1), np.uint8)}, "images is empty, expected at least one"),
    ],
)
def test_numbers_that_cannot_be_meant(
    classifier: Classifier, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        benchmark(classifier, **options)  # type: ignore[arg-type]
