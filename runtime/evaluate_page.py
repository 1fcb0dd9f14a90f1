"""An evaluation on a labelled folder as one page to read and to pass on, with the mistakes as images."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from .errors import ImageError
from .evaluate import Evaluation, Mistake
from .page import card, cards, page, section, table, tiles, warning
from .plan import ExecutionPlan
from .preprocess import PreprocessSpec, load_image
from .quality import accuracy_tile, classes_part, confusion_part, plan_facts, reliability_part
from .thumbnails import openable, reduced

_ROWS: Final = 40  # of a table


def evaluate_page(found: Evaluation, spec: PreprocessSpec) -> str:
    """The page, a whole HTML document that loads nothing.

    Args:
        found: what is shown; the images of the worst mistakes are read again.
        spec: how the bundle reads a file.

    Example:
        >>> from pathlib import Path
        >>> from shipnet.runtime import Classifier
        >>> from shipnet.runtime.evaluate import evaluate
        >>> with Classifier.load("artifacts/digits/bundle") as classifier:
        ...     found = evaluate(classifier, "photos")
        ...     html = evaluate_page(found, classifier.bundle.manifest.preprocess)
        >>> Path("evaluation.html").write_text(html, encoding="utf-8")
    """
    figures, longest = _mistakes(found.worst, spec)
    measured = f"On {found.accuracy.images:,} images; shade is the share of the true class."
    parts = (
        tiles(_tiles(found)),
        warning("About the folder", _caveats(found)),
        section("Confusion", confusion_part(found.classes, found.confusion), note=measured),
        section("Classes", classes_part(found.classes)),
        section("Surest mistakes", cards(figures), note=_worst_note(found)),
        section(
            "Can the scores be believed?",
            reliability_part([("Scores as the bundle gives them", found.calibration)]),
            note=_temperature_note(found.plan),
        ),
        _unreadable(found),
        section("What ran", table(("", ""), _escaped(plan_facts(found.plan)))),
    )
    plan = found.plan
    return page(
        "Evaluation", f"{plan.bundle} {plan.identity[:12]}, {plan.precision}", parts, image_size=longest
    )


def _tiles(found: Evaluation) -> Iterator[tuple[str, str, str]]:
    yield accuracy_tile("Accuracy", found.accuracy)
    yield "Calibration error", f"{found.calibration.ece:.4f}", f"ECE, {len(found.calibration.bins)} bins"
    present = len(found.classes) - len(found.missing_classes)
    yield "Classes", f"{present:,}", f"with images, of {len(found.classes):,}"
    unread = f"{len(found.unreadable):,} files could not be read" if found.unreadable else "all files read"
    yield "Images", f"{found.accuracy.images:,}", unread


def _caveats(found: Evaluation) -> list[str]:
    texts = []
    if found.missing_classes:
        texts.append(f"There are no images of: {', '.join(found.missing_classes)}.")
    if found.ignored:
        texts.append(f"Hidden, or beside the class folders, and not counted: {found.ignored:,}.")
    return texts


def _worst_note(found: Evaluation) -> str:
    wrong = found.accuracy.images - found.accuracy.correct
    if not wrong:
        return "There are none."
    shown = f"{len(found.worst):,} of {wrong:,}" if wrong > len(found.worst) else "All of them"
    return f"{shown}, highest score first: hard cases, or images in the wrong folder."


def _mistakes(items: tuple[Mistake, ...], spec: PreprocessSpec) -> tuple[list[str], int]:
    """Pictures with what they are and what they were called, and the longer side of the largest."""
    figures, longest = [], 1
    for item in items:
        name = Path(item.path).name
        try:
            picture = reduced(load_image(openable(item.path), spec))
        except ImageError:  # moved or changed since it was classified
            picture, name = np.zeros((1, 1, 1), np.uint8), f"{name} (gone)"
        longest = max(longest, *picture.shape[:2])
        caption = f"<b>{escape(item.truth)}</b> called <b>{escape(item.label)}</b>"
        detail = f"score {item.score:.3f}<br>{escape(name)}"
        figures.append(card(picture, caption, detail, title=item.path))
    return figures, longest


def _temperature_note(plan: ExecutionPlan) -> str:
    if plan.temperature == 1.0:
        return "The scores are the softmax of the logits as they are."
    return f"The scores are the softmax of the logits over the bundle's temperature, {plan.temperature:.4g}."


def _unreadable(found: Evaluation) -> str:
    if not found.unreadable:
        return ""
    rows = ((escape(file.path), escape(file.error)) for file in found.unreadable[:_ROWS])
    more = len(found.unreadable) - _ROWS
    note = f"The first {_ROWS}; {more:,} more are in --json." if more > 0 else ""
    body = f'<div class="scroll tall">{table(("file", "why"), rows)}</div>'
    return section(f"Not readable: {len(found.unreadable):,}", body, note=note)


def _escaped(facts: dict[str, str]) -> Iterator[tuple[str, str]]:
    return ((escape(name), escape(value)) for name, value in facts.items())
