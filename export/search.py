"""How an int8 variant finds its ranges and its fp32 layers: on the selection half, never on the evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from msgspec import Struct
from numpy.typing import NDArray

from shipnet.runtime.backends.ort import PROVIDERS, OrtBackend
from shipnet.runtime.machine import available_cores
from shipnet.runtime.manifest import Method
from shipnet.runtime.proofs import Budget
from shipnet.train import pixels
from shipnet.train.images import IN_MEMORY_SIDE

from .calibration import METHODS, Calibration, Ranges, stratified
from .int8 import Recipe, quantizable, quantize
from .parity import Images, Logits, Run, decisions, differences
from .source import OnProgress, Source

# A photograph takes a hundred times as long as a digit, and every trial runs all of them.
MOST_SMALL: Final = 5000
MOST_PHOTOS: Final = 256
# Layers that are tried in fp32, at most, the worst first.
MOST_TRIALS: Final = 24
_RANKING_IMAGES: Final = 16
# What the quantiser merges into the node before, or what only moves values.
_MERGED: Final = ("Relu", "Clip", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose")
_BATCH: Final = 32


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a graph answers the images of the selection, beside the validated network.

    Attributes:
        flips: images that got another label.
        top1_drop: the share of images by which accuracy fell.
        difference: the mean absolute logit difference over the logits' scale.
    """

    flips: int
    top1_drop: float
    difference: float

    @property
    def rank(self) -> tuple[int, float]:
        """The lower, the closer."""
        return self.flips, self.difference


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Images of the selection half with the validated network's answers, all in memory.

    Attributes:
        images: uint8 (N, H, W, C).
        labels: int64 (N,).
        expected: float32 (N, K), the validated network's logits.
    """

    images: Images
    labels: NDArray[np.int64]
    expected: Logits

    def agreement(self, run: Run) -> Agreement:
        """Runs a graph on every image."""
        found = np.concatenate([run(batch) for batch in self.batches()])
        scale = max(float(np.abs(self.expected).max()), float(np.finfo(np.float32).tiny))
        before, now = decisions(self.expected), decisions(found)
        lost = int((before == self.labels).sum()) - int((now == self.labels).sum())
        return Agreement(
            flips=int((before != now).sum()),
            top1_drop=lost / len(self.labels),
            difference=float(differences(self.expected, found).mean()) / scale,
        )

    def keeps(self, budget: Budget, found: Agreement) -> bool:
        """Whether the point estimates hold a budget."""
        return (
            found.flips / len(self.labels) <= budget.max_flip_rate and found.top1_drop <= budget.max_top1_drop
        )

    def first(self, count: int) -> Selection:
        """Its first images."""
        return Selection(self.images[:count], self.labels[:count], self.expected[:count])

    def batches(self) -> Iterator[Images]:
        """The images, some at a time."""
        for first in range(0, len(self.images), _BATCH):
            yield self.images[first : first + _BATCH]


class MethodTried(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A way to set ranges, and how the graph with every layer in int8 agreed."""

    method: Method
    flips: int
    top1_drop: float
    difference: float


