"""An MNIST epoch of shipnet beside fastai's, in turns, each in a process of its own.

    python benchmarks/against_fastai.py --fastai-python OTHER/bin/python --rounds 3

OTHER is a virtual environment with fastai. SHIPNET_DATA names the folder with mnist/. fastai reads PNG files with two
workers, as its users do; both train the 41,132-parameter ResNet with batches of 512 and validate. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import msgspec
from PIL import Image

from shipnet.runtime.machine import hardware
from shipnet.train import DataConfig, TrainConfig, fit, load_data
from shipnet.train.events import EpochDone, Event


def write_pngs(folder: Path) -> None:
    """MNIST as fastai's users have it."""
    data = load_data(DataConfig(data="mnist"))
    for part, images in (("training", data.train), ("testing", data.valid)):
        for name in data.labels:
            (folder / part / name).mkdir(parents=True)
        for index in range(len(images)):
            target = folder / part / data.labels[images.labels[index]] / f"{index}.png"
            Image.fromarray(images.sources[index][:, :, 0]).save(target)


def own_epoch() -> float:
    """Seconds of one epoch, validation included."""
    seconds: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, EpochDone):
            seconds.append(event.wall_s)

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(data=DataConfig(data="mnist"), arch="mnist_resnet", epochs=1, batch_size=512)
        fit(config, Path(folder) / "run", on_event=note)
    return seconds[0]


@click.command()
@click.option("--fastai-python", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=3, show_default=True)
@click.option("--own", is_flag=True, hidden=True)
def main(fastai_python: Path, rounds: int, own: bool) -> None:
    if own:
        click.echo(json.dumps(own_epoch()))
        return
    ours: list[float] = []
    theirs: list[float] = []
    versions = {}
    with tempfile.TemporaryDirectory() as folder:
        write_pngs(Path(folder))
        for _ in range(rounds):
            script = Path(__file__).with_name("fastai_epoch.py")
            told = json.loads(run(fastai_python, script, folder))
            theirs += told.pop("epoch_s")
            versions = told
            ours.append(
                json.loads(
                    run(Path(sys.executable), Path(__file__), "--fastai-python", sys.executable, "--own")
                )
            )
            click.echo(f"fastai {theirs[-1]:.1f} s, shipnet {ours[-1]:.1f} s", err=True)
    report = {
        "fastai_epoch_s": theirs,
        "shipnet_epoch_s": ours,
        "median_ratio": statistics.median(a / b for a, b in zip(theirs, ours, strict=True)),
        "versions": versions,
        "hardware": msgspec.to_builtins(hardware()),
    }
    click.echo(json.dumps(report, indent=2))


def run(python: Path, script: Path, *arguments: str) -> str:
    command = [str(python), str(script), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


if __name__ == "__main__":
    main()
