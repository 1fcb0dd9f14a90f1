"""How good a network is, as parts of a page: confusion, classes, whether its scores can be believed, what ran."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from .calibration import Calibration
from .charts import confusion_chart, reliability_chart
from .confusion import ClassResult, Confusion, most_confused
from .page import table
from .plan import ExecutionPlan
from .proofs import Accuracy

_PAIRS: Final = 10
_LEGEND: Final = (
    '<div class="legend"><span><i style="background:var(--blue)"></i>accuracy</span>'
    '<span><i style="background:var(--orange)"></i>mean score</span>'
    '<span><i style="background:var(--muted)"></i>images</span></div>'
)


def accuracy_tile(name: str, found: Accuracy) -> tuple[str, str, str]:
    """A name, the accuracy, and its interval, as `page.tiles` takes them."""
    return (
        name,
        f"{found.accuracy:.2%}",
        f"{found.low:.2%} to {found.high:.2%} (95\u00a0%), {found.correct:,} of {found.images:,}",
    )


def confusion_part(classes: Sequence[ClassResult], confusion: Sequence[Confusion]) -> str:
    """The confusion matrix beside the pairs that were confused most often."""
    chart = f'<div class="scroll">{confusion_chart(classes, confusion)}</div>'
    pairs = most_confused(confusion, _PAIRS)
    if not pairs:
        return f"{chart}<p>No image was given another class than its own.</p>"
    rows = ((escape(pair.truth), escape(pair.label), f"{pair.images:,}") for pair in pairs)
    rows_of_pairs = table(("is", "was called", "images"), rows, numbers_from=2)
    return f'<div class="wide-pair">{chart}<div><h3>Most confused</h3>{rows_of_pairs}</div></div>'


def classes_part(classes: Sequence[ClassResult]) -> str:
    """A row for each class: how many images, how many right, precision and recall."""
    rows = (
        (
            escape(result.label),
            f"{result.images:,}",
            f"{result.correct:,}",
            _share(result.precision),
            _share(result.recall),
        )
        for result in classes
    )
    head = ("class", "images", "right", "precision", "recall")
    return f'<div class="scroll tall">{table(head, rows, numbers_from=1)}</div>'


def reliability_part(panels: Sequence[tuple[str, Calibration]]) -> str:
    """Accuracy against score for each named panel; the last one's numbers stand beside."""
    drawn = "".join(
        f"<div><h3>{escape(name)}: error {found.ece:.4f}</h3>{reliability_chart(found)}</div>"
        for name, found in panels
    )
    rows = (
        (
            f"{part.low:.2f}\u00a0to\u00a0{part.high:.2f}",
            f"{part.images:,}",
            f"{part.score:.3f}",
            f"{part.accuracy:.3f}",
        )
        for part in panels[-1][1].bins
        if part.images
    )
    numbers = table(("score", "images", "mean score", "accuracy"), rows, numbers_from=1)
    kind = "narrow" if len(panels) == 1 else "three"
    return f'{_LEGEND}<div class="pair {kind}">{drawn}<div><h3>In numbers</h3>{numbers}</div></div>'


def plan_facts(plan: ExecutionPlan) -> dict[str, str]:
    """What ran, in words by name."""
    return {
        "bundle": plan.bundle,
        "identity": plan.identity[:16],
        "precision": plan.precision,
        "device": f"{plan.device}: {plan.device_reason}",
        "provider": plan.provider,
        "threads": str(plan.intra_op_threads),
        "temperature": f"{plan.temperature:.4g}",
        "batch size": str(plan.batch_size),
        "decoder": plan.decoder,
        "versions": ", ".join(f"{name} {version}" for name, version in plan.versions.items()),
    }


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return f'<span class="bar" style="--share:{value:.3f}">{value:.2%}</span>'
