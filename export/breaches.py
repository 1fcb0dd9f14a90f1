"""What of its budget an exported file broke, and what the images are too few to say."""

from __future__ import annotations

from collections.abc import Iterable

from shipnet.runtime.proofs import Budget, Parity


def breaches(parity: Parity, budget: Budget) -> Iterable[str]:
    """What of the budget a format broke, a phrase each."""
    differences, allowed = parity.differences, budget.max_relative_difference
    if not_finite := differences.not_finite + sum(row.not_finite for row in parity.batches):
        yield f"{not_finite} logits are NaN or infinite"
    if allowed is not None:
        yield from _too_far(parity, allowed)
    if parity.flips / parity.images > budget.max_flip_rate:
        yield (
            f"{parity.flips} of {parity.images} images get another label "
            f"({parity.flips / parity.images:.3%}), budget {budget.max_flip_rate:.3%}"
        )
    drop = parity.decisions.top1_drop.value
    if drop > budget.max_top1_drop:
        yield (
            f"accuracy falls by {drop:.3%} on {parity.decisions.images} images, "
            f"budget {budget.max_top1_drop:.3%}"
        )
    if parity.invariance is not None and parity.invariance.flips:
        yield f"{parity.invariance.flips} images get another label at another place in a batch"


def _too_far(parity: Parity, allowed: float) -> Iterable[str]:
    """Logit differences above what is allowed, over the logits' scale."""
    relative = parity.differences.max / parity.differences.scale
    if relative > allowed:
        yield (
            f"logits differ by up to {relative:.2g} of their scale over {parity.images} images, "
            f"budget {allowed:.2g}"
        )
    for row in parity.batches:
        if row.max_relative_difference > allowed:
            yield (
                f"at batch size {row.batch_size} logits differ by up to {row.max_relative_difference:.2g} "
                f"of their scale, budget {allowed:.2g}"
            )
    if parity.invariance is not None and parity.invariance.max_relative_difference > allowed:
        yield (
            f"an image's logits differ by up to {parity.invariance.max_relative_difference:.2g} of their scale "
            f"with its place in a batch, budget {allowed:.2g}"
        )


def uncarried(parity: Parity, budget: Budget) -> Iterable[str]:
    """Claims that the images are too few to carry: the interval reaches beyond the budget though the value does not.

    A budget of zero claims nothing about other images, so nothing is asked of an interval.
    """
    found = parity.decisions
    for what, interval, allowed in (
        ("the share of other labels", found.flip_rate, budget.max_flip_rate),
        ("the fall of accuracy", found.top1_drop, budget.max_top1_drop),
    ):
        if allowed and interval.value <= allowed < interval.high:
            yield (
                f"{what} is {interval.value:.3%} on {found.images} images, which cannot tell it from "
                f"{interval.high:.3%}; budget {allowed:.3%}"
            )
