"""Stratified, seeded divisions. They depend on labels and seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.errors import DataError

Indices = NDArray[np.int64]
HALVES_SEED = (
    0  # by which training divides validation images where it chooses on them; also the export's default
)


def split_train_valid(
    labels: Indices, class_names: Sequence[str], *, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Divides images so that every class keeps its share, and at least one image, on both sides.

    Args:
        labels: int64 (N,).
        class_names: for messages.
        fraction: the share that validates.
        seed: of the choice.

    Returns:
        Sorted indices (training, validation): disjoint, and together all of them.

    Raises:
        DataError: a class has a single image, which cannot stand on both sides.
    """
    rng = np.random.default_rng(seed)
    train, valid = [], []
    for label, name in enumerate(class_names):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has {len(members)} image(s), so it cannot be divided into training and "
                "validation: add images, remove the class, or lay out train/ and val/ folders yourself"
            )
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        valid.append(members[:count])
        train.append(members[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(valid))


def split_halves(labels: Indices, seed: int) -> tuple[Indices, Indices]:
    """Divides validation images into the half that selects and the half that is evidence.

    What is chosen on data must not be measured on the same images. Of a class with an odd number
    of images, the one left over goes to either half in turn, so the halves differ by one image at most.

    Args:
        labels: int64 (N,).
        seed: of the choice.

    Returns:
        Sorted indices (selection, evidence): stratified, disjoint, and together all of them.
    """
    rng = np.random.default_rng(seed)
    halves: tuple[list[Indices], list[Indices]] = ([], [])
    odd_to_evidence = True
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        middle = len(members) // 2
        if len(members) % 2:
            middle += not odd_to_evidence
            odd_to_evidence = not odd_to_evidence
        halves[0].append(members[:middle])
        halves[1].append(members[middle:])
    empty = np.empty(0, np.int64)
    selection, evidence = (np.sort(np.concatenate([empty, *half])) for half in halves)
    return selection, evidence
