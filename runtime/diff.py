"""Where two bundles, or two precisions of one, decide differently: each from the file to the label by its own rules."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from .accuracy import accuracy, paired_difference, share
from .classifier import Classifier
from .errors import DataError, ImageError, OutputError, UsageError
from .folder import find_files, printable
from .pairs import Decision, answers
from .plan import ExecutionPlan
from .proofs import Accuracy, Interval
from .staging import staged_file

Verdict = Literal["lost", "gained", "other"]


class Difference(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An image that the two sides give different labels.

    Attributes:
        path: the file.
        truth: the class that its folder names; None where the folder's name is no label.
        verdict: "lost": only `a` is right; "gained": only `b` is; "other": neither; None without a truth.
        a, b: what the sides say.
    """

    path: str
    truth: str | None
    verdict: Verdict | None
    a: Decision
    b: Decision

    @property
    def clash(self) -> float:
        """How surely the sides disagree: the sum of their margins, 0 to 2."""
        return self.a.margin + self.b.margin


class Change(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many images `a` gives one label and `b` another."""

    a: str
    b: str
    images: int


class Unreadable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file without a comparison: the reason of each side that cannot read it; None for a side that can."""

    path: str
    a: str | None
    b: str | None

    @property
    def reason(self) -> str:
        """Why there is no comparison, and for which side."""
        if self.a == self.b:
            return str(self.a)
        return "; ".join(f"{side}: {why}" for side, why in (("a", self.a), ("b", self.b)) if why is not None)


class Correctness(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who is right, over the images whose folder names a label of one of the sides.

    Attributes:
        a, b: accuracy of each side.
        lost: images that only `a` gets right.
        gained: images that only `b` gets right.
        other: images that neither gets right, with different labels.
        drop: the accuracy that `b` loses, `(lost - gained) / images`, with Tango's interval for paired shares.
    """

    a: Accuracy
    b: Accuracy
    lost: int
    gained: int
    other: int
    drop: Interval


class RuleChange(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A field of the preprocess spec that the sides set differently, its values as JSON."""

    field: str
    a: str
    b: str


class Diff(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `diff` found.

    Attributes:
        plan_a, plan_b: what ran.
        preprocess: in what the two ways from a file to pixels differ; empty where each file was decoded once for both.
        labels_only_a, labels_only_b: classes that the other side cannot give.
        images: that both sides could read.
        flip_rate: the share of them that the sides give different labels, with a 95 % Wilson interval.
        correctness: None where no folder is named like a label.
        unlabelled_folders: where others are, the folders that are not.
        changes: from label to label, the most frequent first.
        differences: the images, those that the sides disagree on most surely first.
        unreadable: files that a side could not read.
        hidden: files and folders passed over because their name starts with a dot.
    """

    plan_a: ExecutionPlan
    plan_b: ExecutionPlan
    preprocess: tuple[RuleChange, ...]
    labels_only_a: tuple[str, ...]
    labels_only_b: tuple[str, ...]
    images: int
    flip_rate: Interval
    correctness: Correctness | None
    unlabelled_folders: tuple[str, ...]
    changes: tuple[Change, ...]
    differences: tuple[Difference, ...]
    unreadable: tuple[Unreadable, ...]
    hidden: int

    def excess(self, max_flip_rate: float) -> str | None:
        """Why the sides differ more than is allowed; None where they do not.

        Args:
            max_flip_rate: share of images. Zero holds the images that were compared; above zero it is a claim on
                images like them, so the interval's upper end must hold it.
        """
        found = self.flip_rate
        count = f"{len(self.differences):,} of {self.images:,} images get another label"
        if found.value > max_flip_rate:
            return f"{count} ({found.value:.3%}), allowed {max_flip_rate:.3%}"
        if max_flip_rate > 0.0 and found.high > max_flip_rate:
            return f"{count}, too few images to tell that from {found.high:.3%}, allowed {max_flip_rate:.3%}"
        return None


def diff(
    a: Classifier,
    b: Classifier,
    folder: str | os.PathLike[str],
    *,
    on_progress: Callable[[int, int], None] | None = None,
) -> Diff:
    """Runs two classifiers over the same files, and compares the labels by name.

    Each reads a file by its own bundle's spec; where the specs are equal it is decoded once. Memory grows with the
    number of file names and of differences, not with the images.

    Args:
        a: what is compared with, such as the bundle in use.
        b: what is compared, such as its successor, or another precision.
        folder: images, at any depth. A folder in it that is named like a label of either side tells what its
            images show.
        on_progress: called after each file with how many are done and how many there are.

    Raises:
        UsageError: the sides have no label in common, or there is no such folder.
        DataError: no file can be read by both.
        DeviceError: a network failed, or gave NaN or infinite logits.

    Example:
        >>> with Classifier.load("old/bundle") as a, Classifier.load("new/bundle") as b:
        ...     found = diff(a, b, "photos")
        >>> found.flip_rate.value, found.differences[0].path
    """
    _refuse_strangers(a, b)
    top = Path(folder)
    found = find_files([top])
    known = {*a.labels, *b.labels}
    folders = {file: _class_folder(file, top) for file in found.files}
    tally = _Tally()
    for index, (file, one, other) in enumerate(answers(a, b, found.files)):
        name = folders[file]
        tally.add(file, name if name in known else None, one, other)
        if on_progress is not None:
            on_progress(index + 1, len(found.files))
    if not tally.images:
        first = tally.unreadable[0]
        raise DataError(
            f"{printable(str(folder))}: none of its {len(found.files)} files can be read by both, "
            f"the first {first.a or first.b}"
        )
    strangers = {name for name in folders.values() if name is not None} - known
    return Diff(
        plan_a=a.plan,
        plan_b=b.plan,
        preprocess=_rule_changes(a, b),
        labels_only_a=tuple(label for label in a.labels if label not in b.labels),
        labels_only_b=tuple(label for label in b.labels if label not in a.labels),
        images=tally.images,
        flip_rate=share(len(tally.differences), tally.images),
        correctness=tally.correctness(),
        unlabelled_folders=tuple(sorted(map(printable, strangers))) if tally.labelled else (),
        changes=tally.most_frequent(),
        differences=tuple(sorted(tally.differences, key=lambda item: (-item.clash, item.path))),
        unreadable=tuple(tally.unreadable),
        hidden=found.hidden,
    )


def write_csv(found: Diff, out: Path) -> None:
    r"""Writes the images that differ, surest disagreement first, then the files that could not be read.

    The columns: `path,status,truth,label_a,score_a,margin_a,label_b,score_b,margin_b,error`. The status is "lost",
    "gained" or "other" as in `Difference`, "differs" where the truth is unknown, or "error".

    Raises:
        OutputError: the file cannot be written.
    """
    sides = [f"{name}_{side}" for side in "ab" for name in ("label", "score", "margin")]
    with staged_file(out) as staged:
        try:
            with staged.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(["path", "status", "truth", *sides, "error"])
                for item in found.differences:
                    cells = [
                        cell
                        for side in (item.a, item.b)
                        for cell in (side.label, f"{side.score:.6f}", f"{side.margin:.6f}")
                    ]
                    writer.writerow([item.path, item.verdict or "differs", item.truth or "", *cells, ""])
                for file in found.unreadable:
                    writer.writerow([file.path, "error", "", *[""] * len(sides), file.reason])
        except OSError as error:
            raise OutputError(
                f"{out}: cannot be written: {error.strerror or error}: free its place"
            ) from error


@dataclass(slots=True)
class _Tally:
    """Counts answers as they come."""

    images: int = 0
    labelled: int = 0
    right_a: int = 0
    right_b: int = 0
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    unreadable: list[Unreadable] = field(default_factory=list)

    def add(self, path: str, truth: str | None, a: Decision | ImageError, b: Decision | ImageError) -> None:
        if isinstance(a, ImageError) or isinstance(b, ImageError):
            why = [_why(path, side) if isinstance(side, ImageError) else None for side in (a, b)]
            self.unreadable.append(Unreadable(path=printable(path), a=why[0], b=why[1]))
            return
        self.images += 1
        self.labelled += truth is not None
        self.right_a += a.label == truth
        self.right_b += b.label == truth
        if a.label == b.label:
            return
        verdict: Verdict | None = None
        if truth is not None:
            verdict = "lost" if a.label == truth else "gained" if b.label == truth else "other"
            self.verdicts[verdict] += 1
        self.differences.append(Difference(path=printable(path), truth=truth, verdict=verdict, a=a, b=b))

    def correctness(self) -> Correctness | None:
        if not self.labelled:
            return None
        lost, gained, other = (self.verdicts[verdict] for verdict in ("lost", "gained", "other"))
        return Correctness(
            a=accuracy(self.right_a, self.labelled),
            b=accuracy(self.right_b, self.labelled),
            lost=lost,
            gained=gained,
            other=other,
            drop=paired_difference(lost, gained, self.labelled),
        )

    def most_frequent(self) -> tuple[Change, ...]:
        counts = Counter((item.a.label, item.b.label) for item in self.differences)
        ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return tuple(Change(a=a, b=b, images=images) for (a, b), images in ordered)


def _refuse_strangers(a: Classifier, b: Classifier) -> None:
    if not set(a.labels) & set(b.labels):
        raise UsageError(
            f"{a.plan.bundle} and {b.plan.bundle} have no label in common ({_some(a.labels)}; {_some(b.labels)}): "
            "choose bundles that answer the same question"
        )


def _some(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:5]) + (", …" if len(labels) > 5 else "")


def _rule_changes(a: Classifier, b: Classifier) -> tuple[RuleChange, ...]:
    one, other = a.bundle.manifest.preprocess, b.bundle.manifest.preprocess
    return tuple(
        RuleChange(
            field=name,
            a=msgspec.json.encode(getattr(one, name)).decode(),
            b=msgspec.json.encode(getattr(other, name)).decode(),
        )
        for name in one.__struct_fields__
        if getattr(one, name) != getattr(other, name)
    )


def _class_folder(file: str, top: Path) -> str | None:
    """The folder below `top` that a file lies in; None for a file directly in `top`."""
    parts = Path(file).relative_to(top).parts
    return parts[0] if len(parts) > 1 else None


def _why(path: str, error: ImageError) -> str:
    return printable(" ".join(str(error).removeprefix(f"{path}: ").split()))
