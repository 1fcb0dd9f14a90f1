"""The training loop: one-cycle AdamW over the batches of a feed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from shipnet.runtime.errors import TrainingError

from .config import TrainConfig
from .events import EpochDone, OnEvent, StepDone
from .feeds import Batch, Feed
from .normalize import Deployable

# One cycle: the rate rises from max_lr/25 over the first quarter, then falls to max_lr/250,000; Adam's first
# beta falls and rises against it. Source: L. Smith, N. Topin, Super-Convergence, arXiv:1708.07120; the
# numbers and the cosine are those of fast.ai's `fit_one_cycle`, as are beta2 and epsilon.
RISE = 0.25
START_DIVISOR = 25.0
FINAL_DIVISOR = 1e4  # of the starting rate
MOMENTUM_LOW, MOMENTUM_HIGH = 0.85, 0.95
BETA2 = 0.99
EPSILON = 1e-5
# Looking at a loss waits for the device, so it is done this often, in steps.
CHECK_EVERY = 50


def train(model: Deployable, feed: Feed, config: TrainConfig, notify: OnEvent) -> tuple[EpochDone, ...]:
    """Fits the network in place; `config` as `recipe.resolve` gives it.

    Returns:
        One measurement per epoch. The weights are the last epoch's.

    Raises:
        TrainingError: a loss is not a finite number; names epoch and step.
        ImageError: a file that is no image.
    """
    assert config.epochs is not None and config.max_lr is not None
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.max_lr,
        betas=(MOMENTUM_HIGH, BETA2),
        eps=EPSILON,
        fused=True,
    )
    schedule = OneCycleLR(
        optimizer,
        max_lr=config.max_lr,
        total_steps=config.epochs * feed.steps,
        pct_start=RISE,
        div_factor=START_DIVISOR,
        final_div_factor=FINAL_DIVISOR,
        base_momentum=MOMENTUM_LOW,
        max_momentum=MOMENTUM_HIGH,
    )
    device = model.pixel_mean.device
    bf16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    history = []
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        model.train()
        losses = torch.zeros(feed.steps, device=device)
        for step, (images, labels) in enumerate(feed.train(epoch), start=1):
            with bf16:
                loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            learning_rate = float(schedule.get_last_lr()[0])
            schedule.step()
            losses[step - 1] = loss.detach()
            if step % CHECK_EVERY == 0 or step == feed.steps:
                _check_finite(losses[:step], epoch)
            notify(StepDone(epoch, step))
        valid_loss, accuracy = evaluate(model, feed.valid())
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


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Weights of convolutions and linear layers decay; biases and batch norms, vectors all, do not.

    Source: He et al., Bag of Tricks for Image Classification, arXiv:1812.01187, section 3.1.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in parameters if parameter.ndim > 1],
            "weight_decay": weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _check_finite(losses: Tensor, epoch: int) -> None:
    if not losses.sum().isfinite():
        step = int((~losses.isfinite()).nonzero()[0]) + 1 if not losses.isfinite().all() else len(losses)
        raise TrainingError(
            f"the loss is {losses[step - 1].item()} in epoch {epoch}, step {step}: training diverged; "
            "lower --max-lr"
        )
