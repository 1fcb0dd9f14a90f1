"""What an epoch of `shipnet.train.fit` costs beside its bare steps, in turns in one process.

    python benchmarks/epoch_cost.py --data mnist --arch mnist_resnet --epochs 5

The bare steps are forward, backward and AdamW on batches that lie ready on the device: no augmentation, no
schedule. The bare epoch is those, then a forward pass over the validation images, ready too. Both run after each
epoch of the real training, whose first is left out of the medians: a cache is read for the first time there, and
kernels are chosen. Checkpoints, written after each epoch, are in neither. Prints JSON.
"""

from __future__ import annotations

import json
import os
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
from shipnet.train import CacheConfig, Deployable, TrainConfig, fit, load_data
from shipnet.train.architectures import build
from shipnet.train.devices import choose_device
from shipnet.train.events import EpochDone, Event
from shipnet.train.feeds import Batch, open_feed
from shipnet.train.loop import evaluate
from shipnet.train.options import cache_options, training_options
from shipnet.train.photos import read_images
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
@cache_options
def main(config: TrainConfig, cache: CacheConfig) -> None:
    dataset = load_data(config.data)
    config = resolve(config, dataset)
    device = choose_device(config.device).device
    dataset, photos = read_images(dataset, cache, strict=False, notify=lambda _: None)
    feed = open_feed(dataset, config, device, photos=photos)
    batches, valid = list(feed.train(1)), list(feed.valid())
    del feed
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
    bare_epoch: list[float] = []

    def after_epoch(event: Event) -> None:
        if isinstance(event, EpochDone):
            real.append(event.wall_s)
            bare.append(bare_steps(model, optimizer, batches))
            start = time.perf_counter()
            evaluate(model, valid)
            bare_epoch.append(bare[-1] + time.perf_counter() - start)
            click.echo(
                f"epoch {real[-1]:.2f} s, bare steps {bare[-1]:.2f} s, with validation {bare_epoch[-1]:.2f} s",
                err=True,
            )

    with tempfile.TemporaryDirectory() as folder:
        fit(config, Path(folder) / "run", on_event=after_epoch, dataset=dataset, cache=cache)
    ratios = [a / b for a, b in zip(real[1:], bare[1:], strict=True)]
    epoch_ratios = [a / b for a, b in zip(real[1:], bare_epoch[1:], strict=True)]
    report = {
        "config": msgspec.to_builtins(config),
        "torch": torch.__version__,
        "hardware": msgspec.to_builtins(hardware()),
        "load_average": os.getloadavg(),
        "epoch_s": real,
        "bare_steps_s": bare,
        "bare_epoch_s": bare_epoch,
        "median_epoch_s": statistics.median(real[1:]),
        "median_ratio_to_bare_steps": statistics.median(ratios),
        "median_ratio_to_bare_epoch": statistics.median(epoch_ratios),
    }
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
