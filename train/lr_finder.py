"""The learning-rate finder: a short training whose rate rises from step to step until the loss explodes."""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import torch
from msgspec import Struct
from torch import Tensor, nn

from shipnet.runtime.errors import UsageError

from . import recipe
from .config import CacheConfig, TrainConfig, check_number
from .data import load_data
from .devices import choose_device, threads
from .feeds import Batch, open_feed
from .images import Dataset
from .lr_curve import Curve, Suggestions, Watch, smooth, suggest
from .optimizer import make_loss, make_optimizer
from .photos import Photos, read_images

PICTURE: Final = "find-lr.png"
# Each rule in words, for tables and plots.
RULES: Final = {"valley": "valley", "steepest": "steepest descent", "minimum": "a tenth of the minimum's"}


@dataclass(frozen=True, slots=True)
class Span:
    """What a sweep goes through: `steps` rates from `low` to `high`, each the same factor above the last.

    The numbers give some 28 steps to a decade, two epochs of two thousand photographs in batches of 16 at most: with
    fast.ai's 100 steps from 1e-7 on, 12 to a decade, the valley of 800 photographs is mostly noise.

    Raises:
        UsageError: naming what is out of range.
    """

    low: float = 1e-6
    high: float = 10.0
    steps: int = 200

    def __post_init__(self) -> None:
        check_number("low", self.low, low=1e-12, high=1e3)
        check_number("high", self.high, low=1e-12, high=1e3)
        check_number("steps", self.steps, low=20, high=10_000, whole=True)
        if self.low >= self.high:
            raise UsageError(f"low is {self.low:g}, expected less than high, which is {self.high:g}")


