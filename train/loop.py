"""The training loop: optimiser steps over the batches of a feed, and measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from shipnet.runtime.errors import TrainingError

from .compiling import compiled
from .config import TrainConfig
from .events import EpochDone, OnEvent, StepDone
from .feeds import Batch, Feed
from .finetune import set_training
from .normalize import Deployable
from .optimizer import AVERAGE_EVERY, make_average, make_loss, make_optimizer
from .recipe import settings
from .schedule import set_rates

# Looking at a loss waits for the device, so it is done this often, in steps.
CHECK_EVERY = 50


def train(model: Deployable, feed: Feed, config: TrainConfig, notify: OnEvent) -> tuple[EpochDone, ...]:
    """Fits the network in place; `config` as `recipe.resolve` gives it.

    Returns:
        One measurement per epoch. The weights are the last epoch's, or their average where the recipe keeps one.

    Raises:
        TrainingError: a loss is not a finite number; names epoch and step.
        ImageError: a file that is no image.
    """
    recipe = settings(config)
    optimizer = make_optimizer(model, recipe)
    cross_entropy = make_loss(recipe)
    average = make_average(model, recipe)
    network = compiled(model) if config.compile else model
    total = recipe.epochs * feed.steps
    device = model.pixel_mean.device
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    history = []
    for epoch in range(1, recipe.epochs + 1):
        start = time.perf_counter()
        set_training(model.net, frozen=epoch <= recipe.freeze_epochs)
        losses = torch.zeros(feed.steps, device=device)
        for step, (images, labels) in enumerate(feed.train(epoch), start=1):
            with bf16:
                loss = cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            done = (epoch - 1) * feed.steps + step
            learning_rate = set_rates(optimizer, done - 1, total=total, recipe=recipe)
            optimizer.step()
            if average is not None and (done % AVERAGE_EVERY == 0 or done == 1):
                average.update_parameters(model)
            losses[step - 1] = loss.detach()
            if step % CHECK_EVERY == 0 or step == feed.steps:
                _check_finite(losses[:step], epoch)
            notify(StepDone(epoch, step))
        valid_loss, accuracy = evaluate(average.module if average else model, feed.valid())
        if not math.isfinite(valid_loss):
            raise TrainingError(f"the validation loss is {valid_loss} after epoch {epoch}: lower --max-lr")
        history.append(
            EpochDone(
                epoch=epoch,
                train_loss=losses.mean().item(),
                valid_loss=valid_loss,
                accuracy=accuracy,
                learning_rate=learning_rate,
                wall_s=time.perf_counter() - start,
            )
        )
        notify(history[-1])
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    return tuple(history)


def evaluate(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, float]:
    """Mean cross-entropy and top-1 accuracy, in fp32 as the network will be exported.

    Args:
        model: uint8 (B, H, W, C) -> logits (B, K).
        batches: images and labels, one batch or more, on the model's device.
    """
    model.eval()
    sums: list[Tensor] = []
    count = 0
    with torch.inference_mode():
        for images, labels in batches:
            logits = model(images)
            loss = functional.cross_entropy(logits, labels, reduction="sum")
            sums.append(torch.stack((loss, (logits.argmax(1) == labels).sum())))
            count += len(labels)
    loss_sum, correct = torch.stack(sums).cpu().double().sum(0).tolist()
    return loss_sum / count, correct / count


def _check_finite(losses: Tensor, epoch: int) -> None:
    if not losses.sum().isfinite():
        step = int((~losses.isfinite()).nonzero()[0]) + 1 if not losses.isfinite().all() else len(losses)
        raise TrainingError(
            f"the loss is {losses[step - 1].item()} in epoch {epoch}, step {step}: training diverged; "
            "lower --max-lr"
        )
