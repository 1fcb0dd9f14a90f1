"""The precisions of a network: each a graph of its own, made from the fp32 one, waiting to be proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Final

import msgspec
import numpy as np
import onnx

from shipnet.runtime import BundleError
from shipnet.runtime.machine import unmet_needs
from shipnet.runtime.manifest import LeftOut, Need, Quantization, Target, Variant
from shipnet.train.temperature import fit_temperature

from .calibration import Calibration, calibrate
from .config import REPLAY_TOLERANCE, ExportConfig
from .fp16 import to_fp16
from .int8 import Recipe, quantizable, ranged_tensors
from .onnx_graph import versions
from .parity_report import FormatReport
from .rewrite import CannotMakeError, lacking, norms_as_convolutions, prepared
from .search import Search, Selection, runner, search, select
from .source import OnProgress, Source

_PEAK_BATCHES: Final = 4  # of the selection, that show fp16 how large activations get


@dataclass(frozen=True, slots=True)
class Candidate:
    """A precision that is made and not proved yet.

    Attributes:
        model: a serialised ONNX model.
        targets, needs, temperature, quantization: as in `Variant`.
        search: how an int8 variant was chosen.
    """

    precision: str
    model: bytes
    targets: tuple[Target, ...]
    temperature: float
    needs: tuple[Need, ...] = ()
    quantization: Quantization | None = None
    search: Search | None = None

    @property
    def file(self) -> str:
        """Its place in the bundle."""
        return f"model/{self.precision}.onnx"


def fp32_candidate(source: Source, config: ExportConfig, on_progress: OnProgress) -> Candidate:
    """The network as it was validated, as an ONNX graph.

    Raises:
        ParityError: the exporter gave a graph that breaks the bundle's rules.
    """
    on_progress("onnx", 0, 1)
    metadata = {
        "shipnet.name": source.name,
        "shipnet.labels": msgspec.json.encode(source.labels).decode(),
        "shipnet.preprocess": msgspec.json.encode(source.spec).decode(),
    }
    model = source.to_onnx(source.evidence_images(max(2, *config.batch_sizes)), metadata)
    on_progress("onnx", 1, 1)
    return Candidate("fp32", model, ("cpu", "cuda", "tensorrt"), source.temperature)


def make_variants(
    source: Source, config: ExportConfig, fp32: Candidate, on_progress: OnProgress
) -> Iterator[Candidate | LeftOut]:
    """The further precisions that were asked for, one after the other, or why one cannot be made.

    All that is chosen is chosen on training images and on the selection half.

    Args:
        source: the validated network and its images.
        config: which precisions, and how.
        fp32: the graph that they are made from.
        on_progress: called as they are made.
    """
    if not config.variants:
        return
    try:
        model = prepared(fp32.model)
    except CannotMakeError as error:
        yield from (LeftOut(precision=name, reasons=(str(error),)) for name in config.variants)
        return
    workshop = _Workshop(source, config, model, on_progress)
    for precision in config.variants:
        try:
            yield workshop.fp16() if precision == "fp16" else workshop.int8(precision)
        except (CannotMakeError, BundleError) as error:  # the latter: onnxruntime cannot open it
            yield LeftOut(precision=precision, reasons=(str(error),))


class _Workshop:
    """What several precisions are made from, each part made once."""

    def __init__(
        self, source: Source, config: ExportConfig, model: onnx.ModelProto, on_progress: OnProgress
    ) -> None:
        self.source, self.config, self.model, self.on_progress = source, config, model, on_progress
        self._calibration: Calibration | None = None

    @cached_property
    def _cpu_model(self) -> onnx.ModelProto:
        return norms_as_convolutions(self.model)

    @cached_property
    def selection(self) -> Selection:
        """Images to choose on."""
        return select(self.source, self.on_progress)

    def fp16(self) -> Candidate:
        """For CUDA, and for TensorRT where it has every operator."""
        self.on_progress("fp16", 0, 1)
        targets: tuple[Target, ...] = ("cuda",) if lacking(self.model, "tensorrt") else ("cuda", "tensorrt")
        graph = to_fp16(self.model, islice(self.selection.batches(), _PEAK_BATCHES))
        temperature = self._temperature("fp16", graph)
        self.on_progress("fp16", 1, 1)
        return Candidate("fp16", graph, targets, temperature)

    def int8(self, precision: str) -> Candidate:
        """For the CPU, or for TensorRT."""
        tensorrt, reduce_range = precision == "int8-tensorrt", self.config.reduce_range
        recipe = Recipe(symmetric=tensorrt, reduce_range=reduce_range and not tensorrt)
        needs: tuple[Need, ...] = () if tensorrt or reduce_range else ("vnni",)
        model = self.model if tensorrt else self._cpu_model
        self._refuse(precision, needs)
        calibration = self._calibrate()
        graph, found = search(
            model,
            calibration,
            self.selection,
            recipe=recipe,
            budget=self.config.budget(precision),
            precision=precision,
            on_progress=self.on_progress,
        )
        return Candidate(
            precision,
            graph,
            ("tensorrt",) if tensorrt else ("cpu",),
            self._temperature(precision, graph),
            needs=needs,
            quantization=Quantization(
                method=found.method,
                calibration_images=calibration.images,
                reduce_range=recipe.reduce_range,
                symmetric=recipe.symmetric,
                fp32_nodes=tuple(step.node for step in found.steps if step.kept),
            ),
            search=found,
        )

    def _refuse(self, precision: str, needs: tuple[Need, ...]) -> None:
        """What can be told before the images are run."""
        missing = lacking(self.model, "tensorrt") if precision == "int8-tensorrt" else []
        if missing:
            raise CannotMakeError(f"TensorRT has no operator {', '.join(missing)}")
        if not quantizable(self.model, Recipe(symmetric=precision == "int8-tensorrt")):
            raise CannotMakeError("the graph has no layer that can run in 8 bits")
        for reason in unmet_needs(needs):
            raise CannotMakeError(f"it cannot be proved here: {reason}")

    def _calibrate(self) -> Calibration:
        """Ranges for every int8 recipe at once."""
        if self._calibration is None:
            tensors = [
                *ranged_tensors(self._cpu_model, Recipe()),
                *ranged_tensors(self.model, Recipe(symmetric=True)),
            ]
            self._calibration = calibrate(
                self.model,
                list(dict.fromkeys(tensors)),
                self.source,
                images=self.config.calibration_images,
                on_progress=self.on_progress,
            )
        return self._calibration

    def _temperature(self, precision: str, graph: bytes) -> float:
        """Fitted to this graph's logits as the run fitted that of fp32: on the selection half.

        Where these images cannot tell it from chance it is that of fp32, so that scores mean the same.
        """
        run, source = runner(graph), self.source
        logits, labels = [], []
        for chunk in source.chunks(source.selection, self.on_progress, what=f"temperature {precision}"):
            logits.append(run(chunk.images))
            labels.append(chunk.labels)
        found = np.concatenate(logits)
        if not np.isfinite(found).all():
            raise CannotMakeError("it gives NaN or infinite logits on validation images")
        fitted = fit_temperature(found, np.concatenate(labels))
        return source.temperature if fitted == 1.0 else fitted


def judge(candidate: Candidate, reports: tuple[FormatReport, ...], config: ExportConfig) -> Variant | LeftOut:
    """What becomes of a candidate that was proved on every device here.

    Args:
        candidate: that was proved.
        reports: of each device, the CPU first. The CPU runs every graph, so that what precision does to decisions
            is known; whether the kernels of another target do the same, only that target can say.
        config: holds the budgets, and whether a variant may ship uncertified.

    Returns:
        The variant, or why it is left out: it breaks its budget on a device, or the images cannot
        carry the claim and the export was not told to accept that.
    """
    here = [report for report in reports if report.parity.device in candidate.targets]
    judged = here or list(reports)
    broken = [f"on {r.parity.device}: {phrase}" for r in judged for phrase in r.breaches]
    too_few = [f"on {r.parity.device}: {phrase}" for r in judged for phrase in r.uncarried]
    if broken or (too_few and not config.accept_uncertified):
        return LeftOut(precision=candidate.precision, reasons=tuple(broken + too_few))
    absent = "" if here else f"none of its targets ({', '.join(candidate.targets)}) was there to prove it"
    reasons = [*too_few, *([absent] if absent else [])]
    opset, ir_version = versions(candidate.model)
    return Variant(
        precision=candidate.precision,
        file=candidate.file,
        targets=candidate.targets,
        needs=candidate.needs,
        opset=opset,
        ir_version=ir_version,
        temperature=candidate.temperature,
        status="unproved" if absent else "uncertified" if too_few else "certified",
        status_reasons=tuple(reasons),
        replay_tolerance=REPLAY_TOLERANCE[candidate.precision],
        budget=config.budget(candidate.precision),
        parities=tuple(report.parity for report in reports),
        quantization=candidate.quantization,
    )
