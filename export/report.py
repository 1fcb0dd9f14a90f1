"""What an export found, as one page to read and to pass on: `export-report.html`, which loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

import numpy as np

from shipnet.runtime.manifest import LeftOut, Variant
from shipnet.runtime.page import card, cards, page, section, table, tiles, warning
from shipnet.runtime.proofs import Accuracy, Interval, Parity
from shipnet.runtime.staging import write_file
from shipnet.train import pixels

from .parity_report import Disagreement, FormatReport, ParityReport
from .search import Search
from .source import Source

EXPORT_REPORT: Final = "export-report.html"
_PICTURES: Final = 48  # of the flips of one format
_HALVES: Final = (
    "Accuracy and the shares of other labels are those of the evidence half, on which nothing was chosen."
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What an export has to tell.

    Attributes:
        report: every format's evidence.
        variants: what ships; empty where the export failed.
        left_out: what was asked for and does not.
        searches: how the int8 variants were found.
        identity: of the bundle; None where there is none.
        sizes: bytes of each variant's file, by precision.
    """

    report: ParityReport
    variants: tuple[Variant, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    searches: tuple[Search, ...] = ()
    identity: str | None = None
    sizes: dict[str, int] | None = None


def export_report(source: Source, found: Findings) -> str:
    """The page, a whole HTML document. It shows validation images, so it lies beside the bundle, never in it.

    Args:
        source: the validated network; its images that got another label are read again.
        found: what is told.

    Raises:
        ImageError: an image cannot be read any more.
    """
    spec = source.spec
    subtitle = (
        "the export failed, there is no bundle"
        if found.identity is None
        else f"what was proved of bundle {found.identity[:12]}"
    )
    parts = (
        tiles(_figures(found)),
        warning("Not shipped", _refused(found)),
        warning("Accepted by --accept-accuracy", source.provenance.doubts),
        warning("Shipped without being certified", _uncertified(found.variants)),
        _variants(found),
        section("What was run", _formats(found.report.formats), note=_HALVES),
        *(_flips(source, entry) for entry in found.report.formats if entry.flips),
        *(_search(item) for item in found.searches),
        section("Classes", _classes(found.report.formats[0]), note="Of fp32, on the evidence half."),
    )
    return page(source.name, subtitle, parts, image_size=max(spec.height, spec.width))


def _figures(found: Findings) -> Iterator[tuple[str, str, str]]:
    fp32 = found.report.formats[0].parity
    yield "Accuracy of fp32", f"{fp32.accuracy.accuracy:.2%}", _interval_words(fp32.accuracy)
    yield (
        "Decisions that differ from the validated network",
        f"{fp32.flips:,}",
        f"fp32, of {fp32.images:,} validation images",
    )
    relative = fp32.differences.max / fp32.differences.scale
    yield "Largest logit difference", f"{relative:.1g}", "fp32, over the logits' scale"
    certified = sum(item.status == "certified" for item in found.variants)
    others = len(found.variants) - certified
    yield "Certified precisions", f"{certified}", f"{others} shipped without, {len(found.left_out)} left out"


def _interval_words(found: Accuracy) -> str:
    return f"{found.low:.2%} to {found.high:.2%} (95\u00a0%), {found.correct:,} of {found.images:,}"


def _refused(found: Findings) -> list[str]:
    texts = [f"{item.precision}: {reason}." for item in found.left_out for reason in item.reasons]
    if found.identity is None:
        texts += [f"{entry.format}: {text}." for entry in found.report.formats for text in entry.breaches]
        if (first := found.report.first_difference) is not None:
            texts.append(f"{first}.")
    return texts


def _uncertified(variants: Sequence[Variant]) -> list[str]:
    return [
        f"{item.precision}, {item.status}: {reason}." for item in variants for reason in item.status_reasons
    ]


def _variants(found: Findings) -> str:
    """The precisions that ship."""
    if not found.variants:
        return ""
    sizes = found.sizes or {}
    rows = (
        (
            f"<b>{escape(item.precision)}</b>",
            escape(item.status),
            escape(", ".join(item.targets)),
            f"{sizes[item.precision] / 1e6:.3g} MB" if item.precision in sizes else "",
            f"{item.parity.accuracy.accuracy:.2%}",
            _share(item.parity.decisions.flip_rate),
            f"{item.budget.max_flip_rate:.2%}",
            _share(item.parity.decisions.top1_drop, signed=True),
            f"{item.budget.max_top1_drop:.2%}",
            f"{item.temperature:.4g}",
        )
        for item in found.variants
    )
    head = (
        *("precision", "status", "for", "size", "accuracy", "other labels", "budget"),
        *("fall of accuracy", "budget", "temperature"),
    )
    note = "Scores are the softmax of the logits over the temperature, fitted for each precision on the selection half."
    return section("Precisions", f'<div class="scroll">{table(head, rows, numbers_from=3)}</div>', note=note)


def _share(found: Interval, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{found.value:{sign}.2%} <small>({found.low:{sign}.2%} to {found.high:{sign}.2%})</small>"


def _formats(formats: Sequence[FormatReport]) -> str:
    """Every file on every device that ran it."""
    head = (
        *("file", "device", "images", "other labels", "lost", "gained", "other", "largest margin lost"),
        *("logits: median", "99 %", "largest", "in other batches"),
    )
    rows = ((escape(entry.format), escape(entry.parity.device), *_cells(entry.parity)) for entry in formats)
    return f'<div class="scroll">{table(head, rows, numbers_from=2)}</div>'


def _cells(found: Parity) -> tuple[str, ...]:
    decisions, differences = found.decisions, found.differences
    batches = "–" if found.invariance is None else f"{found.invariance.max_relative_difference:.1g}"
    return (
        f"{found.images:,}",
        f"{found.flips:,}",
        f"{decisions.lost:,}",
        f"{decisions.gained:,}",
        f"{decisions.other:,}",
        f"{decisions.largest_flip_margin:.2g}",
        *(
            f"{value / differences.scale:.1g}"
            for value in (differences.median, differences.p99, differences.max)
        ),
        batches,
    )


def _flips(source: Source, entry: FormatReport) -> str:
    """The images that got another label, those that the validated network was surest of first."""
    shown = entry.flips[:_PICTURES]
    pictures = pixels(source.valid, source.spec, np.array([item.index for item in shown]))
    scale = entry.parity.differences.scale
    figures = (
        card(picture, _said(item), _detail(item, scale), title=source.valid.names[item.index])
        for item, picture in zip(shown, pictures, strict=True)
    )
    more = entry.parity.flips - len(shown)
    note = "As the network sees them; those that the validated network was surest of come first." + (
        f" {more:,} more are not shown." if more > 0 else ""
    )
    where = f"{entry.format}: {entry.parity.flips:,} of {entry.parity.images:,} images get another label"
    return section(where, cards(figures), note=note)


def _said(item: Disagreement) -> str:
    now = item.exported_label
    return (
        f"is <b>{escape(item.true_label)}</b><br>validated: {_mark(item.reference_label, item.true_label)}<br>"
        f"here: {'no number' if now is None else _mark(now, item.true_label)}"
    )


def _mark(label: str, truth: str) -> str:
    return f"<b>{escape(label)}</b> {'✓' if label == truth else '✗'}"


def _detail(item: Disagreement, scale: float) -> str:
    half = "evidence half" if item.evidence else "selection half"
    return f"margin {item.margin / scale:.2g}, difference {item.max_difference / scale:.2g} of scale; {half}"


def _search(found: Search) -> str:
    """How an int8 variant was found."""
    methods = table(
        ("ranges by", "other labels", "fall of accuracy", "mean logit difference"),
        (
            (
                f"<b>{item.method}</b>, chosen" if item.method == found.method else item.method,
                f"{item.flips:,}",
                f"{item.top1_drop:+.2%}",
                f"{item.difference:.2g}",
            )
            for item in found.methods
        ),
        numbers_from=1,
    )
    note = (
        f"Chosen on {found.images:,} images of the selection half; ranges were measured on "
        f"{found.calibration_images:,} calibration images"
        + (f" ({found.unreadable_images:,} more could not be read). " if found.unreadable_images else ". ")
        + ("Its budget holds there." if found.holds else "Its budget does not hold there.")
    )
    return section(f"How {found.precision} was found", methods + _steps(found), note=note)


def _steps(found: Search) -> str:
    if not found.steps:
        return "<p>No layer had to go back to fp32.</p>"
    rows = (
        (
            escape(step.node),
            escape(step.op_type),
            "stays in fp32" if step.kept else "back to int8",
            f"{step.flips_before:,} → {step.flips_after:,}",
            f"{step.difference_before:.2g} → {step.difference_after:.2g}",
        )
        for step in found.steps
    )
    head = ("layer tried in fp32", "operator", "", "other labels", "mean logit difference")
    return f'<div class="scroll tall" style="margin-top:14px">{table(head, rows, numbers_from=3)}</div>'


def _classes(entry: FormatReport) -> str:
    rows = (
        (
            escape(item.label),
            f"{item.images:,}",
            f"{item.correct:,}",
            "–" if item.precision is None else f"{item.precision:.2%}",
            "–" if item.recall is None else f"{item.recall:.2%}",
        )
        for item in entry.classes
    )
    head = ("class", "images", "right", "precision", "recall")
    return f'<div class="scroll tall">{table(head, rows, numbers_from=1)}</div>'


def write_report(folder: Path, source: Source, found: Findings) -> Path:
    """Writes the page into a folder, whole or not at all, and gives its path.

    Raises:
        OutputError: it cannot be written.
    """
    path = folder / EXPORT_REPORT
    write_file(path, export_report(source, found).encode())
    return path