class Step(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A layer that was tried in fp32.

    Attributes:
        node, op_type: the layer.
        kept: whether it stays in fp32; it does where the graph agrees better with it.
        flips_before, flips_after: images of the selection with another label.
        difference_before, difference_after: mean logit difference over the logits' scale.
    """

    node: str
    op_type: str
    kept: bool
    flips_before: int
    flips_after: int
    difference_before: float
    difference_after: float


class Search(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How an int8 variant was chosen.

    Attributes:
        images: of the selection half, that it was chosen on.
        calibration_images: that ranges were measured on.
        unreadable_images: calibration images that could not be read and were passed over.
        budget: that was to hold.
        methods: that were tried, and the one that agreed best.
        steps: layers that were tried in fp32, in that order; empty where the budget held at once.
        flips, top1_drop, difference: of the graph that was chosen.
        holds: whether its point estimates hold the budget on these images.
    """

    precision: str
    images: int
    calibration_images: int
    unreadable_images: int
    budget: Budget
    methods: tuple[MethodTried, ...]
    method: Method
    steps: tuple[Step, ...]
    flips: int
    top1_drop: float
    difference: float
    holds: bool


class QuantizationReport(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The searches of every int8 variant that was made, also of one that was left out."""

    searches: tuple[Search, ...]


def select(source: Source, on_progress: OnProgress) -> Selection:
    """Draws images of the selection half and asks the validated network.

    Of small images 5,000 at most, of photographs 256, as many of each class as can be: each is run again for
    every method and every layer that is tried.

    Raises:
        ImageError: one cannot be read, naming it.
    """
    small = max(source.spec.height, source.spec.width) <= IN_MEMORY_SIDE
    labels = source.valid.labels[source.selection]
    drawn = stratified(labels, MOST_SMALL if small else MOST_PHOTOS, source.provenance.split_seed)
    chosen = source.selection[drawn]
    images = pixels(source.valid, source.spec, chosen)
    expected = []
    for first in range(0, len(chosen), _BATCH):
        on_progress("selection", first, len(chosen))
        expected.append(source.reference(images[first : first + _BATCH]))
    on_progress("selection", len(chosen), len(chosen))
    return Selection(images=images, labels=labels[drawn], expected=np.concatenate(expected))


def search(
    model: onnx.ModelProto,
    calibration: Calibration,
    selection: Selection,
    *,
    recipe: Recipe,
    budget: Budget,
    precision: str,
    on_progress: OnProgress,
) -> tuple[bytes, Search]:
    """Finds the ranges, and the layers that must stay in fp32, with which int8 decides as the validated network.

    The method is the one of fewest flips, then of the least logit difference. Where the budget's point estimates
    do not hold, the layers that change the logits most are tried in fp32, one after the other, 24 at most;
    one stays there if the graph agrees better for it.

    Args:
        model: the fp32 graph as `prepared` gives it.
        calibration: ranges of `ranged_tensors`.
        selection: images to choose on.
        recipe: how activations and weights become 8 bits.
        budget: that is to hold.
        precision: the variant's name.
        on_progress: called as methods and layers are tried.

    Returns:
        The serialised int8 graph, and how it was found.

    Raises:
        CannotMakeError: the quantiser gave an invalid graph.
    """
    tried: dict[Method, _Trial] = {}
    for number, method in enumerate(METHODS):
        on_progress(f"choose {precision}", number, len(METHODS))
        tried[method] = _try(quantize(model, calibration.ranges[method], recipe), selection)
    on_progress(f"choose {precision}", len(METHODS), len(METHODS))
    method = min(tried, key=lambda name: tried[name].agreement.rank)
    ranges, best = calibration.ranges[method], tried[method]
    steps: tuple[Step, ...] = ()
    if not selection.keeps(budget, best.agreement):
        best, steps = _mend(
            best,
            lambda names: _try(quantize(model, ranges, recipe, fp32_nodes=names), selection),
            rank_layers(model, ranges, selection, recipe)[:MOST_TRIALS],
            enough=lambda found: selection.keeps(budget, found),
            on_progress=lambda done, total: on_progress(f"mend {precision}", done, total),
        )
    return best.graph, Search(
        precision=precision,
        images=len(selection.labels),
        calibration_images=calibration.images,
        unreadable_images=calibration.unreadable_images,
        budget=budget,
        methods=tuple(
            MethodTried(
                method=name,
                flips=trial.agreement.flips,
                top1_drop=trial.agreement.top1_drop,
                difference=trial.agreement.difference,
            )
            for name, trial in tried.items()
        ),
        method=method,
        steps=steps,
        flips=best.agreement.flips,
        top1_drop=best.agreement.top1_drop,
        difference=best.agreement.difference,
        holds=selection.keeps(budget, best.agreement),
    )


def rank_layers(
    model: onnx.ModelProto, ranges: Ranges, selection: Selection, recipe: Recipe
) -> list[onnx.NodeProto]:
    """The layers that can be tried in fp32, those first that change the logits most when they alone are in int8.

    Args:
        model: the fp32 graph.
        ranges: of `ranged_tensors`.
        selection: of which a few images are run.
        recipe: how activations and weights become 8 bits.

    Source: H. Wu et al., "Integer Quantization for Deep Learning Inference", arXiv:2004.09602, section 6.1,
    "Partial Quantization".
    """
    nodes = quantizable(model, recipe)
    few = selection.first(_RANKING_IMAGES)

    def error(node: onnx.NodeProto) -> float:
        others = {other.name for other in nodes} - {node.name}
        return few.agreement(runner(quantize(model, ranges, recipe, fp32_nodes=others))).difference

    return sorted((node for node in nodes if node.op_type not in _MERGED), key=error, reverse=True)


def runner(graph: bytes) -> Run:
    """A serialised graph as a function from uint8 images to logits, on the CPU.

    Raises:
        BundleError: onnxruntime cannot open it.
    """
    threads = available_cores().usable
    return OrtBackend.open(graph, provider=PROVIDERS["cpu"], intra_op_threads=threads).run


@dataclass(frozen=True, slots=True)
class _Trial:
    graph: bytes
    agreement: Agreement


def _try(graph: bytes, selection: Selection) -> _Trial:
    return _Trial(graph, selection.agreement(runner(graph)))


def _mend(
    best: _Trial,
    attempt: Callable[[tuple[str, ...]], _Trial],
    layers: list[onnx.NodeProto],
    *,
    enough: Callable[[Agreement], bool],
    on_progress: Callable[[int, int], None],
) -> tuple[_Trial, tuple[Step, ...]]:
    """Tries one layer after the other in fp32, beside those that stayed there, until it is enough."""
    steps: list[Step] = []
    for number, node in enumerate(layers):
        on_progress(number, len(layers))
        trial = attempt((*(step.node for step in steps if step.kept), node.name))
        before, after = best.agreement, trial.agreement
        kept = after.rank < before.rank
        steps.append(
            Step(
                node=node.name,
                op_type=node.op_type,
                kept=kept,
                flips_before=before.flips,
                flips_after=after.flips,
                difference_before=before.difference,
                difference_after=after.difference,
            )
        )
        if kept:
            best = trial
        if enough(best.agreement):
            break
    on_progress(len(layers), len(layers))
    return best, tuple(steps)
