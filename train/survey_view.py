"""A survey of a data set as it is shown on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from shipnet.runtime.render import table

from .survey import Copies, Survey

_FEW = 10  # rows of a list that may be long; --json has all


def describe(found: Survey) -> list[Table | str]:
    """Tables of classes and formats, then a table for each thing that is wrong, and one line to sum up."""
    numbers = ("training", "validation", "test")
    classes = table(found.data, "class", *numbers, numbers=numbers)
    for row in found.classes:
        classes.add_row(escape(row.label), f"{row.train:,}", f"{row.valid:,}", f"{row.test:,}")
    totals = (sum(getattr(row, split) for row in found.classes) for split in ("train", "valid", "test"))
    classes.add_section()
    classes.add_row("all", *(f"{total:,}" for total in totals))
    formats = table(_title("sizes", found.formats), "size", "mode", "images", numbers=("images",))
    for kind in found.formats[:_FEW]:
        formats.add_row(f"{kind.width} x {kind.height}", kind.mode, f"{kind.images:,}")
    parts: list[Table | str] = [classes, "", formats, ""]
    if found.damaged:
        damaged = table(_title("cannot be read", found.damaged), "file", "why")
        for file in found.damaged[:_FEW]:
            damaged.add_row(escape(file.name), escape(file.error))
        parts += [damaged, ""]
    parts += _copies("the same image in several parts of the data: accuracy looks too good", found.leaks)
    parts += _copies("the same image in several classes: a label is wrong", found.conflicts)
    parts += [f"warning: {warning}" for warning in found.warnings]
    return [*parts, _summary(found)]


def _copies(title: str, groups: Sequence[Copies]) -> list[Table | str]:
    if not groups:
        return []
    rows = table(_title(title, groups), "images", "classes", "parts")
    for group in groups[:_FEW]:
        rows.add_row(*(escape(", ".join(words)) for words in (group.names, group.labels, group.splits)))
    return [rows, ""]


def _title(what: str, rows: Sequence[object]) -> str:
    more = f", the first {_FEW} of {len(rows):,}" if len(rows) > _FEW else ""
    return f"{what}{more}"


def _summary(found: Survey) -> str:
    images = sum(row.train + row.valid + row.test for row in found.classes)
    within = sum(len(group.names) - 1 for group in found.copies)
    return (
        f"{images:,} images can be read, {len(found.damaged):,} cannot; copies of another image: {within:,}; "
        f"images that stand in several parts: {len(found.leaks):,}, in several classes: {len(found.conflicts):,}"
    )
