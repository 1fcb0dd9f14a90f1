"""Kills a training again and again, resumes it, and compares its weights with those of one that was left alone.

    python benchmarks/kill_resume.py --kills 5 --data digits --arch mnist_resnet --epochs 10

Each process is sent SIGKILL after a random part of the time that the whole training took. Prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec

from shipnet.runtime.machine import hardware
from shipnet.train.checkpoint import CheckpointFolder


def train(out: Path, options: tuple[str, ...]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shipnet", "train", "--deterministic", "--resume", "--out", str(out)]
    return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise click.ClickException(errors.decode(errors="replace"))


def weights(run: Path) -> str:
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--kills", type=int, default=5, show_default=True)
@click.option("--chance", type=int, default=0, show_default=True, help="Seed of the moments.")
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def main(kills: int, chance: int, options: tuple[str, ...]) -> None:
    moments = random.Random(chance)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        start = time.perf_counter()
        finish(train(whole, options))
        wall_s = time.perf_counter() - start
        deaths: list[dict[str, float]] = []
        while len(deaths) < kills:
            process = train(killed, options)
            after_s = moments.uniform(0, wall_s / 2)
            time.sleep(after_s)
            process.kill()
            process.communicate()
            checkpoint = CheckpointFolder(killed).read()
            deaths.append({"after_s": round(after_s, 2), "epoch": checkpoint.epoch if checkpoint else 0})
        finish(train(killed, options))
        same = weights(whole) == weights(killed)
    report = {
        "options": options,
        "hardware": msgspec.to_builtins(hardware()),
        "wall_s": round(wall_s, 2),
        "deaths": deaths,
        "same": same,
    }
    click.echo(json.dumps(report, indent=2))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
