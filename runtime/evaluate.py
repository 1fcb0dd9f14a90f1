"""How good a bundle is on a labelled folder: accuracy, confusion, and the mistakes it was surest of."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .accuracy import accuracy
from .calibration import Calibration, calibration
from .classifier import Classifier, Failure, Prediction
from .confusion import ClassResult, Confusion, class_results, confusions
from .errors import DataError
from .folder import Found, find_files, printable
from .plan import ExecutionPlan
from .proofs import Accuracy

_WORST = 20


class Mistake(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An image that was given another label than its folder's, and how sure the network was (0 to 1)."""

    path: str
    truth: str
    label: str
    score: float


class Unreadable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file that has no prediction, and why. It counts neither as right nor as wrong."""

    path: str
    error: str


class Evaluation(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `evaluate` found.

    Attributes:
        plan: what ran.
        accuracy: top-1, with a 95 % interval, over the images that could be read.
        classes: in the order of the bundle's labels.
        confusion: by true class, then by label, both in that order.
        calibration: whether the scores, after the bundle's temperature, can be believed.
        worst: the mistakes with the highest scores, highest first.
        unreadable: files of the class folders that are no images.
        missing_classes: labels of the bundle without an image in the folder.
        ignored: hidden files and folders, and files that lie beside the class folders.
    """

    plan: ExecutionPlan
    accuracy: Accuracy
    classes: tuple[ClassResult, ...]
    confusion: tuple[Confusion, ...]
    calibration: Calibration
    worst: tuple[Mistake, ...]
    unreadable: tuple[Unreadable, ...]
    missing_classes: tuple[str, ...]
    ignored: int

    @property
    def matrix(self) -> NDArray[np.int64]:
        """The confusion matrix, int64 (K, K): rows are true classes, columns labels."""
        place = {result.label: index for index, result in enumerate(self.classes)}
        counts = np.zeros((len(place), len(place)), dtype=np.int64)
        for pair in self.confusion:
            counts[place[pair.truth], place[pair.label]] = pair.images
        return counts


def evaluate(
    classifier: Classifier,
    folder: str | os.PathLike[str],
    *,
    worst: int = _WORST,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Classifies a folder that holds a sub-folder for each class, and counts.

    Args:
        classifier: what runs, and in which batches.
        folder: its sub-folders are named like labels of the bundle; what they hold, at any depth, is of that class.
        worst: how many mistakes to keep.
        on_progress: called after each file with how many are done and how many there are.

    Raises:
        DataError: a sub-folder is named like no label, or no image could be read.
        UsageError: there is no such folder.
    """
    files, truths, ignored = _labelled(Path(folder), classifier.labels)
    tally = _Tally(worst)
    answers = classifier.stream(files, errors="yield")
    for index, (path, truth, answer) in enumerate(zip(files, truths, answers, strict=True)):
        tally.add(path, truth, answer)
        if on_progress is not None:
            on_progress(index + 1, len(files))
    labels, pairs = classifier.labels, tally.pairs
    if not pairs:
        reason = tally.unreadable[0].error
        raise DataError(f"{folder}: none of its {len(files)} files can be read, the first {reason}")
    return Evaluation(
        plan=classifier.plan,
        accuracy=accuracy(sum(pairs[label, label] for label in labels), pairs.total()),
        classes=tuple(class_results(labels, pairs)),
        confusion=confusions(labels, pairs),
        calibration=calibration(np.array(tally.scores), np.array(tally.correct)),
        worst=tally.worst_first(),
        unreadable=tuple(tally.unreadable),
        missing_classes=tuple(label for label in labels if label not in set(truths)),
        ignored=ignored,
    )


class _Tally:
    """Counts answers as they come, and keeps the mistakes with the highest scores."""

    def __init__(self, worst: int) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()
        self.unreadable: list[Unreadable] = []
        self.scores: list[float] = []
        self.correct: list[bool] = []
        self._worst = worst
        self._mistakes: list[tuple[float, int, Mistake]] = []

    def add(self, path: str, truth: str, answer: Prediction | Failure) -> None:
        if isinstance(answer, Failure):
            reason = str(answer.error).removeprefix(f"{path}: ")
            self.unreadable.append(Unreadable(path=printable(path), error=printable(reason)))
            return
        self.pairs[truth, answer.label] += 1
        self.scores.append(answer.score)
        self.correct.append(answer.label == truth)
        if answer.label != truth:
            mistake = Mistake(path=printable(path), truth=truth, label=answer.label, score=answer.score)
            place = -self.pairs.total()  # of equal scores the first file stays
            heapq.heappush(self._mistakes, (answer.score, place, mistake))
            if len(self._mistakes) > self._worst:
                heapq.heappop(self._mistakes)

    def worst_first(self) -> tuple[Mistake, ...]:
        return tuple(mistake for _, _, mistake in sorted(self._mistakes, reverse=True))


def _labelled(folder: Path, labels: tuple[str, ...]) -> tuple[list[str], list[str], int]:
    """The files of the class folders, the class of each, and how many files lie elsewhere."""
    found: Found = find_files([folder])
    files, truths = [], []
    for file in found.files:
        parts = Path(file).relative_to(folder).parts
        if len(parts) > 1:
            files.append(file)
            truths.append(parts[0])
    unknown = sorted(set(truths) - set(labels))
    if unknown:
        raise DataError(
            f"{folder}: its folders {', '.join(map(printable, unknown))} are no labels of this bundle: "
            f"expected {', '.join(labels)}"
        )
    if not files:
        raise DataError(
            f"{folder}: has no class folder with files: expected folders like {', '.join(labels[:5])}"
        )
    return files, truths, found.hidden + len(found.files) - len(files)
