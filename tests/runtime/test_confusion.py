"""Confusions, precision and recall, against counts made by hand."""

from __future__ import annotations

from shipnet.runtime.confusion import class_results, confusions, most_confused

LABELS = ("cat", "dog", "eel")
PAIRS = {("dog", "cat"): 3, ("cat", "cat"): 4, ("cat", "eel"): 1, ("dog", "dog"): 1, ("dog", "eel"): 0}


def test_precision_and_recall() -> None:
    cat, dog, eel = class_results(LABELS, PAIRS)
    assert (cat.images, cat.predicted, cat.correct, cat.precision, cat.recall) == (5, 7, 4, 4 / 7, 4 / 5)
    assert (dog.precision, dog.recall) == (1.0, 1 / 4)
    assert (eel.images, eel.precision, eel.recall) == (0, 0.0, None)


def test_pairs_are_in_the_order_of_the_labels_and_zeros_are_left_out() -> None:
    found = confusions(LABELS, PAIRS)
    assert [(pair.truth, pair.label, pair.images) for pair in found] == [
        ("cat", "cat", 4),
        ("cat", "eel", 1),
        ("dog", "cat", 3),
        ("dog", "dog", 1),
    ]
    assert [(pair.truth, pair.label) for pair in most_confused(found, 5)] == [("dog", "cat"), ("cat", "eel")]
    assert len(most_confused(found, 1)) == 1
