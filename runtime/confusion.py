"""Which classes are taken for which: counts of (class, label), and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

Pairs = Mapping[
    tuple[str, str], int
]  # (true class, label given) -> images; pairs that never happened may be left out


class ClassResult(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How one class fared.

    Attributes:
        label: the class.
        images: of this class.
        predicted: images that were given this label.
        correct: images of this class that were given its label.
        precision: correct / predicted; None where nothing was given this label.
        recall: correct / images; None where there were no images.
    """

    label: str
    images: int
    predicted: int
    correct: int
    precision: float | None
    recall: float | None


class Confusion(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many images of one class were given one label. Pairs that never happened are left out."""

    truth: str
    label: str
    images: int


def confusions(labels: Sequence[str], pairs: Pairs) -> tuple[Confusion, ...]:
    """The counts above 0, by true class, then by label, both in the order of `labels`."""
    place = {label: index for index, label in enumerate(labels)}
    return tuple(
        Confusion(truth=truth, label=label, images=count)
        for (truth, label), count in sorted(
            pairs.items(), key=lambda item: (place[item[0][0]], place[item[0][1]])
        )
        if count
    )


def class_results(labels: Sequence[str], pairs: Pairs) -> Iterator[ClassResult]:
    """Precision and recall of each class, in the order of `labels`."""
    images, predicted = dict.fromkeys(labels, 0), dict.fromkeys(labels, 0)
    for (truth, label), count in pairs.items():
        images[truth] += count
        predicted[label] += count
    for label in labels:
        correct = pairs.get((label, label), 0)
        yield ClassResult(
            label=label,
            images=images[label],
            predicted=predicted[label],
            correct=correct,
            precision=correct / predicted[label] if predicted[label] else None,
            recall=correct / images[label] if images[label] else None,
        )


def most_confused(found: Sequence[Confusion], most: int) -> list[Confusion]:
    """The pairs of different classes that were confused most often, most often first."""
    wrong = [pair for pair in found if pair.truth != pair.label]
    return sorted(wrong, key=lambda pair: -pair.images)[:most]
