"""Does an exported network decide as the validated one? Measured on real images, reported as evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime import ParityError
from shipnet.runtime.accuracy import accuracy, paired_difference, share
from shipnet.runtime.confusion import ClassResult
from shipnet.runtime.proofs import BatchParity, Budget, Decisions, Differences, Invariance, Parity

from .breaches import breaches, uncarried
from .parity_report import Disagreement, FormatReport, ParityReport

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]
Run = Callable[[Images], Logits]
_WORST = 10
_MOST_FLIPS = 100
_LARGEST = float(np.finfo(np.float32).max)  # stands for a difference that is NaN or infinite
_TINY = float(np.finfo(np.float32).tiny)
_UNDECIDED = -1  # the label of an image with a logit that is NaN or infinite


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
    difference: list[NDArray[np.float64]] = field(default_factory=list)
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

    Raises:
        ParityError: the validated network itself gives NaN or infinite logits, or logits of another shape.
    """
    expected = _reference(reference, images)
    rows = []
    for size in batch_sizes:
        if size > len(images):
            continue
        found = np.concatenate([exported(images[i : i + size]) for i in range(0, len(images), size)])
        _refuse_shape(expected, found)
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
            largest = max(largest, float(differences(alone[chosen], together).max()))
            flipped[chosen[decisions(together) != decisions(alone[chosen])]] = True
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
        ParityError: the validated network itself gives NaN or infinite logits, or a format logits of another shape.
    """
    tallies = {name: _Tally() for name in formats}
    truths, evidence = [], []
    scale = _TINY
    for chunk in chunks:
        expected = _reference(reference, chunk.images)
        truths.append(chunk.labels)
        evidence.append(chunk.evidence)
        scale = max(scale, float(np.abs(expected).max()))
        for name, exported in formats.items():
            _count(tallies[name], chunk, expected, exported.run(chunk.images), labels)
    truth, in_evidence = np.concatenate(truths), np.concatenate(evidence)
    return ParityReport(
        formats=tuple(
            _report(name, formats[name], tally, truth=truth, evidence=in_evidence, scale=scale, labels=labels)
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
    labels: tuple[str, ...],
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
        classes=tuple(_classes(labels, truth[evidence], found[evidence])),
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


def _classes(
    labels: tuple[str, ...], truth: NDArray[np.int64], found: NDArray[np.int64]
) -> Iterator[ClassResult]:
    count = len(labels)
    images, correct = (np.bincount(part, minlength=count) for part in (truth, truth[found == truth]))
    predicted = np.bincount(found[found != _UNDECIDED], minlength=count)
    for label, of_class, given, right in zip(labels, images, predicted, correct, strict=True):
        yield ClassResult(
            label=label,
            images=int(of_class),
            predicted=int(given),
            correct=int(right),
            precision=float(right / given) if given else None,
            recall=float(right / of_class) if of_class else None,
        )


def _reference(reference: Run, images: Images) -> Logits:
    expected = reference(images)
    if not np.isfinite(expected).all():
        raise ParityError(
            "the validated network gives NaN or infinite logits on validation images: train again or give other weights"
        )
    return expected


def _refuse_shape(expected: Logits, found: Logits) -> None:
    if found.shape != expected.shape:
        raise ParityError(
            f"the exported network gives logits {found.shape}, the trained one {expected.shape}"
        )


def decisions(logits: Logits) -> NDArray[np.int64]:
    """The label of each row, int64 (N,); none where a logit is NaN or infinite, since the runtime gives none."""
    return np.where(np.isfinite(logits).all(axis=1), logits.argmax(axis=1), _UNDECIDED)


def differences(expected: Logits, found: Logits) -> NDArray[np.float64]:
    """Absolute differences, float64 (N, K); none is small because it is no number."""
    with np.errstate(invalid="ignore"):  # of infinities
        difference = np.abs(found.astype(np.float64) - expected)
    return np.where(np.isfinite(difference), np.minimum(difference, _LARGEST), _LARGEST)


def _compare(expected: Logits, found: Logits, size: int) -> BatchParity:
    difference = differences(expected, found)
    return BatchParity(
        batch_size=size,
        images=len(expected),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        max_relative_difference=float(difference.max()) / _scale(expected),
        not_finite=int((~np.isfinite(found)).sum()),
        flips=int((decisions(expected) != decisions(found)).sum()),
    )


def _scale(logits: Logits) -> float:
    """The largest absolute logit that is a number, and the smallest positive float where there is none."""
    return max(float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0)), _TINY)


def _count(tally: _Tally, chunk: Chunk, expected: Logits, found: Logits, labels: tuple[str, ...]) -> None:
    _refuse_shape(expected, found)
    difference = differences(expected, found).max(axis=1)
    highest = np.partition(expected, -2, axis=1)[:, -2:]
    margin = highest[:, 1] - highest[:, 0]
    before, now = decisions(expected), decisions(found)
    tally.expected.append(before)
    tally.found.append(now)
    tally.margin.append(margin)
    tally.difference.append(difference)
    tally.not_finite += int((~np.isfinite(found)).sum())

    def shown(row: int) -> Disagreement:
        return Disagreement(
            index=int(chunk.indices[row]),
            evidence=bool(chunk.evidence[row]),
            true_label=labels[chunk.labels[row]],
            reference_label=labels[before[row]],
            exported_label=None if now[row] == _UNDECIDED else labels[now[row]],
            margin=float(margin[row]),
            max_difference=float(difference[row]),
            reference_logits=tuple(float(value) for value in expected[row]),
            exported_logits=tuple(float(value) if np.isfinite(value) else None for value in found[row]),
        )

    tally.flips += [shown(int(row)) for row in np.flatnonzero(before != now)]
    tally.flips.sort(key=lambda item: -item.margin)
    del tally.flips[_MOST_FLIPS:]
    tally.worst += [shown(int(row)) for row in np.argsort(-difference, kind="stable")[:_WORST]]
    tally.worst.sort(key=lambda item: -item.max_difference)
    del tally.worst[_WORST:]
