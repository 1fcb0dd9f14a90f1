"""The bundle's README: what the classifier is, what it was shown to do, and how to use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from shipnet.runtime.accuracy import wilson_interval
from shipnet.runtime.confusion import ClassResult
from shipnet.runtime.manifest import Manifest, Provenance, Variant

_MOST_CLASSES: Final = 100  # in the table; evidence/parity.json has all


def model_card(manifest: Manifest, classes: Sequence[ClassResult]) -> str:
    """The model card of a bundle, in Markdown.

    Args:
        manifest: says all but how each class fared.
        classes: of fp32, on the evidence half.
    """
    provenance, spec = manifest.provenance, manifest.input
    colour = "grey" if spec.channels == 1 else "RGB"
    shown = ", ".join(manifest.labels[:20]) + (", …" if len(manifest.labels) > 20 else "")
    temperature = manifest.variant("fp32").temperature
    lines = [
        f"# {manifest.name}",
        "",
        f"An image classifier: {_network(provenance)} with {provenance.parameters:,} parameters, "
        f"{len(manifest.labels)} classes.",
        "",
        f"- **Classes**: {shown}",
        f"- **Input**: any image file; the network sees {spec.height} x {spec.width} pixels, {colour}",
        f"- **Trained on**: {_training(provenance)}",
        "",
        "## Evidence",
        "",
        *_evidence_table(manifest.variants),
        "",
        *_evidence_notes(manifest),
        "",
        *_not_certified(manifest),
        "## Classes",
        "",
        *_class_table(classes),
        "",
        "## Use",
        "",
        "```console",
        "$ pip install 'shipnet[cpu]'",
        "$ shipnet verify BUNDLE",
        "$ shipnet classify BUNDLE photo.jpg",
        "```",
        "",
        "```python",
        "from shipnet.runtime import Classifier",
        "",
        "classifier = Classifier.load(BUNDLE)",
        'print(classifier("photo.jpg").label)',
        "```",
        "",
        "## Limits",
        "",
        "- It knows the classes above and no others: every image gets one of them, whatever it shows.",
        "- Its accuracy holds for images like those that it was validated on. It was not measured on others, nor apart",
        "  for groups of people, places or cameras within them.",
        "- Scores are softmax probabilities"
        + (
            ", as the network gives them."
            if temperature == 1.0
            else f", fitted: logits over {temperature:g}."
        ),
        *(f"- **Accepted when it was made**: {doubt}" for doubt in provenance.doubts),
        f"- {provenance.unreadable_images:,} damaged images took no part."
        if provenance.unreadable_images
        else "",
        "",
    ]
    return "\n".join(lines)


def _network(provenance: Provenance) -> str:
    return "an ONNX graph of another exporter" if provenance.source == "onnx" else provenance.arch


def _training(provenance: Provenance) -> str:
    if provenance.epochs is None:
        return f"unknown to shipnet; validated on {provenance.data}"
    images = "?" if provenance.train_images is None else f"{provenance.train_images:,}"
    return f"{provenance.data}, {images} images, {provenance.epochs} epochs, seed {provenance.seed}"


def _evidence_table(variants: tuple[Variant, ...]) -> list[str]:
    rows = [
        "| precision | status | for | accuracy (95 % interval) | validated network | other labels "
        "| largest logit difference, of their scale |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in variants:
        parity = variant.parity
        found, validated = parity.accuracy, parity.reference_accuracy
        rows.append(
            f"| {variant.precision} | {variant.status} | {', '.join(variant.targets)} "
            f"| {found.accuracy:.2%} ({found.low:.2%} to {found.high:.2%}) "
            f"| {validated.accuracy:.2%} | {parity.flips} of {parity.images:,} "
            f"| {parity.differences.max / parity.differences.scale:.1g} |"
        )
    return rows


def _evidence_notes(manifest: Manifest) -> list[str]:
    fp32 = manifest.variant("fp32").parity
    return [
        f"Accuracy was measured on {fp32.accuracy.images:,} validation images, the evidence half, on which no choice",
        f"was made. Labels of fp32 were compared on all {fp32.images:,}, those of the others on the evidence half.",
        "Intervals are Wilson's.",
    ]


def _not_certified(manifest: Manifest) -> list[str]:
    """What a user of a precision that is not certified, or is not there, must know."""
    lines = [
        f"- {variant.precision} is {variant.status}: {reason}."
        for variant in manifest.variants
        for reason in variant.status_reasons
    ]
    lines += [
        f"- {item.precision} was left out: {reason}." for item in manifest.left_out for reason in item.reasons
    ]
    return [*lines, ""] if lines else []


def _class_table(classes: Sequence[ClassResult]) -> list[str]:
    rows = ["| class | images | recall (95 % interval) | precision |", "|---|---|---|---|"]
    for item in classes[:_MOST_CLASSES]:
        if item.images:
            low, high = wilson_interval(item.correct, item.images)
            recall = f"{item.correct / item.images:.1%} ({low:.1%} to {high:.1%})"
        else:
            recall = "no image"
        precision = "never given" if item.precision is None else f"{item.precision:.1%}"
        rows.append(f"| {_cell(item.label)} | {item.images:,} | {recall} | {precision} |")
    more = len(classes) - _MOST_CLASSES
    return rows if more <= 0 else [*rows, "", f"{more:,} more classes are in evidence/parity.json."]


def _cell(text: str) -> str:
    """Text that stays inside its cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|")
