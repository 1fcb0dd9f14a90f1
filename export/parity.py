"""Does an exported network decide as the validated one? Measured on real images, reported as evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from shipnet.runtime import ParityError
from shipnet.runtime.accuracy import accuracy, paired_difference, share
from shipnet.runtime.manifest import (
    BatchParity,
    Budget,
    Decisions,
    Differences,
    Invariance,
    Parity,
)

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]
Run = Callable[[Images], Logits]
_WORST = 10
_MOST_FLIPS = 100
_LARGEST = np.float32(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).tiny)


class Disagreement(Struct, frozen=True, kw_only=True):
    """One image on which a format differs, with both sides' logits.

    Attributes:
        index: in the validation images' order.
        evidence: whether it belongs to the evidence half.
        margin: between the two highest logits of the validated network.
        max_difference: the largest absolute logit difference on this image.
    """

    index: int
    evidence: bool
    true_label: str
    reference_label: str
    exported_label: str
    margin: float
    max_difference: float
    reference_logits: tuple[float, ...]
    exported_logits: tuple[float, ...]


class FormatReport(Struct, frozen=True, kw_only=True):
    """One format's evidence: what it proved, what it broke, and its worst images.

    Attributes:
        format: "onnx", "torchscript", "pt2", or a variant's precision.
        breaches: what of the budget it broke, a phrase each.
        uncarried: claims of the budget that the images are too few to carry, a phrase each.
        flips: images that got another label, those of the largest margin first, 100 at most.
        worst: images with the largest logit differences.
    """

    format: str
    budget: Budget
    parity: Parity
    breaches: tuple[str, ...]
    uncarried: tuple[str, ...]
    flips: tuple[Disagreement, ...]
    worst: tuple[Disagreement, ...]


class ParityReport(Struct, frozen=True, kw_only=True):
    """Every format's evidence."""

    formats: tuple[FormatReport, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some validation images, as the proof goes through them.

    Attributes:
        indices: int64 (N,), of the images in the validation images' order.
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        evidence: bool (N,), whether the image belongs to the evidence half.
    """

    indices: NDArray[np.int64]
    images: Images
    labels: NDArray[np.int64]
    evidence: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Exported:
    """What is held against the validated network.

    Attributes:
        run: uint8 (N, H, W, C) to float32 logits.
        device: on which it runs.
        budget: what may differ.
        batches: what `compare_batches` found.
        invariance: what `compare_places` found, where it was asked.
    """

    run: Run
    device: str
    budget: Budget
    batches: tuple[BatchParity, ...]
    invariance: Invariance | None = None


@dataclass(slots=True)
class _Tally:
    """What is kept of one format while the chunks go by: a few numbers an image."""

    expected: list[NDArray[np.int64]] = field(default_factory=list)
    found: list[NDArray[np.int64]] = field(default_factory=list)
    margin: list[Logits] = field(default_factory=list)
    difference: list[Logits] = field(default_factory=list)
    not_finite: int = 0
    flips: list[Disagreement] = field(default_factory=list)
    worst: list[Disagreement] = field(default_factory=list)


def compare_batches(
    reference: Run, exported: Run, images: Images, batch_sizes: Iterable[int]
) -> tuple[BatchParity, ...]:
    """Compares logits at several batch sizes.

    Args:
        reference: the validated network.
        exported: the exported one.
        images: uint8 (N, H, W, C), real images; every size runs on all of them, the last run of a
            size may be smaller. Sizes above N are left out.
        batch_sizes: images per run of `exported`; the reference runs on all at once.
    """
    expected = reference(images)
    rows = []
    for size in batch_sizes:
        if size > len(images):
            continue
        found = np.concatenate([exported(images[i : i + size]) for i in range(0, len(images), size)])
        rows.append(_compare(expected, found, size))
    return tuple(rows)


def compare_places(exported: Run, images: Images, batch_sizes: Sequence[int]) -> Invariance:
    """Runs every image alone and at every place of batches of several sizes.

    A batch is filled from the images in turn, again and again where it is larger than their number, and is run
    once for every image that can stand first: so every image stands at every place.

    Args:
        exported: the network.
        images: uint8 (N, H, W, C), N >= 1; a few, since N times the sum of all sizes are run.
        batch_sizes: each of 1 or more.
    """
    count = len(images)
    alone = np.concatenate([exported(images[i : i + 1]) for i in range(count)])
    largest, flipped = 0.0, np.zeros(count, bool)
    for size in batch_sizes:
        for first in range(count):
            chosen = (np.arange(size) + first) % count
            together = exported(images[chosen])
            difference = np.abs(together - alone[chosen])
            largest = max(largest, float(np.where(np.isfinite(difference), difference, _LARGEST).max()))
            flipped[chosen[together.argmax(1) != alone[chosen].argmax(1)]] = True
    return Invariance(
        batch_sizes=tuple(batch_sizes),
        images=count,
        max_relative_difference=largest / _scale(alone),
        flips=int(flipped.sum()),
    )


def prove(
    reference: Run, formats: dict[str, Exported], chunks: Iterable[Chunk], *, labels: tuple[str, ...]
) -> ParityReport:
    """Runs every format on every image and holds it against its budget.

    Args:
        reference: the validated network.
        formats: the exported ones, by name.
        chunks: validation images; at least one of the evidence half.
        labels: the classes, in the order of the logits.

    Raises:
        ParityError: the validated network itself gives NaN or infinite logits.
    """
    tallies = {name: _Tally() for name in formats}
    truths, evidence = [], []
    scale = _TINY
    for chunk in chunks:
        expected = reference(chunk.images)
        if not np.isfinite(expected).all():
            raise ParityError(
                "the trained network gives NaN or infinite logits on validation images: train again"
            )
        truths.append(chunk.labels)
        evidence.append(chunk.evidence)
        scale = max(scale, float(np.abs(expected).max()))
        for name, exported in formats.items():
            _count(tallies[name], chunk, expected, exported.run(chunk.images), labels)
    truth, in_evidence = np.concatenate(truths), np.concatenate(evidence)
    return ParityReport(
        formats=tuple(
            _report(name, formats[name], tally, truth=truth, evidence=in_evidence, scale=scale)
            for name, tally in tallies.items()
        )
    )


def _report(
    name: str,
    exported: Exported,
    tally: _Tally,
    *,
    truth: NDArray[np.int64],
    evidence: NDArray[np.bool_],
    scale: float,
) -> FormatReport:
    expected, found = np.concatenate(tally.expected), np.concatenate(tally.found)
    margin, difference = np.concatenate(tally.margin), np.concatenate(tally.difference)
    flips = int((expected != found).sum())
    median, p90, p99, largest = (float(value) for value in np.quantile(difference, (0.5, 0.9, 0.99, 1.0)))
    right, right_before = (found == truth)[evidence], (expected == truth)[evidence]
    parity = Parity(
        device=exported.device,
        batches=exported.batches,
        images=len(truth),
        flips=flips,
        top1_agreement=1.0 - flips / len(truth),
        accuracy=accuracy(int(right.sum()), len(right)),
        reference_accuracy=accuracy(int(right_before.sum()), len(right)),
        decisions=_decisions(expected[evidence], found[evidence], truth[evidence], margin[evidence] / scale),
        differences=Differences(
            median=median, p90=p90, p99=p99, max=largest, scale=scale, not_finite=tally.not_finite
        ),
        invariance=exported.invariance,
    )
    return FormatReport(
        format=name,
        budget=exported.budget,
        parity=parity,
        breaches=tuple(breaches(parity, exported.budget)),
        uncarried=tuple(uncarried(parity, exported.budget)),
        flips=tuple(tally.flips),
        worst=tuple(tally.worst),
    )


def _decisions(
    expected: NDArray[np.int64], found: NDArray[np.int64], truth: NDArray[np.int64], margin: Logits
) -> Decisions:
    """Counts flips both ways; `margin` is the validated network's, over the logits' scale."""
    flipped = expected != found
    lost = int((flipped & (expected == truth)).sum())
    gained = int((flipped & (found == truth)).sum())
    return Decisions(
        images=len(truth),
        lost=lost,
        gained=gained,
        other=int(flipped.sum()) - lost - gained,
        flip_rate=share(int(flipped.sum()), len(truth)),
        top1_drop=paired_difference(lost, gained, len(truth)),
        largest_flip_margin=float(margin[flipped].max()) if flipped.any() else 0.0,
    )


def _compare(expected: Logits, found: Logits, size: int) -> BatchParity:
    finite = np.isfinite(found)
    difference = np.where(finite, np.abs(found - expected), 0.0)
    return BatchParity(
        batch_size=size,
        images=len(expected),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        max_relative_difference=float(difference.max() / _scale(expected)),
        not_finite=int((~finite).sum()),
        flips=int((expected.argmax(1) != found.argmax(1)).sum()),
    )


def _scale(logits: Logits) -> float:
    """The largest absolute logit, and the smallest positive float where all are zero."""
    return max(float(np.abs(logits).max()), _TINY)


def _count(tally: _Tally, chunk: Chunk, expected: Logits, found: Logits, labels: tuple[str, ...]) -> None:
    finite = np.isfinite(found)
    difference = np.where(finite, np.abs(found - expected), _LARGEST).max(axis=1)
    highest = np.partition(expected, -2, axis=1)[:, -2:]
    margin = highest[:, 1] - highest[:, 0]
    tally.expected.append(expected.argmax(1))
    tally.found.append(found.argmax(1))
    tally.margin.append(margin)
    tally.difference.append(difference)
    tally.not_finite += int((~finite).sum())

    def shown(row: int) -> Disagreement:
        return Disagreement(
            index=int(chunk.indices[row]),
            evidence=bool(chunk.evidence[row]),
            true_label=labels[chunk.labels[row]],
            reference_label=labels[int(expected[row].argmax())],
            exported_label=labels[int(found[row].argmax())],
            margin=float(margin[row]),
            max_difference=float(difference[row]),
            reference_logits=tuple(float(value) for value in expected[row]),
            exported_logits=tuple(float(value) for value in np.nan_to_num(found[row])),
        )

    tally.flips += [shown(int(row)) for row in np.flatnonzero(expected.argmax(1) != found.argmax(1))]
    tally.flips.sort(key=lambda item: -item.margin)
    del tally.flips[_MOST_FLIPS:]
    tally.worst += [shown(int(row)) for row in np.argsort(-difference, kind="stable")[:_WORST]]
    tally.worst.sort(key=lambda item: -item.max_difference)
    del tally.worst[_WORST:]


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
