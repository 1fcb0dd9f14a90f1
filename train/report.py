"""A run as one page to read and to pass on: `report.html`, which loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from shipnet.runtime.charts import line_chart
from shipnet.runtime.page import card, cards, page, section, table, tiles, warning
from shipnet.runtime.quality import accuracy_tile, classes_part, confusion_part, reliability_part

from .evaluation import RunEvaluation, TopLoss
from .examples import Examples, draw_examples
from .images import Dataset, pixels
from .run import RunRecord

REPORT: Final = "report.html"
_EXAMPLES = 24
_NAMED = 5  # damaged files


def write_report(folder: Path, record: RunRecord, dataset: Dataset) -> None:
    """Writes `report.html` into a run's folder.

    Args:
        folder: of the run.
        record: what is reported.
        dataset: whose images are shown: the top losses, and augmented training images.

    Raises:
        ImageError: a file that is no image.
    """
    worst = np.array([item.index for item in record.evaluation.top_losses])
    pictures = pixels(dataset.valid, dataset.spec, worst)
    augmented, _ = draw_examples(dataset, record.config, _EXAMPLES)
    (folder / REPORT).write_text(report_html(record, pictures, augmented), encoding="utf-8")


def report_html(record: RunRecord, worst: NDArray[np.uint8], augmented: Examples) -> str:
    """The page.

    Args:
        record: what is reported.
        worst: of the record's top losses, in their order, uint8 (N, H, W, C).
        augmented: training images.
    """
    found = record.evaluation
    sections = (
        _tiles(record),
        _warnings(record),
        section("Training", _curves(record), note=_training_note(record)),
        section("Confusion", confusion_part(found.classes, found.confusion), note=_measured_on(record)),
        section("Classes", classes_part(found.classes)),
        section("Highest losses", _top_losses(found.top_losses, worst), note=_LOSS_NOTE),
        section("Can the scores be believed?", _reliability(found), note=_temperature_note(found)),
        section("What the network was trained on", _gallery(augmented), note="Augmented training images."),
        section("How it was made", _provenance(record)),
    )
    created = record.created_utc.replace("T", " ").replace("+00:00", " UTC")
    return page(record.data, f"{record.arch}, trained {created}", sections, image_size=max(worst.shape[1:3]))


_LOSS_NOTE: Final = (
    "The validation images that the network finds least likely to be what their label says: its hardest "
    "cases, or wrong labels."
)


def _tiles(record: RunRecord) -> str:
    found = record.evaluation
    shown = [accuracy_tile("Validation accuracy", found.accuracy)]
    if found.test is not None:
        shown.append(accuracy_tile("Test accuracy", found.test))
    shown += [
        ("Calibration error", f"{found.calibrated.ece:.4f}", _ece_detail(found)),
        ("Images", f"{record.train_images:,}", f"for training, {record.valid_images:,} for validation"),
        ("Classes", f"{len(record.labels):,}", _size(record)),
        ("Parameters", _thousands(record.parameters), escape(record.arch)),
        ("Time", _duration(record.wall_s), escape(record.device)),
    ]
    return tiles(shown)


def _size(record: RunRecord) -> str:
    spec = record.preprocess
    return f"{spec.width} × {spec.height} pixels, {'grey' if spec.channels == 1 else 'colour'}"


def _ece_detail(found: RunEvaluation) -> str:
    bins = f"ECE, {len(found.calibrated.bins)} bins"
    return bins if found.temperature == 1.0 else f"{bins}; {found.uncalibrated.ece:.4f} without temperature"


def _warnings(record: RunRecord) -> str:
    """What was odd about the data; of damaged files the names alone, since a warning holds their whole path."""
    told = [text for text in record.warnings if not any(name in text for name in record.unreadable)]
    if record.unreadable:
        more = ", ..." if len(record.unreadable) > _NAMED else ""
        names = ", ".join(record.unreadable[:_NAMED]) + more
        told.append(f"images that cannot be read and were left out: {len(record.unreadable):,} ({names})")
    return warning("About the data", told)


def _training_note(record: RunRecord) -> str:
    if record.selection is None:
        return f"{_epochs(record.epochs)}; the weights are the last one's.{_smoothing_note(record)}"
    chosen = record.selection
    return (
        f"{_epochs(record.epochs)}; the weights are those of epoch {chosen.epoch}. Epochs were measured on the "
        f"{chosen.images:,} validation images that chose; the accuracy above is that of the others."
        f"{_smoothing_note(record)}"
    )


def _smoothing_note(record: RunRecord) -> str:
    """Why the training loss stands above the other."""
    share = record.config.label_smoothing
    return (
        f" The training loss is that of labels smoothed by {share:g}, so it never comes near 0."
        if share
        else ""
    )


def _curves(record: RunRecord) -> str:
    history = record.history
    trained = "training, smoothed" if record.config.label_smoothing else "training, augmented"
    loss = line_chart(
        {
            trained: [epoch.train_loss for epoch in history],
            "validation": [epoch.valid_loss for epoch in history],
        },
        ylabel="Cross-entropy",
    )
    accuracy = line_chart(
        {"validation": [epoch.accuracy for epoch in history]}, ylabel="Accuracy", percent=True
    )
    rate = line_chart(
        {"last of the epoch": [epoch.learning_rate for epoch in history]}, ylabel="Learning rate"
    )
    rows = (
        (
            str(epoch.epoch),
            f"{epoch.train_loss:.4f}",
            f"{epoch.valid_loss:.4f}",
            f"{epoch.accuracy:.2%}",
            f"{epoch.learning_rate:.2g}",
            f"{epoch.wall_s:.1f}",
        )
        for epoch in history
    )
    head = ("epoch", "training loss", "validation loss", "accuracy", "last rate", "seconds")
    numbers = table(head, rows, numbers_from=0)
    return (
        f'<div class="pair three"><div>{loss}</div><div>{accuracy}</div><div>{rate}</div></div>'
        f'<details><summary>{_epochs(len(history))} in numbers</summary><div class="scroll">{numbers}</div></details>'
    )


def _measured_on(record: RunRecord) -> str:
    return (
        f"On {record.evaluation.accuracy.images:,} validation images; shade is the share of the true class."
    )


def _top_losses(items: Sequence[TopLoss], pictures: NDArray[np.uint8]) -> str:
    return cards(
        card(
            picture,
            f"<b>{escape(item.truth)}</b> called <b>{escape(item.label)}</b>"
            if item.truth != item.label
            else f"<b>{escape(item.truth)}</b>, right",
            f"score {item.score:.3f}, loss {item.loss:.2f}",
            title=item.name,
        )
        for item, picture in zip(items, pictures, strict=True)
    )


def _gallery(found: Examples) -> str:
    return cards(
        card(image, escape(label), "", title=label)
        for image, label in zip(found.images, found.labels, strict=True)
    )


def _temperature_note(found: RunEvaluation) -> str:
    shown = f"These {found.calibrated.images:,} validation images are the half that played no part in that."
    if found.temperature == 1.0:
        return f"The scores are the softmax as it is: the other half gave no ground to change them. {shown}"
    return (
        f"Logits are divided by a temperature of {found.temperature:.4g}, fitted on one half of the validation "
        f"images. {shown}"
    )


def _reliability(found: RunEvaluation) -> str:
    panels = [("As they are" if found.temperature == 1.0 else "Without the temperature", found.uncalibrated)]
    if found.temperature != 1.0:
        panels.append(("With the temperature", found.calibrated))
    return reliability_part(panels)


def _provenance(record: RunRecord) -> str:
    chosen = msgspec.to_builtins(record.config)
    data = chosen.pop("data")
    chosen["weights"] = chosen["weights"] and Path(chosen["weights"]).name  # never a local path
    settings = {**chosen, "val_fraction": data["val_fraction"], "split_seed": data["seed"]}
    facts = {
        "data": f"{record.data}, fingerprint {record.data_fingerprint[:16]}",
        "device": record.device,
        "git commit": record.git_commit or "unknown",
        "weights (sha256)": record.weights_sha256[:16],
        **record.versions,
    }
    left = table(("", ""), ((escape(key), escape(str(value))) for key, value in facts.items()))
    rows = (
        (escape(key), escape(_plain(value)))
        for key, value in settings.items()
        if value is not None and value is not False
    )
    return f'<div class="pair"><div>{left}</div><div>{table(("", ""), rows)}</div></div>'


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count:,} epochs"


def _thousands(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count >= 1_000_000 else f"{count:,}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
