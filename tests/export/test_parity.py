"""The comparison sees what it must see, and counts it right."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from shipnet.export.parity import Chunk, Exported, compare_batches, compare_places, prove
from shipnet.export.parity_report import ParityReport
from shipnet.runtime import ParityError
from shipnet.runtime.encoding import decode, encode
from shipnet.runtime.proofs import Budget

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]
Run = Callable[[Images], Logits]
BUDGET = Budget(max_relative_difference=1e-4, max_flip_rate=0.0, max_top1_drop=0.0)
IMAGES = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1), dtype=np.uint8)


def linear(images: Images) -> Logits:
    """Three logits of four pixels, each image by itself."""
    weights = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)
    return images.reshape(len(images), 4).astype(np.float32) @ weights


TRUTH = linear(IMAGES).argmax(1)


def chunks() -> Iterator[Chunk]:
    evidence = np.arange(50) % 2 == 0
    for first in range(0, 50, 20):
        part = slice(first, first + 20)
        yield Chunk(np.arange(50)[part], IMAGES[part], TRUTH[part], evidence[part])


def report(found: Run, budget: Budget = BUDGET) -> ParityReport:
    batches = compare_batches(linear, found, IMAGES, (1, 7, 50))
    places = compare_places(found, IMAGES[:5], (2, 7))
    exported = Exported(run=found, device="cpu", budget=budget, batches=batches, invariance=places)
    return prove(linear, {"other": exported}, chunks(), labels=("a", "b", "c"))


def test_the_same_network_has_nothing_to_report() -> None:
    (entry,) = report(linear).formats
    assert entry.breaches == ()
    assert (entry.parity.images, entry.parity.flips, entry.parity.top1_agreement) == (50, 0, 1.0)
    assert (entry.parity.accuracy.images, entry.parity.accuracy.correct) == (25, 25)
    assert entry.parity.accuracy == entry.parity.reference_accuracy
    assert [row.batch_size for row in entry.parity.batches] == [1, 7, 50]
    assert {row.max_difference for row in entry.parity.batches} == {0.0}


def test_a_difference_is_measured_against_the_scale() -> None:
    scale = float(np.abs(linear(IMAGES)).max())
    (row,) = compare_batches(linear, lambda images: linear(images) + np.float32(8.0), IMAGES, (10,))
    assert row.max_difference == row.mean_difference == 8.0
    assert row.max_relative_difference == pytest.approx(8.0 / scale)
    (entry,) = report(lambda images: linear(images) + np.float32(8.0)).formats
    assert any("of their scale over 50 images, budget 0.0001" in breach for breach in entry.breaches)
    assert entry.parity.flips == 0


def test_a_flip_is_counted_and_shown_first() -> None:
    def swapped(images: Images) -> Logits:
        logits = linear(images)
        if len(images) == 20 and np.array_equal(images, IMAGES[20:40]):
            logits[3] = logits[3][[1, 2, 0]]
        return logits

    (entry,) = report(swapped).formats
    assert entry.parity.flips == 1
    assert entry.parity.top1_agreement == pytest.approx(0.98)
    assert any("1 of 50 images get another label (2.000%), budget 0.000%" in b for b in entry.breaches)
    (flip,) = entry.flips
    assert (flip.index, flip.evidence) == (23, False)
    assert flip.reference_label == flip.true_label != flip.exported_label
    assert flip.margin == pytest.approx(np.diff(np.sort(linear(IMAGES[23:24])[0])[-2:])[0])
    assert entry.worst[0].index == 23
    assert entry.parity.decisions.lost == 0  # on the evidence half, to which it does not belong


def test_a_network_that_depends_on_its_batch_is_caught_by_batch_size() -> None:
    def centred(images: Images) -> Logits:
        return linear(images) - linear(images).mean(axis=0, keepdims=True)

    (entry,) = report(centred).formats
    assert any("at batch size 1 logits differ" in breach for breach in entry.breaches)
    assert any("at batch size 7 logits differ" in breach for breach in entry.breaches)


def test_nan_is_a_breach_and_never_a_small_difference() -> None:
    def broken(images: Images) -> Logits:
        logits = linear(images)
        logits[0, 0] = np.nan
        return logits

    (entry,) = report(broken).formats
    assert any("logits are NaN or infinite" in breach for breach in entry.breaches)
    (row,) = compare_batches(linear, broken, IMAGES, (25,))
    assert row.not_finite == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_the_largest_difference_and_no_decision(value: float) -> None:
    """Even where it stands at the right label, or far below it: the runtime gives such an image no label."""

    def broken(images: Images) -> Logits:
        logits = linear(images)
        if len(images) == 20 and np.array_equal(images, IMAGES[20:40]):
            logits[4, TRUTH[24]] = value
        return logits

    (entry,) = report(broken).formats
    largest = float(np.finfo(np.float32).max)
    assert entry.parity.differences.max == entry.worst[0].max_difference == largest
    assert entry.parity.differences.not_finite == 1
    assert (entry.parity.flips, entry.parity.decisions.lost) == (1, 1)
    (flip,) = entry.flips
    assert (flip.index, flip.exported_label, flip.exported_logits[TRUTH[24]]) == (24, None, None)
    assert flip.exported_logits.count(None) == 1
    assert sum(result.predicted for result in entry.classes) == 24
    decode(encode(report(broken)), ParityReport, where="report")  # JSON can say it


def test_no_number_is_seen_in_batches_and_places_too() -> None:
    def broken(images: Images) -> Logits:
        logits = linear(images)
        logits[len(images) - 1 :, 1] = np.nan
        return logits

    (row,) = compare_batches(linear, broken, IMAGES, (25,))
    assert (row.flips, row.not_finite) == (2, 2)
    assert row.max_difference == np.finfo(np.float32).max
    assert 1.0 < row.max_relative_difference < np.inf
    found = compare_places(broken, IMAGES[:5], (2, 7))
    assert found.flips == 5
    assert 1.0 < found.max_relative_difference < np.inf


def test_a_huge_difference_stays_a_number() -> None:
    found = linear(IMAGES)
    found[0, 0] = np.float32(-3.4e38)
    (row,) = compare_batches(lambda images: linear(images) + np.float32(1e38), lambda _: found, IMAGES, (50,))
    assert row.max_difference == np.finfo(np.float32).max
    assert row.not_finite == 0


def test_each_class_is_counted_on_the_evidence_half() -> None:
    (entry,) = report(lambda images: np.roll(linear(images), 1, axis=1)).formats
    evidence = TRUTH[::2]
    for index, result in enumerate(entry.classes):
        assert result.label == "abc"[index]
        assert result.images == (evidence == index).sum()
        assert result.predicted == (evidence == (index - 1) % 3).sum()
        assert (result.correct, result.recall) == (0, 0.0 if result.images else None)
    (entry,) = report(linear).formats
    assert {result.recall for result in entry.classes} == {result.precision for result in entry.classes}


def test_logits_of_another_shape_are_refused() -> None:
    for run in (lambda images: linear(images)[:, :2], lambda images: linear(images)[:1]):
        with pytest.raises(ParityError, match=r"the exported network gives logits \("):
            report(run)


def test_sizes_above_the_images_are_left_out() -> None:
    assert [row.batch_size for row in compare_batches(linear, linear, IMAGES, (1, 64))] == [1]


def test_a_reference_that_is_not_finite_proves_nothing() -> None:
    def broken(images: Images) -> Logits:
        return np.full((len(images), 3), np.nan, np.float32)

    with pytest.raises(ParityError, match="the validated network gives NaN"):
        prove(broken, {}, chunks(), labels=("a", "b", "c"))
    with pytest.raises(ParityError, match="the validated network gives NaN"):
        compare_batches(broken, linear, IMAGES, (1,))


def test_flips_are_counted_both_ways() -> None:
    """Truths are the reference's labels but for two images, so that a change can lose and gain."""
    truth = TRUTH.copy()
    truth[[0, 2]] = (truth[[0, 2]] + 1) % 3

    def turned(images: Images) -> Logits:
        logits = linear(images)
        if len(images) == 50:
            for index, shift in ((0, 1), (2, 2), (4, 1), (6, 1)):  # gained, other, lost, lost
                logits[index] = np.roll(logits[index], shift)
        return logits

    everything = Chunk(np.arange(50), IMAGES, truth, np.ones(50, bool))
    exported = Exported(turned, "cpu", BUDGET, ())
    (entry,) = prove(linear, {"other": exported}, [everything], labels=("a", "b", "c")).formats
    found = entry.parity.decisions
    assert (found.lost, found.gained, found.other, found.images) == (2, 1, 1, 50)
    assert found.flip_rate.value == 4 / 50
    assert found.top1_drop.value == 1 / 50
    assert found.top1_drop.low < 0 < found.top1_drop.high
    assert entry.parity.reference_accuracy.correct - entry.parity.accuracy.correct == 1
    assert found.largest_flip_margin == pytest.approx(
        max(item.margin for item in entry.flips) / entry.parity.differences.scale
    )
    assert [item.margin for item in entry.flips] == sorted((i.margin for i in entry.flips), reverse=True)
    assert any("accuracy falls by 2.000% on 50 images, budget 0.000%" in phrase for phrase in entry.breaches)


