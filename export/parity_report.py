"""What a comparison with the validated network found, as evidence that a bundle carries."""

from __future__ import annotations

from msgspec import Struct

from shipnet.runtime.confusion import ClassResult
from shipnet.runtime.proofs import Budget, Parity


class Disagreement(Struct, frozen=True, kw_only=True):
    """One image on which a format differs, with both sides' logits.

    Attributes:
        index: in the validation images' order.
        evidence: whether it belongs to the evidence half.
        exported_label: None where a logit is NaN or infinite: the runtime gives such an image no label.
        margin: between the two highest logits of the validated network.
        max_difference: the largest absolute logit difference on this image; the largest float32 where a logit
            is NaN or infinite.
        exported_logits: None where one is NaN or infinite.
    """

    index: int
    evidence: bool
    true_label: str
    reference_label: str
    exported_label: str | None
    margin: float
    max_difference: float
    reference_logits: tuple[float, ...]
    exported_logits: tuple[float | None, ...]


class FormatReport(Struct, frozen=True, kw_only=True):
    """One format's evidence: what it proved, what it broke, and its worst images.

    Attributes:
        format: "onnx", "torchscript", "pt2", or a variant's precision.
        breaches: what of the budget it broke, a phrase each.
        uncarried: claims of the budget that the images are too few to carry, a phrase each.
        classes: how each class fared on the evidence half.
        flips: images that got another label, those of the largest margin first, 100 at most.
        worst: images with the largest logit differences.
    """

    format: str
    budget: Budget
    parity: Parity
    breaches: tuple[str, ...]
    uncarried: tuple[str, ...]
    classes: tuple[ClassResult, ...]
    flips: tuple[Disagreement, ...]
    worst: tuple[Disagreement, ...]


class FirstDifference(Struct, frozen=True, kw_only=True):
    """The first layer, in the graph's order, whose output is not PyTorch's.

    Attributes:
        layers: the PyTorch modules that the node computes, in order; more than one where the exporter merged
            them, as a convolution with its batch norm. "normalization": what stands in front of the network.
        operations: what they do there, as PyTorch names it.
        node, op_type: of the ONNX graph.
        weights: initializers that the node reads.
        image: index of the image in the validation images' order.
        place: of the value that differs most, in the layer's output for that image.
        expected: PyTorch's value there.
        found: the graph's; None where it is NaN or infinite.
        max_relative_difference: the largest absolute difference over the largest absolute value of the layer's
            output; the largest float32 stands for NaN and infinity.
        tolerance: what it may be.
        compared: layers that were compared.
        differing: how many of them differ, this one included.
    """

    layers: tuple[str, ...]
    operations: tuple[str, ...]
    node: str
    op_type: str
    weights: tuple[str, ...]
    image: int
    place: tuple[int, ...]
    expected: float
    found: float | None
    max_relative_difference: float
    tolerance: float
    compared: int
    differing: int

    def __str__(self) -> str:
        """What a message says of it."""
        found = "NaN or infinity" if self.found is None else f"{self.found:.7g}"
        others = self.differing - 1
        rest = f"; {others} later of {self.compared} layers too" if others else ""
        return (
            f"the first layer that differs is {' with '.join(self.layers)} (ONNX node {self.node}, {self.op_type}): "
            f"at {list(self.place)} of validation image {self.image} it gives {found} where PyTorch gives "
            f"{self.expected:.7g}{rest}"
        )


class ParityReport(Struct, frozen=True, kw_only=True):
    """Every format's evidence.

    Attributes:
        formats: that were run.
        first_difference: where the ONNX graph departs from PyTorch, looked for when the export failed by its
            numbers; None also where every layer by itself agrees, and where there is no network in PyTorch.
    """

    formats: tuple[FormatReport, ...]
    first_difference: FirstDifference | None = None
