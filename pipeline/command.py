"""The command `shipnet pipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shipnet.export.config import ExportConfig
from shipnet.export.options import export_options
from shipnet.runtime.errors import require
from shipnet.train.config import BUILT_IN, CacheConfig, TrainConfig
from shipnet.train.options import cache_options, training_options

if TYPE_CHECKING:
    from .workflow import Outcome


@click.command()
@training_options
@cache_options
@export_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Output folder [default: artifacts/NAME, the data set's name]",
)
@click.option("--force", is_flag=True, help="Repeat stages whose inputs and options are unchanged.")
@click.option("--resume", is_flag=True, help="Go on with a training that was stopped, after its last epoch.")
def pipeline(
    config: TrainConfig,
    cache: CacheConfig,
    export_config: ExportConfig,
    out: Path | None,
    force: bool,
    resume: bool,
) -> None:
    """Train, export, verify and benchmark, by one command.

    With no option: a ResNet on scikit-learn's digits, into artifacts/digits. Stages that are finished and whose
    inputs are unchanged are skipped; the last line printed is the bundle's path.
    """
    for module in ("torch", "torchvision", "onnx", "onnxscript", "safetensors", "matplotlib", "onnxruntime"):
        require(module)
    from shipnet.runtime import render

    from .progress import ProgressView
    from .workflow import FitOptions, PipelineConfig, run_pipeline

    target = out or Path("artifacts") / default_name(config.data.data)
    with ProgressView() as view:
        options = FitOptions(resume=resume, cache=cache)
        outcome = run_pipeline(
            PipelineConfig(train=config, export=export_config),
            target,
            force=force,
            fit_options=options,
            on_stage=view,
        )
    render.show(*summary(outcome))


def default_name(data: str) -> str:
    """The output folder's name: a built-in data set's, or the folder's own."""
    return data if data in BUILT_IN else Path(data).resolve().name or "data"


def summary(outcome: Outcome) -> list[str]:
    """What came out, a line each; the command to try next; last the bundle's path."""
    from shipnet.runtime.render import variants_lines

    manifest, report = outcome.bundle.manifest, outcome.report
    parity = manifest.variant("fp32").parity
    model = next(entry for entry in manifest.files if entry.path == manifest.variant("fp32").file)
    found, worst = parity.accuracy, max(parity.batches, key=lambda row: row.max_relative_difference)
    latency = ", ".join(
        f"{row.median_ms:.3g} ms at batch {row.batch_size} ({row.images_per_s:,.0f} images/s)"
        for row in report.batches
    )
    sample = next(iter(sorted((outcome.out / "samples").iterdir())), None)
    return [
        f"accuracy  {found.accuracy:.2%} ({found.low:.2%} to {found.high:.2%}, 95 % interval) "
        f"on {found.images:,} validation images",
        f"parity    {parity.flips} of {parity.images:,} decisions differ from PyTorch; "
        f"logits differ by {worst.max_relative_difference:.1g} of their scale",
        *(f"{'' if line.startswith(' ') else 'variant':10}{line}" for line in variants_lines(manifest)),
        f"latency   median {latency}",
        f"size      {model.size_bytes / 1e6:.3g} MB for the model, "
        f"{outcome.bundle.size_bytes / 1e6:.3g} MB for the bundle",
        f"time      {outcome.wall_s:.0f} s"
        + (f", skipped: {', '.join(outcome.skipped)}" if outcome.skipped else ""),
        f"reports   {outcome.out / 'run' / 'report.html'}, {outcome.out / 'export-report.html'}",
        "",
        "try       " + f"shipnet classify {outcome.bundle.path} {sample.parent if sample else 'FOLDER'}",
        str(outcome.bundle.path),
    ]
