"""Does an exported network decide as the trained one? Measured on real images, reported as evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from shipnet.runtime import ParityError
from shipnet.runtime.accuracy import accuracy
from shipnet.runtime.manifest import BatchParity, Budget, Parity

Images = NDArray[np.uint8]
Logits = NDArray[np.float32]
Run = Callable[[Images], Logits]
_WORST = 10


class Disagreement(Struct, frozen=True, kw_only=True):
    """One image on which a format differs, with both sides' logits.

    Attributes:
        index: in the validation images' order.
        max_difference: the largest absolute logit difference on this image.
    """

    index: int
    true_label: str
    reference_label: str
    exported_label: str
    max_difference: float
    reference_logits: tuple[float, ...]
    exported_logits: tuple[float, ...]


class FormatReport(Struct, frozen=True, kw_only=True):
    """One format's evidence: what it proved, what it broke, and its worst images."""

    format: str
    parity: Parity
    breaches: tuple[str, ...]
    worst: tuple[Disagreement, ...]


class ParityReport(Struct, frozen=True, kw_only=True):
    """Every format's evidence, and the budget it was held against."""

    budget: Budget
    formats: tuple[FormatReport, ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some validation images, as the proof goes through them.

    Attributes:
        first: the first image's index in the validation images' order.
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        evidence: bool (N,), whether the image belongs to the evidence half.
    """

    first: int
    images: Images
    labels: NDArray[np.int64]
    evidence: NDArray[np.bool_]


@dataclass(slots=True)
class _Tally:
    """What is counted of one format while the chunks go by."""

    flips: int = 0
    not_finite: int = 0
    max_difference: float = 0.0
    correct: int = 0
    worst: list[Disagreement] = field(default_factory=list)


def compare_batches(
    reference: Run, exported: Run, images: Images, batch_sizes: Iterable[int]
) -> list[BatchParity]:
    """Compares logits at several batch sizes.

    Args:
        reference: the trained network in PyTorch.
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
    return rows


def prove(
    reference: Run,
    formats: dict[str, Run],
    chunks: Iterable[Chunk],
    *,
    batches: dict[str, list[BatchParity]],
    labels: tuple[str, ...],
    budget: Budget,
) -> ParityReport:
    """Runs every format on every validation image and holds it against the budget.

    Args:
        reference: the trained network in PyTorch.
        formats: the exported ones, by name.
        chunks: the validation images; at least one of the evidence half.
        batches: of each format, what `compare_batches` found.
        labels: the classes, in the order of the logits.
        budget: what may differ.

    Raises:
        ParityError: the trained network itself gives NaN or infinite logits.
    """
    tallies = {name: _Tally() for name in formats}
    total = evidence = correct = 0
    scale = 0.0
    for chunk in chunks:
        expected = reference(chunk.images)
        if not np.isfinite(expected).all():
            raise ParityError(
                "the trained network gives NaN or infinite logits on validation images: train again"
            )
        total += len(chunk.images)
        evidence += int(chunk.evidence.sum())
        correct += _correct(expected, chunk)
        scale = max(scale, float(np.abs(expected).max()))
        for name, run in formats.items():
            _count(tallies[name], chunk, expected, run(chunk.images), labels)
    reference_accuracy = accuracy(correct, evidence)
    reports = []
    for name, tally in tallies.items():
        parity = Parity(
            batches=tuple(batches[name]),
            images=total,
            flips=tally.flips,
            top1_agreement=1.0 - tally.flips / total,
            accuracy=accuracy(tally.correct, evidence),
            reference_accuracy=reference_accuracy,
        )
        breaches = tuple(_breaches(parity, tally, scale, budget))
        reports.append(FormatReport(format=name, parity=parity, breaches=breaches, worst=tuple(tally.worst)))
    return ParityReport(budget=budget, formats=tuple(reports))


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
    return max(float(np.abs(logits).max()), float(np.finfo(np.float32).tiny))


def _correct(logits: Logits, chunk: Chunk) -> int:
    return int((logits.argmax(1) == chunk.labels)[chunk.evidence].sum())


def _count(tally: _Tally, chunk: Chunk, expected: Logits, found: Logits, labels: tuple[str, ...]) -> None:
    finite = np.isfinite(found)
    difference = np.where(finite, np.abs(found - expected), np.float32(np.finfo(np.float32).max)).max(axis=1)
    flipped = expected.argmax(1) != found.argmax(1)
    tally.not_finite += int((~finite).sum())
    tally.flips += int(flipped.sum())
    tally.correct += _correct(found, chunk)
    tally.max_difference = max(tally.max_difference, float(difference.max()))
    for row in np.lexsort((-difference, ~flipped))[:_WORST]:
        tally.worst.append(
            Disagreement(
                index=chunk.first + int(row),
                true_label=labels[chunk.labels[row]],
                reference_label=labels[int(expected[row].argmax())],
                exported_label=labels[int(found[row].argmax())],
                max_difference=float(difference[row]),
                reference_logits=tuple(float(value) for value in expected[row]),
                exported_logits=tuple(float(value) for value in np.nan_to_num(found[row])),
            )
        )
    tally.worst.sort(key=lambda item: (item.reference_label == item.exported_label, -item.max_difference))
    del tally.worst[_WORST:]


def _breaches(parity: Parity, tally: _Tally, scale: float, budget: Budget) -> Iterable[str]:
    """What of the budget a format broke, a phrase each."""
    if not_finite := tally.not_finite + sum(row.not_finite for row in parity.batches):
        yield f"{not_finite} logits are NaN or infinite"
    relative = tally.max_difference / max(scale, float(np.finfo(np.float32).tiny))
    if relative > budget.max_relative_difference:
        yield (
            f"logits differ by up to {relative:.2g} of their scale over {parity.images} images, "
            f"budget {budget.max_relative_difference:.2g}"
        )
    for row in parity.batches:
        if row.max_relative_difference > budget.max_relative_difference:
            yield (
                f"at batch size {row.batch_size} logits differ by up to {row.max_relative_difference:.2g} "
                f"of their scale, budget {budget.max_relative_difference:.2g}"
            )
    if parity.flips / parity.images > budget.max_flip_rate:
        yield (
            f"{parity.flips} of {parity.images} images get another label "
            f"({parity.flips / parity.images:.3%}), budget {budget.max_flip_rate:.3%}"
        )
