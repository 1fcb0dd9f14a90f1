"""What one exported file proved against the validated network, as frozen values."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from .encoding import Count, Fraction, Positive


class Budget(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an exported network may differ from the validated one before it is refused.

    Attributes:
        max_relative_difference: the largest absolute logit difference over the logits' scale; None: not
            held, because the precision changes logits by its nature.
        max_flip_rate: the share of images whose top-1 label may change. Zero holds the very images that
            were compared; above zero it is a claim on images like them, so the interval's upper end must hold it.
        max_top1_drop: the share of images by which accuracy may fall, held in the same way.
    """

    max_relative_difference: Annotated[float, Meta(ge=0.0)] | None
    max_flip_rate: Fraction
    max_top1_drop: Fraction


class BatchParity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How far logits at one batch size are from PyTorch's, on real images.

    Attributes:
        max_difference, mean_difference: of absolute logit differences.
        max_relative_difference: `max_difference` over the largest absolute logit of the reference.
        not_finite: logits that are NaN or infinite; their difference counts as the largest float32.
        flips: images whose top-1 label differs.
    """

    batch_size: Positive
    images: Positive
    max_difference: float
    mean_difference: float
    max_relative_difference: float
    not_finite: Count
    flips: Count


class Accuracy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Top-1 accuracy with a 95 % Wilson score interval."""

    images: Positive
    correct: Count
    accuracy: Fraction
    low: Fraction
    high: Fraction


class Interval(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


class Decisions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an exported file decides on images of the evidence half, beside the validated network.

    Attributes:
        images: of the evidence half.
        lost: right before, wrong now.
        gained: wrong before, right now.
        other: wrong before and now, with another label.
        flip_rate: the share of all three, with a Wilson interval.
        top1_drop: the accuracy lost, `(lost - gained) / images`, with Tango's interval for paired shares.
        largest_flip_margin: of the flipped images the largest distance between the validated network's
            two highest logits, over the logits' scale; 0 without flips.
    """

    images: Positive
    lost: Count
    gained: Count
    other: Count
    flip_rate: Interval
    top1_drop: Interval
    largest_flip_margin: float


class Differences(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Quantiles, over the images compared, of an image's largest absolute logit difference.

    Attributes:
        scale: the largest absolute logit of the validated network.
        not_finite: logits that are NaN or infinite; an image with one counts as the largest float32.
    """

    median: float
    p90: float
    p99: float
    max: float
    scale: float
    not_finite: Count


class Invariance(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether an image's logits depend on what else is in its batch, and on its place there.

    Attributes:
        batch_sizes: that were tried, each with every image at every place.
        images: how many.
        max_relative_difference: to the image alone, over the logits' scale.
        flips: images that got another label at some place.
    """

    batch_sizes: tuple[int, ...]
    images: Positive
    max_relative_difference: float
    flips: Count


class Parity(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one exported file proved on one device against the validated network.

    Attributes:
        device: on which the file ran.
        batches: logits at each batch size that was tried.
        images: validation images compared for their decision.
        flips: how many of them got another top-1 label.
        accuracy: of the exported file on the evidence half of the validation images.
        reference_accuracy: of the validated network on the same images.
        decisions: on the evidence half, in detail.
        differences: over all images compared.
        invariance: None where the file was run by PyTorch's loaders.
    """

    device: str
    batches: tuple[BatchParity, ...]
    images: Positive
    flips: Count
    top1_agreement: Fraction
    accuracy: Accuracy
    reference_accuracy: Accuracy
    decisions: Decisions
    differences: Differences
    invariance: Invariance | None
