"""The training loop: optimiser steps over the batches of a feed, and measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from shipnet.runtime.errors import TrainingError

from .compiling import compiled
from .config import TrainConfig
from .events import EpochDone, OnEvent, StepDone
from .feeds import Batch, Feed
from .finetune import set_training
from .optimizer import AVERAGE_EVERY, make_loss
from .recipe import Recipe, settings
from .schedule import set_rates
from .splits import Indices
from .state import TrainingState

# Looking at a loss waits for the device, so it is done this often, in steps.
CHECK_EVERY = 50
SHOWN_NAMES = 8  # of a batch whose loss is no number


class DivergedError(TrainingError):
    """A loss that is no finite number. The same training would come to it again."""


def train(
    state: TrainingState,
    feed: Feed,
    config: TrainConfig,
    *,
    notify: OnEvent,
    selection: Indices | None = None,
    save: Callable[[TrainingState], None] | None = None,
) -> None:
    """Fits the network in place, from where `state` stands to the last epoch or until patience ends.

    The model is left with the weights of the epoch that is kept, or their average where the recipe keeps one.

    Args:
        state: as `TrainingState.begin` gives it, or restored.
        feed: the batches.
        config: as `recipe.resolve` gives it.
        notify: called with each step and epoch.
        selection: the validation images that epochs are measured on; None: all.
        save: called after each epoch, before its event.

    Raises:
        DivergedError: a loss is not a finite number; names epoch, step and the batch's images.
        ImageError: a file that is no image.
    """
    recipe = settings(config)
    network = compiled(state.model) if config.compile else state.model
    for epoch in range(len(state.history) + 1, recipe.epochs + 1):
        start = time.perf_counter()
        train_loss, learning_rate = _train_epoch(
            state, network, feed, recipe=recipe, epoch=epoch, notify=notify
        )
        valid_loss, accuracy = evaluate(state.result, feed.valid(selection))
        if not math.isfinite(valid_loss):
            raise DivergedError(f"the validation loss is {valid_loss} after epoch {epoch}: lower --max-lr")
        done = EpochDone(
            epoch=epoch,
            train_loss=train_loss,
            valid_loss=valid_loss,
            accuracy=accuracy,
            learning_rate=learning_rate,
            wall_s=time.perf_counter() - start,
        )
        state.add(done)
        if save is not None:
            save(state)
        notify(done)
        if state.is_spent(config.patience):
            break
    state.load_kept()


def _train_epoch(
    state: TrainingState, network: nn.Module, feed: Feed, *, recipe: Recipe, epoch: int, notify: OnEvent
) -> tuple[float, float]:
    """One pass through `network`, the state's model or a compiled form: (mean loss, learning rate of the last step)."""
    model, optimizer, average = state.model, state.optimizer, state.average
    cross_entropy = make_loss(recipe)
    device = model.pixel_mean.device
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    losses = torch.zeros(feed.steps, device=device)
    learning_rate = 0.0
    set_training(model.net, frozen=epoch <= recipe.freeze_epochs)
    for step, (images, labels) in enumerate(feed.train(epoch), start=1):
        with bf16:
            loss = cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        done = (epoch - 1) * feed.steps + step
        learning_rate = set_rates(optimizer, done - 1, total=recipe.epochs * feed.steps, recipe=recipe)
        optimizer.step()
        if average is not None and (done % AVERAGE_EVERY == 0 or done == 1):
            average.update_parameters(model)
        losses[step - 1] = loss.detach()
        if step % CHECK_EVERY == 0 or step == feed.steps:
            _check_finite(losses[:step], feed, epoch)
        notify(StepDone(epoch, step))
    return losses.mean().item(), learning_rate


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


def _check_finite(losses: Tensor, feed: Feed, epoch: int) -> None:
    """Losses are kept on the device, so the step is found whenever one looks; its images follow from epoch and step."""
    if losses.isfinite().all():
        return
    step = int((~losses.isfinite()).nonzero()[0]) + 1
    names = feed.names(epoch, step)
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    raise DivergedError(
        f"the loss is {losses[step - 1].item()} in epoch {epoch}, step {step}: training diverged; lower --max-lr, "
        f"or look at the batch's images: {', '.join(names[:SHOWN_NAMES])}{more}"
    )
