"""Each way to miss a budget has its phrase; what holds has none; what the images cannot carry is said."""

from __future__ import annotations

import msgspec
import pytest

from shipnet.export.breaches import breaches, uncarried
from shipnet.runtime.accuracy import accuracy, paired_difference, share
from shipnet.runtime.proofs import BatchParity, Budget, Decisions, Differences, Invariance, Parity

BUDGET = Budget(max_relative_difference=0.01, max_flip_rate=0.02, max_top1_drop=0.01)
FREE = msgspec.structs.replace(BUDGET, max_relative_difference=None)


def parity(
    *,
    images: int = 1000,
    lost: int = 0,
    gained: int = 0,
    other: int = 0,
    largest: float = 0.0,
    invariance: float = 0.0,
) -> Parity:
    """What a comparison that found so much looks like; logits reach up to 10."""
    flips = lost + gained + other
    return Parity(
        device="cpu",
        batches=(
            BatchParity(
                batch_size=4,
                images=64,
                max_difference=largest,
                mean_difference=largest / 2,
                max_relative_difference=largest / 10,
                not_finite=0,
                flips=0,
            ),
        ),
        images=images,
        flips=flips,
        top1_agreement=1 - flips / images,
        accuracy=accuracy(900 - lost + gained, images),
        reference_accuracy=accuracy(900, images),
        decisions=Decisions(
            images=images,
            lost=lost,
            gained=gained,
            other=other,
            flip_rate=share(flips, images),
            top1_drop=paired_difference(lost, gained, images),
            largest_flip_margin=0.1,
        ),
        differences=Differences(median=0.0, p90=0.0, p99=0.0, max=largest, scale=10.0, not_finite=0),
        invariance=Invariance(batch_sizes=(2,), images=7, max_relative_difference=invariance, flips=0),
    )


def test_what_holds_has_no_phrase() -> None:
    assert list(breaches(parity(lost=10, gained=0, other=10, largest=0.1, invariance=0.01), BUDGET)) == []


def test_flips_and_losses_are_counted_against_their_own_shares() -> None:
    assert list(breaches(parity(gained=21), BUDGET)) == [
        "21 of 1000 images get another label (2.100%), budget 2.000%"
    ]
    assert list(breaches(parity(lost=11), BUDGET)) == [
        "accuracy falls by 1.100% on 1000 images, budget 1.000%"
    ]
    assert list(breaches(parity(lost=15, gained=5), BUDGET)) == []  # what is gained makes up for it


def test_differences_are_over_the_scale_wherever_they_occur() -> None:
    found = list(breaches(parity(largest=0.2, invariance=0.03), BUDGET))
    assert found == [
        "logits differ by up to 0.02 of their scale over 1000 images, budget 0.01",
        "at batch size 4 logits differ by up to 0.02 of their scale, budget 0.01",
        "an image's logits differ by up to 0.03 of their scale with its place in a batch, budget 0.01",
    ]
    assert list(breaches(parity(largest=0.2, invariance=0.03), FREE)) == []


def test_no_budget_is_free_of_numbers_that_are_none() -> None:
    found = parity()
    differences = msgspec.structs.replace(found.differences, not_finite=2)
    batches = (msgspec.structs.replace(found.batches[0], not_finite=1),)
    broken = msgspec.structs.replace(found, differences=differences, batches=batches)
    assert list(breaches(broken, FREE)) == ["3 logits are NaN or infinite"]


def test_no_budget_lets_a_label_depend_on_its_neighbours() -> None:
    found = parity()
    assert found.invariance is not None
    leaning = msgspec.structs.replace(found, invariance=msgspec.structs.replace(found.invariance, flips=2))
    assert list(breaches(leaning, FREE)) == ["2 images get another label at another place in a batch"]
    assert list(breaches(msgspec.structs.replace(found, invariance=None), BUDGET)) == []


@pytest.mark.parametrize(("images", "phrases"), [(100, 2), (200, 1), (300, 1), (400, 0)])
def test_few_images_without_a_flip_still_cannot_carry_a_small_share(images: int, phrases: int) -> None:
    """Without any flip the upper ends are z2 / (n + z2): 3.7, 1.9, 1.3 and 0.95 per cent."""
    small = msgspec.structs.replace(
        parity(),
        images=images,
        decisions=msgspec.structs.replace(
            parity().decisions,
            images=images,
            flip_rate=share(0, images),
            top1_drop=paired_difference(0, 0, images),
        ),
    )
    assert len(list(uncarried(small, BUDGET))) == phrases


def test_a_claim_that_is_broken_is_not_also_uncarried() -> None:
    assert list(uncarried(parity(lost=30), BUDGET)) == []
    (phrase,) = uncarried(parity(gained=15), BUDGET)
    assert (
        phrase
        == "the share of other labels is 1.500% on 1000 images, which cannot tell it from 2.460%; budget 2.000%"
    )


def test_a_budget_of_zero_claims_nothing_about_other_images() -> None:
    zero = Budget(max_relative_difference=None, max_flip_rate=0.0, max_top1_drop=0.0)
    assert list(uncarried(parity(), zero)) == []
    assert len(list(breaches(parity(other=1), zero))) == 1
