"""Do a network's outputs mean what the labels say? Asked of labelled images before anything is shipped."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.accuracy import accuracy
from shipnet.train import split_halves

Indices = NDArray[np.int64]
_SHOWN: Final = 5
_HALVES_SEED: Final = 0


def suspicion(given: Indices, truths: Indices, labels: tuple[str, ...]) -> str | None:
    """What speaks against the network as it was described; None where nothing does.

    Three mistakes decide otherwise than the network that was validated, without any error: labels in another
    order than the outputs, another preprocessing, and other weights than meant. The first shows as an order with
    which accuracy is far higher, the others as accuracy no better than guessing, or as one label for every image.

    Args:
        given: int64 (N,), the outputs that were highest.
        truths: int64 (N,), the labels of the images.
        labels: the classes.

    Returns:
        A sentence with numbers and advice.
    """
    now = accuracy(int((given == truths).sum()), len(truths))
    found = f"on {now.images} images accuracy is {now.accuracy:.1%} ({now.low:.1%} to {now.high:.1%})"
    other = accuracy(_correct_under_another_order(given, truths), len(truths))
    if other.low > now.high:
        order = _order(given, truths)
        swaps = [
            f"output {output + 1}, called {labels[output]!r}, is mostly {labels[truth]!r}"
            for output, truth in sorted(order.items())
            if output != truth
        ]
        more = f", and {len(swaps) - _SHOWN} more" if len(swaps) > _SHOWN else ""
        return (
            f"the labels seem to be in another order than the network's outputs: {found}, and in another order "
            f"{other.accuracy:.1%}: {'; '.join(swaps[:_SHOWN])}{more}: write the labels in the order of the outputs"
        )
    if len(np.unique(given)) == 1 and len(np.unique(truths)) > 1:
        return (
            f"the network gives every one of {len(given)} images the label {labels[given[0]]!r}: "
            "are preprocessing (--mean, --std, --image-size) and weights those that it was validated with?"
        )
    if now.low <= 1 / len(labels):
        return (
            f"{found}, which cannot be told from guessing among {len(labels)} labels ({1 / len(labels):.1%}): are the "
            "order of the labels, the preprocessing (--mean, --std, --image-size) and the weights those that it was "
            "validated with?"
        )
    return None


def _correct_under_another_order(given: Indices, truths: Indices) -> int:
    """Images that the best order gets right, each half under the order that the other half chose.

    An order that is measured on the images that chose it finds a structure in noise.
    """
    halves = split_halves(truths, _HALVES_SEED)
    correct = 0
    for choosing, measured in (halves, halves[::-1]):
        order = _order(given[choosing], truths[choosing])
        renamed = np.array([order.get(int(output), int(output)) for output in given[measured]], np.int64)
        correct += int((renamed == truths[measured]).sum())
    return correct


def _order(given: Indices, truths: Indices) -> dict[int, int]:
    """For each output that was seen, the class that makes the most images right, each class at most once.

    Source: H. W. Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics Quarterly 2
    (1955), 83-97, as scipy solves it.
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    if not len(given):
        return {}
    outputs, row = np.unique(given, return_inverse=True)
    classes, column = np.unique(truths, return_inverse=True)
    counts = np.zeros((len(outputs), len(classes)))
    np.add.at(counts, (row, column), 1.0)
    counts += 0.5 * (outputs[:, None] == classes[None, :])  # of equals, the order that was stated
    rows, columns = linear_sum_assignment(counts, maximize=True)
    pairs = zip(rows, columns, strict=True)
    return {int(outputs[i]): int(classes[j]) for i, j in pairs if counts[i, j] >= 1}
