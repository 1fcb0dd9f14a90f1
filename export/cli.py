"""The command `shipnet export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from shipnet.runtime import Bundle, errors

from .config import ExportConfig
from .foreign_options import Foreign, foreign_options
from .options import export_options, sign_key_option

if TYPE_CHECKING:
    from .source import OnProgress


@click.command()
@click.argument("run", type=click.Path(path_type=Path), required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Default: bundle beside RUN, else artifacts/NAME/bundle.",
)
@click.option("--name", help="Of the bundle; default: the data set's, or of the file of weights or graph.")
@click.option("--data", help="Where the run's data set lies now; default: where it lay.")
@click.option("--data-root", help="Folder with the files of a built-in data set.")
@export_options
@sign_key_option
@foreign_options
def export(
    run: Path | None,
    foreign: Foreign | None,
    out: Path | None,
    name: str | None,
    data: str | None,
    data_root: str | None,
    export_config: ExportConfig,
    sign_key: Path | None,
) -> None:
    """Turn a training run, weights or an ONNX file into a bundle, proved on real images.

    RUN is the folder of a training run. --weights with --arch, or --onnx, takes a network that was trained elsewhere;
    its preprocessing is what the options say, and what they leave open is told on stderr.

    A format that misses its budget fails the export: no bundle is written, and parity-report.json shows where.
    """
    for module in ("torch", "onnx", "onnxscript", "onnxruntime"):
        errors.require(module)
    from shipnet.runtime import render

    config = msgspec.structs.replace(export_config, name=name, data=data, data_root=data_root)
    with render.stage_progress() as on_progress:
        bundle = _build(run, foreign, config, out=out, sign_key=sign_key, on_progress=on_progress)
    render.show(*_summary(bundle, foreign))


def _summary(bundle: Bundle, foreign: Foreign | None) -> list[str]:
    """What was proved, where it is shown, and last the bundle's path."""
    from shipnet.runtime import render

    from .report import EXPORT_REPORT

    parity = bundle.manifest.variant("fp32").parity
    other = "the graph as it was given" if foreign and foreign.onnx else "PyTorch"
    return [
        f"accuracy {parity.accuracy.accuracy:.2%} ({parity.accuracy.low:.2%} to {parity.accuracy.high:.2%}) "
        f"on {parity.accuracy.images:,} images; {parity.flips} of {parity.images:,} decisions differ from {other}",
        *render.variants_lines(bundle.manifest),
        f"report {bundle.path.parent / EXPORT_REPORT}",
        str(bundle.path),
    ]


def _build(
    run: Path | None,
    foreign: Foreign | None,
    config: ExportConfig,
    *,
    out: Path | None,
    sign_key: Path | None,
    on_progress: OnProgress,
) -> Bundle:
    """Exports what was asked for."""
    from shipnet.runtime import render

    if run is not None:
        from .build import export as from_run

        return from_run(run, config, out=out, on_progress=on_progress, sign_key=sign_key)
    assert foreign is not None
    if config.data is not None or config.data_root is not None:
        raise errors.UsageError(
            "--data and --data-root are for a run; --val names the images of --weights and --onnx"
        )
    if foreign.onnx is not None and not config.interop:
        raise errors.UsageError(
            "--no-interop: an ONNX graph is never written for PyTorch's loaders: leave it out"
        )
    told: dict[str, Any] = {"on_note": render.note, "on_progress": on_progress}
    if foreign.onnx is not None:
        from .from_onnx import export_onnx

        return export_onnx(foreign.onnx, foreign.config, config=config, out=out, sign_key=sign_key, **told)
    from .from_weights import export_weights

    return export_weights(
        str(foreign.weights), foreign.config, config=config, out=out, sign_key=sign_key, **told
    )