def test_a_claim_that_the_images_cannot_carry_is_named() -> None:
    loose = Budget(max_relative_difference=None, max_flip_rate=0.05, max_top1_drop=0.05)
    (entry,) = report(linear, loose).formats
    assert entry.breaches == ()
    assert len(entry.uncarried) == 2
    assert "the fall of accuracy is 0.000% on 25 images, which cannot tell it from 13.3" in entry.uncarried[1]
    wide = Budget(max_relative_difference=None, max_flip_rate=0.2, max_top1_drop=0.2)
    assert report(linear, wide).formats[0].uncarried == ()


def test_a_network_that_looks_at_its_neighbours_is_caught_by_place() -> None:
    def leaning(images: Images) -> Logits:
        logits = linear(images)
        logits[1:2] += np.float32(1.0)
        return logits

    found = compare_places(leaning, IMAGES[:5], (2, 3, 7))
    assert found.max_relative_difference == pytest.approx(1.0 / np.abs(linear(IMAGES[:5])).max())
    assert (found.images, found.batch_sizes) == (5, (2, 3, 7))
    assert compare_places(linear, IMAGES[:5], (2, 3, 7)).max_relative_difference == 0.0
    (entry,) = report(leaning).formats
    assert any("with its place in a batch" in breach for breach in entry.breaches)