class Finding(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `find_lr` found, and on what.

    Attributes:
        learning_rates, losses, smoothed: a value for each step, as in `Curve`.
        diverged: whether the sweep ended because the loss exploded.
        wall_s: seconds of the sweep.
    """

    data: str
    arch: str
    batch_size: int
    device: str
    suggestions: Suggestions
    diverged: bool
    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    wall_s: float


def find_lr(
    config: TrainConfig,
    *,
    images: tuple[Dataset, Photos | None] | None = None,
    cache: CacheConfig | None = None,
    span: Span | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Finding:
    """Sweeps the learning rate on augmented training images; the validation images are not looked at.

    The network, its start, its loss, its optimiser and its batches are those of a training with the
    same configuration, Adam's first beta that of the peak. The caller's random state is left as it was.

    Args:
        config: what would be trained on what; its `max_lr` and `epochs` play no part.
        images: what `read_images` gave, where the caller has it already.
        cache: where decoded photographs are kept, if they are to be read; None: `CacheConfig()`.
        span: which rates; None: `Span()`.
        on_step: called after each step with how many are done and how many there are.

    Raises:
        ShipnetError: as `fit`; also `TrainingError` where the loss never falls.

    Example:
        >>> from shipnet.train import TrainConfig, find_lr
        >>> find_lr(TrainConfig()).suggestions.valley
    """
    from .training import choose_normalization, new_network

    device = choose_device(config.device)
    dataset, photos = images or read_images(
        load_data(config.data), cache or CacheConfig(), strict=config.data.strict, notify=lambda _: None
    )
    config = recipe.resolve(msgspec.structs.replace(config, max_lr=None), dataset)
    numbers = recipe.settings(config)
    start = time.perf_counter()
    with threads(recipe.cpu_threads(config, dataset, most=torch.get_num_threads())):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = new_network(config, dataset, choose_normalization(config, dataset, photos=photos))
        model.to(device.device)
        feed = open_feed(dataset, config, device.device, photos=photos)
        batches = itertools.chain.from_iterable(feed.train(epoch) for epoch in itertools.count(1))
        optimizer = make_optimizer(model, numbers)
        for group in optimizer.param_groups:
            group["betas"] = (numbers.base_momentum, numbers.beta2)
        curve = sweep(
            model,
            optimizer,
            batches=batches,
            loss=make_loss(numbers),
            span=span or Span(),
            on_step=on_step,
        )
    return Finding(
        data=dataset.name,
        arch=str(config.arch),
        batch_size=numbers.batch_size,
        device=device.description,
        suggestions=suggest(curve),
        diverged=curve.diverged,
        learning_rates=tuple(curve.learning_rates.tolist()),
        losses=tuple(curve.losses.tolist()),
        smoothed=tuple(curve.smoothed.tolist()),
        wall_s=round(time.perf_counter() - start, 3),
    )


def sweep(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    batches: Iterable[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    span: Span,
    on_step: Callable[[int, int], None] | None = None,
) -> Curve:
    """Trains with a rising rate until the steps are done, the batches are, or the loss explodes.

    Model, optimiser and random state are then as they were. Groups of parameters keep the ratio of
    their rates; the rates of the curve are those of the fastest group.

    Args:
        model: uint8 (B, H, W, C) -> logits (B, K).
        optimizer: over the model's parameters.
        batches: on the model's device.
        loss: of (logits, labels).
        span: which rates.
        on_step: called after each step with how many are done and how many there are.

    Source: L. Smith, Cyclical Learning Rates for Training Neural Networks, arXiv:1506.01186, section
    3.3, whose test rises linearly; rising exponentially and stopping when the loss explodes are fast.ai's.
    """
    fastest = max(group["lr"] for group in optimizer.param_groups)
    ratios = [group["lr"] / fastest for group in optimizer.param_groups]
    rates = np.geomspace(span.low, span.high, span.steps)
    losses: list[float] = []
    watch, diverged = Watch(), False
    with _restored(model, optimizer):
        model.train()
        for step, (rate, batch) in enumerate(zip(rates, batches, strict=False), start=1):
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] = float(rate) * ratio
            value = _step(model, optimizer, batch, loss)
            diverged = watch.diverged(value)
            if diverged:
                break
            losses.append(value)
            if on_step is not None:
                on_step(step, span.steps)
    found = np.array(losses)
    rates = rates[: len(found)]
    return Curve(rates, found, smooth(rates, found), diverged)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """One optimiser step; the loss before it."""
    images, labels = batch
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        value = loss(model(images), labels)
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return value.item()


@contextmanager
def _restored(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Afterwards weights, buffers, gradients, modes, optimiser and random state are as they were before."""
    weights = copy.deepcopy(model.state_dict())
    settings = copy.deepcopy(optimizer.state_dict())
    gradients = [parameter.grad for parameter in model.parameters()]
    modes = {module: module.training for module in model.modules()}
    for parameter in model.parameters():
        parameter.grad = None
    cuda = {tensor.device for tensor in model.state_dict().values() if tensor.is_cuda}
    with torch.random.fork_rng(devices=sorted(cuda, key=str)):
        try:
            yield
        finally:
            model.load_state_dict(weights)
            optimizer.load_state_dict(settings)
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.grad = gradient
            for module, mode in modes.items():
                module.training = mode


def draw_sweep(finding: Finding, path: Path) -> None:
    """The losses over the rates, on a logarithmic axis, the suggestions marked: a PNG of 1,000 x 560 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    title = f"{finding.data}: {finding.arch}, batches of {finding.batch_size}"
    axes.set_title(title, parse_math=False)
    rates, smoothed = np.array(finding.learning_rates), np.array(finding.smoothed)
    axes.plot(rates, finding.losses, color="0.75", linewidth=1, label="each batch")
    axes.plot(rates, smoothed, color="C0", linewidth=2, label="smoothed")
    styles = (("valley", "o", "C3"), ("steepest", "s", "C1"), ("minimum", "D", "C2"))
    for name, marker, color in styles:
        rate = getattr(finding.suggestions, name)
        loss = np.interp(math.log(rate), np.log(rates), smoothed)
        label = f"{RULES[name]}: {rate:.2g}"
        axes.axvline(rate, color=color, linewidth=1, linestyle=":")
        axes.plot([rate], [loss], marker, color=color, markersize=9, label=label)
    low, high = min(finding.losses), float(smoothed[0])
    axes.set_ylim(low - 0.1 * (high - low), high + 0.6 * (high - low))
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(path, format="png")
