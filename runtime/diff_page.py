"""A comparison of two bundles as one page to read and to pass on, with the images that they disagree about."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .diff import Change, Correctness, Diff, Difference, Verdict
from .errors import ImageError
from .page import card, cards, page, section, table, tiles, warning
from .pairs import Decision
from .preprocess import PreprocessSpec, load_image, preprocess
from .quality import accuracy_tile, plan_facts
from .thumbnails import data_uri, openable, reduced

_PICTURES: Final = 48  # of each kind of difference
_ROWS: Final = 40  # of a table
_KINDS: Final[dict[Verdict | None, tuple[str, str]]] = {
    "lost": ("Lost", "Only a is right."),
    "gained": ("Gained", "Only b is right."),
    "other": ("Both wrong", "Neither is right, and they disagree."),
    None: ("Other labels", "What these images show is not known: their folder is named like no label."),
}


def diff_page(found: Diff, spec_a: PreprocessSpec, spec_b: PreprocessSpec) -> str:
    """The page, a whole HTML document that loads nothing.

    Args:
        found: what is shown; the first images of each kind are read again.
        spec_a: how `a` reads a file.
        spec_b: how `b` does. Where the two differ, both views of an image are shown too.
    """
    specs = (spec_a,) if spec_a == spec_b else (spec_a, spec_b)
    galleries, longest = [], 1
    for verdict, (title, words) in _KINDS.items():
        items = [item for item in found.differences if item.verdict == verdict]
        if items:
            figures, size = _figures(items[:_PICTURES], specs)
            longest = max(longest, size)
            note = f"{words} {_shown(len(items))} Surest disagreement first."
            galleries.append(section(f"{title}: {_images(len(items))}", cards(figures), note=note))
    parts = (
        tiles(_figures_of_merit(found)),
        warning("Before you compare", _caveats(found)),
        _changes(found.changes),
        *galleries,
        _unreadable(found),
        section("What ran", _sides(found)),
    )
    return page("Where they differ", _names(found), parts, image_size=longest)


def _names(found: Diff) -> str:
    return ", ".join(
        f"{side}: {plan.bundle} {plan.identity[:12]} {plan.precision}"
        for side, plan in (("a", found.plan_a), ("b", found.plan_b))
    )


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count:,} images"


def _shown(count: int) -> str:
    return "" if count <= _PICTURES else f"{_PICTURES} of them are shown; --out and --json have all."


def _figures_of_merit(found: Diff) -> Iterator[tuple[str, str, str]]:
    rate = found.flip_rate
    yield "Images compared", f"{found.images:,}", _unread_words(found)
    yield (
        "Other label",
        f"{len(found.differences):,}",
        f"{rate.value:.2%}; {rate.low:.2%} to {rate.high:.2%} (95\u00a0%)",
    )
    if found.correctness is not None:
        yield from _correctness(found.correctness)


def _correctness(found: Correctness) -> Iterator[tuple[str, str, str]]:
    yield accuracy_tile("Accuracy of a", found.a)
    yield accuracy_tile("Accuracy of b", found.b)
    drop = found.drop
    yield (
        "b against a",
        f"{-drop.value:+.2%}",
        f"{-drop.high:+.2%} to {-drop.low:+.2%} (95\u00a0%); {found.lost:,} lost, {found.gained:,} gained",
    )


def _unread_words(found: Diff) -> str:
    return f"{len(found.unreadable):,} files could not be read" if found.unreadable else "all files read"


def _caveats(found: Diff) -> list[str]:
    """What makes the sides differ apart from their networks."""
    texts = [
        f"Files become pixels in two ways: {rule.field} is {rule.a} in a and {rule.b} in b."
        for rule in found.preprocess
    ]
    for side, labels in (("a", found.labels_only_a), ("b", found.labels_only_b)):
        if labels:
            texts.append(f"Only {side} has these labels: {', '.join(labels)}.")
    if found.unlabelled_folders:
        names = ", ".join(found.unlabelled_folders)
        texts.append(f"Folders named like no label, so that nobody is right or wrong there: {names}.")
    return texts


def _changes(changes: tuple[Change, ...]) -> str:
    if not changes:
        return section("No difference", "", note="Both give every image the same label.")
    most = changes[0].images
    rows = (
        (
            escape(change.a),
            escape(change.b),
            f'<span class="bar" style="--share:{change.images / most:.4f}">{change.images:,}</span>',
        )
        for change in changes[:_ROWS]
    )
    more = len(changes) - _ROWS
    note = f"The {_ROWS} most frequent; {more:,} more are in --json." if more > 0 else ""
    shown = table(("a says", "b says", "images"), rows, numbers_from=2)
    return section(
        "From which label to which", f'<div class="scroll" style="max-height:320px">{shown}</div>', note=note
    )


def _figures(items: list[Difference], specs: tuple[PreprocessSpec, ...]) -> tuple[list[str], int]:
    """Pictures with what both sides say of them, and the longer side of the largest."""
    figures, longest = [], 1
    for item in items:
        caption, name = _caption(item), Path(item.path).name
        try:
            source = openable(item.path)
            picture = reduced(load_image(source, specs[0]))
            views = [preprocess(source, spec) for spec in specs] if len(specs) > 1 else []
        except ImageError:  # moved or changed since it was compared
            picture, views = np.zeros((1, 1, 1), np.uint8), []
            name = f"{name} (gone)"
        longest = max(longest, *picture.shape[:2])
        detail = escape(name) + _views(views)
        figures.append(card(picture, caption, detail, title=item.path))
    return figures, longest


def _caption(item: Difference) -> str:
    truth = "" if item.truth is None else f"is <b>{escape(item.truth)}</b><br>"
    return f"{truth}{_says('a', item.a, item.truth)}<br>{_says('b', item.b, item.truth)}"


def _says(side: str, said: Decision, truth: str | None) -> str:
    right = "" if truth is None else " ✓" if said.label == truth else " ✗"
    return f"{side}: <b>{escape(said.label)}</b> {said.score:.3f}{right}"


def _views(views: list[NDArray[np.uint8]]) -> str:
    """What each network sees, side by side."""
    if not views:
        return ""
    pictures = "".join(
        f'<span><img alt="as {side} sees it" src="{data_uri(view)}">{side} sees</span>'
        for side, view in zip("ab", views, strict=True)
    )
    return (
        f'<span style="display:grid;grid-template-columns:1fr 1fr;gap:6px;margin-top:6px">{pictures}</span>'
    )


def _unreadable(found: Diff) -> str:
    if not found.unreadable:
        return ""
    rows = ((escape(file.path), escape(file.reason)) for file in found.unreadable[:_ROWS])
    more = len(found.unreadable) - _ROWS
    note = f"The first {_ROWS}; {more:,} more are in --json." if more > 0 else ""
    body = f'<div class="scroll tall">{table(("file", "why"), rows)}</div>'
    return section(f"Not readable: {len(found.unreadable):,}", body, note=note)


def _sides(found: Diff) -> str:
    """What ran on each side, a row each; what differs is bold."""
    rows = []
    for (name, a), b in zip(plan_facts(found.plan_a).items(), plan_facts(found.plan_b).values(), strict=True):
        cells = (escape(a), escape(b)) if a == b else (f"<b>{escape(a)}</b>", f"<b>{escape(b)}</b>")
        rows.append((f'<span style="white-space:nowrap">{name}</span>', *cells))
    return table(("", "a", "b"), rows)
