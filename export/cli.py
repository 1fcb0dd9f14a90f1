"""The command `shipnet export`."""

from __future__ import annotations

from pathlib import Path

import click

from shipnet.runtime import errors

from .config import FP32_MAX_RELATIVE_DIFFERENCE, ExportConfig


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Default: bundle beside RUN.")
@click.option("--name", help="Of the bundle; default: the data set's.")
@click.option("--data", help="Where the run's data set lies now; default: where it lay.")
@click.option("--data-root", help="Folder with the files of a built-in data set.")
@click.option(
    "--max-difference",
    type=click.FloatRange(min=0, min_open=True),
    default=FP32_MAX_RELATIVE_DIFFERENCE,
    show_default=True,
    help="Largest logit difference allowed, over the logits' scale.",
)
@click.option(
    "--max-flip-rate",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of validation images that may get another label.",
)
@click.option("--no-interop", is_flag=True, help="Leave TorchScript, .pt2 and safetensors out.")
def export(
    run: Path,
    out: Path | None,
    name: str | None,
    data: str | None,
    data_root: str | None,
    max_difference: float,
    max_flip_rate: float,
    no_interop: bool,
) -> None:
    """Turn a training run into a bundle, proved against PyTorch on real images.

    A format that misses its budget fails the export: no bundle is written, and parity-report.json shows where.
    """
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        errors.require(module)
    from shipnet.runtime import render

    from .build import export as build

    config = ExportConfig(
        name=name,
        data=data,
        data_root=data_root,
        max_relative_difference=max_difference,
        max_flip_rate=(("fp32", max_flip_rate),),
        interop=not no_interop,
    )
    with render.stage_progress() as on_progress:
        bundle = build(run, config, out=out, on_progress=on_progress)
    parity = bundle.manifest.variants[0].parity
    render.show(
        f"accuracy {parity.accuracy.accuracy:.2%} ({parity.accuracy.low:.2%} to {parity.accuracy.high:.2%}) "
        f"on {parity.accuracy.images:,} images; {parity.flips} of {parity.images:,} decisions differ from PyTorch",
        str(bundle.path),
    )
