"""The bundle's README: what the classifier is, what it was shown to do, and how to use it."""

from __future__ import annotations

from shipnet.runtime.manifest import Manifest, Provenance, Variant


def model_card(manifest: Manifest) -> str:
    """The model card of a bundle, in Markdown."""
    provenance, spec = manifest.provenance, manifest.input
    colour = "grey" if spec.channels == 1 else "RGB"
    shown = ", ".join(manifest.labels[:20]) + (", …" if len(manifest.labels) > 20 else "")
    temperature = manifest.variant("fp32").temperature
    lines = [
        f"# {manifest.name}",
        "",
        f"An image classifier: {provenance.arch} with {provenance.parameters:,} parameters, "
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
        "The classifier knows the classes above and no others: every image gets one of them. Its accuracy holds for",
        "images like those it was validated on. Scores are softmax probabilities"
        + (
            ", not calibrated."
            if temperature == 1.0
            else f" at temperature {manifest.variant('fp32').temperature:g}."
        ),
        "",
    ]
    return "\n".join(lines)


def _training(provenance: Provenance) -> str:
    if provenance.epochs is None:
        return f"unknown to shipnet; validated on {provenance.data}"
    images = "?" if provenance.train_images is None else f"{provenance.train_images:,}"
    return f"{provenance.data}, {images} images, {provenance.epochs} epochs, seed {provenance.seed}"


def _evidence_table(variants: tuple[Variant, ...]) -> list[str]:
    rows = [
        "| precision | accuracy (95 % interval) | trained network | other labels than PyTorch "
        "| largest logit difference |",
        "|---|---|---|---|---|",
    ]
    for variant in variants:
        parity = variant.parity
        found, trained = parity.accuracy, parity.reference_accuracy
        difference = max((row.max_difference for row in parity.batches), default=0.0)
        rows.append(
            f"| {variant.precision} | {found.accuracy:.2%} ({found.low:.2%} to {found.high:.2%}) "
            f"| {trained.accuracy:.2%} | {parity.flips} of {parity.images:,} | {difference:.2g} |"
        )
    return rows


def _evidence_notes(manifest: Manifest) -> list[str]:
    parity = manifest.variants[0].parity
    return [
        f"Labels were compared on {parity.images:,} validation images, accuracy was measured on those "
        f"{parity.accuracy.images:,}",
        "of them that no choice was made on. The interval is Wilson's.",
    ]
