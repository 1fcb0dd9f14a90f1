"""The command `shipnet train`."""

from __future__ import annotations

from pathlib import Path

import click

from shipnet.runtime.errors import require

from .config import CacheConfig, TrainConfig
from .options import cache_options, training_options


@click.command()
@training_options
@cache_options
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [default: artifacts/NAME/run]")
@click.option(
    "--resume", is_flag=True, help="Go on with an unfinished run, to the same weights as without a break."
)
@click.option("--summary", is_flag=True, help="Print the network's layers and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's record as JSON.")
def train(
    config: TrainConfig, cache: CacheConfig, out: Path | None, resume: bool, summary: bool, as_json: bool
) -> None:
    """Train a network on a folder of labelled images or a built-in data set.

    Writes a run: weights, run.json, history.csv, curves.png, and report.html to read.
    With no option: scikit-learn's digits.
    """
    for module in ("torch", "torchvision", "safetensors", "matplotlib"):
        require(module)
    from shipnet.runtime import render

    if summary:
        from .summary import layer_table

        render.show(layer_table(config))
        return
    from .progress import training_display
    from .training import fit

    with training_display() as on_event:
        run = fit(config, out, on_event=on_event, resume=resume, cache=cache)
    if as_json:
        render.print_json(run.record)
    else:
        record = run.record
        render.show(
            f"accuracy {record.accuracy:.2%} on {record.measured_images:,} validation images, {record.wall_s:.1f} s",
            str(run.path),
        )
