"""A page to read and to pass on: its style, its frame and its parts. It loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from string import Template
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .thumbnails import LOSSLESS_UP_TO, data_uri

# The policy forbids the browser to load anything; what is shown is inside.
_PAGE: Final = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #ffffff; --ink: #1c2430; --soft: #667085; --rule: #e3e6eb;
  --blue: #2f6fde; --orange: #e0862c; --red: #d64545; --tint: #cddcf7; --muted: #b3bac6;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161c; --card: #1b212a; --ink: #e6e9ee; --soft: #98a2b3; --rule: #303846;
    --blue: #5b93f5; --orange: #f0a04b; --red: #ef6a6a; --tint: #2c436d; --muted: #566072;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 48px; }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 14px; margin-bottom: 18px; }
h1 { margin: 0; font-size: 28px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
header span { color: var(--soft); }
h2 { margin: 0 0 4px; font-size: 19px; }
h3 { margin: 0 0 8px; font-size: 14px; font-weight: 600; }
section, .tile, .warning { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
section { padding: 20px 22px; margin-top: 16px; }
.note { margin: 0 0 14px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; }
.tile { padding: 13px 15px; display: flex; flex-direction: column; }
.tile span, .tile small { color: var(--soft); font-size: 12.5px; }
.tile strong { font-size: 25px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.warning { margin-top: 16px; padding: 12px 18px; border-left: 4px solid var(--orange); }
.warning ul { margin: 4px 0 0; padding-left: 20px; overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 18px 28px; }
.pair.narrow { grid-template-columns: repeat(auto-fit, minmax(260px, 400px)); }
.pair.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); }
.wide-pair { display: flex; flex-wrap: wrap; gap: 24px 40px; align-items: flex-start; }
.wide-pair > .scroll { max-width: 100%; }
.wide-pair > div:last-child { flex: 1 1 240px; max-width: 420px; }
.scroll { overflow: auto; }
.tall { max-height: 560px; }
svg { display: block; width: 100%; height: auto; }
svg { font-size: 12px; }
svg text { fill: var(--soft); }
svg .grid { stroke: var(--rule); }
svg .ideal { stroke: var(--soft); stroke-dasharray: 5 4; }
svg .claim { stroke: var(--orange); stroke-width: 3; }
svg .field { fill: none; stroke: var(--rule); }
svg .count { fill: var(--ink); }
svg .on { fill: #ffffff; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--soft); margin-bottom: 6px; }
.legend b { color: var(--ink); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
table { width: 100%; border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 10px 5px 0; text-align: left; border-bottom: 1px solid var(--rule); overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; position: sticky; top: 0; background: var(--card); }
.number { text-align: right; white-space: nowrap; }
.bar { display: inline-block; min-width: 92px; padding: 0 6px; border-radius: 3px;
  background: linear-gradient(to right, var(--tint) calc(var(--share) * 100%), transparent 0); }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(124px, 1fr)); gap: 14px; }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 6px; background: var(--rule); }
figure img { image-rendering: $rendering; }
figcaption { font-size: 13px; line-height: 1.35; overflow-wrap: anywhere; }
figcaption small { display: block; color: var(--soft); }
footer { margin-top: 18px; color: var(--soft); font-size: 13px; }
@media print { section { break-inside: avoid; } body { background: none; } }
</style>
</head>
<body>
<main>
<header><h1>$heading</h1><span>$subtitle</span></header>
$body
<footer>Written by shipnet. This page loads nothing; what it shows is inside it.</footer>
</main>
</body>
</html>
""")


def page(heading: str, subtitle: str, parts: Iterable[str], *, image_size: int) -> str:
    """A whole HTML document.

    Args:
        heading: its name, text.
        subtitle: beside the heading, text.
        parts: cards, tiles and warnings, HTML; empty ones are left out.
        image_size: the longer side, in pixels, of the images that `card` shows; small ones keep their squares.
    """
    return _PAGE.substitute(
        title=escape(f"{heading}: {subtitle}"),
        heading=escape(heading),
        subtitle=escape(subtitle),
        rendering="pixelated" if image_size <= LOSSLESS_UP_TO else "auto",
        body="\n".join(part for part in parts if part),
    )


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Figures side by side: a name, a value and a detail each, all HTML already."""
    cells = (
        f'<div class="tile"><span>{name}</span><strong>{value}</strong><small>{detail}</small></div>'
        for name, value, detail in items
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def warning(title: str, texts: Iterable[str]) -> str:
    """A box with a list, all text; nothing where there are no texts."""
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<div class="warning"><b>{escape(title)}</b><ul>{items}</ul></div>' if items else ""


def cards(figures: Iterable[str]) -> str:
    """Pictures in a grid, each as `card` gives it."""
    return f'<div class="cards">{"".join(figures)}</div>'


def card(image: NDArray[np.uint8], caption: str, detail: str, *, title: str) -> str:
    """A picture with its caption.

    Args:
        image: uint8 (H, W, 1 or 3).
        caption: HTML.
        detail: HTML, below the caption.
        title: text, shown where the mouse rests.
    """
    return (
        f'<figure title="{escape(title)}"><img alt="{escape(title)}" src="{data_uri(image)}">'
        f"<figcaption>{caption}<small>{detail}</small></figcaption></figure>"
    )


def section(title: str, body: str, *, note: str = "") -> str:
    """A card with a heading; `body` is HTML already, title and note are text."""
    words = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{words}{body}</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers_from: int = 99) -> str:
    """A table of cells that are HTML already; columns from `numbers_from` on are aligned to the right."""
    kinds = [' class="number"' if index >= numbers_from else "" for index in range(len(head))]
    top = "".join(f"<th{kind}>{name}</th>" for name, kind in zip(head, kinds, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{top}</tr></thead>" if any(head) else ""
    return f"<table>{header}<tbody>{''.join(lines)}</tbody></table>"
