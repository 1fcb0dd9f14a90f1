"""The precisions of a network: each a graph of its own, made from the fp32 one, waiting to be proved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import msgspec

from shipnet.runtime.manifest import LeftOut, Quantization, Target, Variant

from .config import REPLAY_TOLERANCE, ExportConfig
from .onnx_graph import versions
from .parity import FormatReport
from .source import OnProgress, Source


@dataclass(frozen=True, slots=True)
class Candidate:
    """A precision that is made and not proved yet.

    Attributes:
        model: a serialised ONNX model.
        targets, needs, temperature, quantization: as in `Variant`.
    """

    precision: str
    model: bytes
    targets: tuple[Target, ...]
    temperature: float
    needs: tuple[Literal["vnni"], ...] = ()
    quantization: Quantization | None = None

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
    """The further precisions that were asked for, one after the other, or why one cannot be made."""
    del source, fp32, on_progress
    yield from (LeftOut(precision=name, reasons=("not built yet",)) for name in config.variants)


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
