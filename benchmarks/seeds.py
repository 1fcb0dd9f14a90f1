"""The accuracy of one recipe over several seeds, last-epoch weights, every figure given.

    python benchmarks/seeds.py --data mnist --arch mnist_resnet --recipe notebook --epochs 12 --seeds 0,1,2,3,4

Takes the options of `shipnet train`; --seeds stands in for --seed. Prints JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec
import torch

from shipnet.runtime.machine import hardware
from shipnet.train import CacheConfig, TrainConfig, fit, load_data
from shipnet.train.options import cache_options, training_options
from shipnet.train.recipe import resolve


@click.command()
@click.option("--seeds", default="0,1,2,3,4", show_default=True, help="Fixed before the first run.")
@training_options
@cache_options
def main(seeds: str, config: TrainConfig, cache: CacheConfig) -> None:
    dataset = load_data(config.data)
    rows = []
    for seed in [int(part) for part in seeds.split(",")]:
        seeded = msgspec.structs.replace(config, seed=seed)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            run = fit(seeded, Path(folder) / "run", dataset=dataset, cache=cache)
            history = run.record.history
        rows.append(
            {
                "seed": seed,
                "accuracy": history[-1].accuracy,
                "epoch_accuracies": [epoch.accuracy for epoch in history],
                "wall_s": time.perf_counter() - start,
                "epochs_s": sum(epoch.wall_s for epoch in history),
            }
        )
        click.echo(f"seed {seed}: {rows[-1]['accuracy']:.4%} in {rows[-1]['wall_s']:.1f} s", err=True)
    accuracies = [row["accuracy"] for row in rows]
    report = {
        "config": msgspec.to_builtins(resolve(config, dataset)),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "hardware": msgspec.to_builtins(hardware()),
        "load_average": os.getloadavg(),
        "seeds": rows,
        "median_accuracy": statistics.median(accuracies),
        "least_accuracy": min(accuracies),
        "median_epochs_s": statistics.median(row["epochs_s"] for row in rows),
    }
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
