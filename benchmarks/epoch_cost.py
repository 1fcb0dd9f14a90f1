"""What an epoch of `shipnet.train.fit` costs beside its bare steps, in turns in one process.

    python benchmarks/epoch_cost.py --data mnist --arch mnist_resnet --epochs 5

The bare steps are forward, backward and AdamW on batches that lie ready on the device: no augmentation, no
validation, no schedule. They run after each epoch of the real training. Prints JSON.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import msgspec
import torch
from torch import nn
from torch.nn import functional

from shipnet.runtime.machine import hardware
from shipnet.train import Deployable, TrainConfig, fit, load_data
from shipnet.train.architectures import build
from shipnet.train.devices import choose_device
from shipnet.train.events import EpochDone, Event
from shipnet.train.feeds import Batch, open_feed
from shipnet.train.options import training_options
from shipnet.train.recipe import resolve


def bare_steps(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> float:
    """Seconds of one pass."""
    model.train()
    bf16 = torch.autocast(batches[0][0].device.type, torch.bfloat16, enabled=batches[0][0].is_cuda)
    start = time.perf_counter()
    for images, labels in batches:
        with bf16:
            loss = functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    if batches[0][0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


@click.command()
@training_options
def main(config: TrainConfig) -> None:
    dataset = load_data(config.data)
    config = resolve(config, dataset)
    device = choose_device(config.device).device
    batches = list(open_feed(dataset, config, device).train(1))
    net = build(
        str(config.arch),
        channels=dataset.spec.channels,
        num_classes=len(dataset.labels),
        image_size=dataset.spec.height,
    )
    model = Deployable(net, [0.5] * dataset.spec.channels, [0.5] * dataset.spec.channels).to(device)
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    real: list[float] = []
    bare: list[float] = []

    def after_epoch(event: Event) -> None:
        if isinstance(event, EpochDone):
            real.append(event.wall_s)
            bare.append(bare_steps(model, optimizer, batches))
            click.echo(f"epoch {real[-1]:.2f} s, bare {bare[-1]:.2f} s", err=True)

    with tempfile.TemporaryDirectory() as folder:
        fit(config, Path(folder) / "run", on_event=after_epoch, dataset=dataset)
    ratios = [a / b for a, b in zip(real, bare, strict=True)]
    report = {
        "config": msgspec.to_builtins(config),
        "torch": torch.__version__,
        "hardware": msgspec.to_builtins(hardware()),
        "epoch_s": real,
        "bare_s": bare,
        "median_epoch_s": statistics.median(real),
        "median_bare_s": statistics.median(bare),
        "median_ratio": statistics.median(ratios),
    }
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
