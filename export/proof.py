"""Runs what was exported on real images, on every device here, through the engine that users call."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from shipnet.runtime import Bundle, Classifier, DeviceError
from shipnet.runtime.plan import resolve
from shipnet.runtime.proofs import Budget
from shipnet.train import pixels

from .assemble import draft_manifest
from .config import ExportConfig
from .first_difference import TOLERANCE, first_difference
from .onnx_graph import exported_program
from .parity import Exported, Run, compare_batches, compare_places, prove
from .parity_report import FormatReport, ParityReport
from .source import Indices, OnProgress, Source
from .torch_formats import open_pt2, open_torchscript
from .variants import Candidate

_LOCATED_ON: Final = 4  # images
logger = logging.getLogger(__name__)

_INVARIANCE_SIZES: Final = (2, 3, 7)
_OPENERS: Final = {"torchscript": open_torchscript, "pt2": open_pt2}


def prove_fp32(
    folder: Path,
    source: Source,
    config: ExportConfig,
    *,
    fp32: Candidate,
    interop: dict[str, str],
    on_progress: OnProgress,
) -> ParityReport:
    """Runs the fp32 graph, and what PyTorch's loaders open, on every validation image.

    Args:
        folder: of the bundle that is being made; the files lie in it.
        source: the validated network.
        config: the budget, and the batch sizes.
        fp32: the graph.
        interop: files for PyTorch's loaders, by format.
        on_progress: called as the images go by.
    """
    everything = np.arange(len(source.valid))
    budget = config.budget("fp32")
    with ExitStack() as stack:
        formats = {
            _name("onnx", device): _measured(run, device, source, config, budget=budget, places=True)
            for device, run in stack.enter_context(_engines(folder, source, fp32))
        }
        for name, file in interop.items():
            if name in _OPENERS:
                run = _OPENERS[name](folder / file)
                formats[name] = _measured(run, "cpu", source, config, budget=budget, places=False)
        return _prove(source, formats, everything, on_progress=on_progress, what="prove")


def prove_variant(
    folder: Path, source: Source, config: ExportConfig, *, candidate: Candidate, on_progress: OnProgress
) -> ParityReport:
    """Runs a further precision on the evidence half, on every device here, the CPU first."""
    budget = config.budget(candidate.precision)
    with _engines(folder, source, candidate) as engines:
        formats = {
            _name(candidate.precision, device): _measured(
                run, device, source, config, budget=budget, places=True
            )
            for device, run in engines
        }
        indices = np.sort(source.evidence)
        return _prove(source, formats, indices, on_progress=on_progress, what=f"prove {candidate.precision}")


def locate(source: Source, fp32: Candidate, report: ParityReport, *, on_progress: OnProgress) -> ParityReport:
    """Adds to the report of a failed export which layer of the graph is the first to differ on the CPU.

    Args:
        source: the validated network.
        fp32: the graph that was refused.
        report: whose worst images show the difference.
        on_progress: called before and after.
    """
    network = source.network
    onnx = next(entry for entry in report.formats if entry.format == "onnx")
    if network is None or not onnx.breaches:
        return report
    on_progress("first difference", 0, 1)
    indices = np.array([item.index for item in onnx.worst[:_LOCATED_ON]])
    images = pixels(source.valid, source.spec, indices)
    allowed = onnx.budget.max_relative_difference
    try:
        found = first_difference(
            fp32.model,
            network,
            program=exported_program(network, source.evidence_images(2)),
            images=images,
            indices=indices.tolist(),
            tolerance=TOLERANCE if allowed is None else min(TOLERANCE, allowed),
        )
    except Exception as error:  # noqa: BLE001 - what stops the search must not hide what it was begun for
        logger.warning("the first layer that differs was not found: %s", error)
        found = None
    on_progress("first difference", 1, 1)
    return msgspec.structs.replace(report, first_difference=found)


def of_precision(report: ParityReport, name: str) -> tuple[FormatReport, ...]:
    """The reports of one format on every device, the CPU first."""
    return tuple(entry for entry in report.formats if entry.format.partition(" on ")[0] == name)


def _name(name: str, device: str) -> str:
    return name if device == "cpu" else f"{name} on {device}"


def _prove(
    source: Source, formats: dict[str, Exported], indices: Indices, *, on_progress: OnProgress, what: str
) -> ParityReport:
    chunks = source.chunks(indices, on_progress, what=what)
    return prove(source.reference, formats, chunks, labels=source.labels)


def _measured(
    run: Run, device: str, source: Source, config: ExportConfig, *, budget: Budget, places: bool
) -> Exported:
    """With what batches show, before the images go by one chunk after the other."""
    images = source.evidence_images(max(2, *config.batch_sizes))
    invariance = None
    if places:
        sizes = sorted({*_INVARIANCE_SIZES, *config.batch_sizes} - {1})
        invariance = compare_places(run, images[: max(_INVARIANCE_SIZES)], sizes)
    return Exported(
        run=run,
        device=device,
        budget=budget,
        batches=compare_batches(source.reference, run, images, config.batch_sizes),
        invariance=invariance,
    )


@contextmanager
def _engines(folder: Path, source: Source, candidate: Candidate) -> Iterator[list[tuple[str, Run]]]:
    """The engine that users call, on each device that opens here; the bundle's evidence is still to be found."""
    manifest = draft_manifest(folder, source, candidate)
    bundle = Bundle(path=folder, manifest=manifest, identity="0" * 64)
    with ExitStack() as stack:
        engines: list[tuple[str, Run]] = []
        for device in ("cpu", "cuda"):
            try:
                plan, backend = resolve(bundle, device=device, precision=candidate.precision)
            except DeviceError:
                if device == "cpu":
                    raise
                continue
            engines.append((device, stack.enter_context(Classifier(bundle, plan, backend)).logits))
        yield engines
