"""What a step minimises, and how: the loss, AdamW over groups of parameters, an average of the weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .finetune import stages
from .normalize import Deployable
from .recipe import Recipe

EPSILON = 1e-5  # of Adam; fast.ai's
# The average takes in the weights every so many steps, with the decay of as many: as good, at a fifth of the cost.
# Source: K. Jordan, 94 % on CIFAR-10 in 3.29 Seconds, arXiv:2404.00498, whose average also moves every 5 steps.
AVERAGE_EVERY = 5


def make_optimizer(model: Deployable, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; `schedule.set_rates` gives every step its rate."""
    return torch.optim.AdamW(
        parameter_groups(model.net, recipe),
        lr=recipe.max_lr,
        betas=(recipe.max_momentum, recipe.beta2),
        eps=EPSILON,
        fused=True,
    )


def parameter_groups(net: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Two groups a stage: what decays, then what does not; where all stages learn alike, two in all.

    Weights of convolutions and linear layers decay; biases and batch norms, vectors all, do not. The
    first stage learns with `max_lr / lr_div`, the last with `max_lr`, those between geometrically.
    Frozen parameters are in their groups: they stay as they are for having no gradient.

    Source: He et al., Bag of Tricks for Image Classification, arXiv:1812.01187, section 3.1, for the
    decay; J. Howard, S. Ruder, arXiv:1801.06146, section 3.2, for the rates.
    """
    parts = [list(modules.parameters()) for modules in stages(net).values()]
    if recipe.lr_div == 1:
        parts = [[parameter for part in parts for parameter in part]]
    groups: list[dict[str, Any]] = []
    for place, parameters in enumerate(parts):
        below = (len(parts) - 1 - place) / max(len(parts) - 1, 1)
        lr = recipe.max_lr / recipe.lr_div**below
        decaying = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups.append({"params": decaying, "max_lr": lr, "lr": lr, "weight_decay": recipe.weight_decay})
        groups.append({"params": others, "max_lr": lr, "lr": lr, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def make_loss(recipe: Recipe) -> partial[Tensor]:
    """Cross-entropy of (logits, labels), float32 (B, K) and int64 (B,), with smoothed labels.

    Source: Szegedy et al., Rethinking the Inception Architecture, arXiv:1512.00567, section 7.
    """
    return partial(functional.cross_entropy, label_smoothing=recipe.label_smoothing)


def make_average(model: Deployable, recipe: Recipe) -> AveragedModel | None:
    """An exponential moving average of weights and batch norms' statistics; update it every `AVERAGE_EVERY` steps.

    None where the recipe wants none. Its `state_dict` is a plain dictionary of tensors.

    Source: B. Polyak, A. Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992.
    """
    if not recipe.ema_decay:
        return None
    decay = get_ema_multi_avg_fn(recipe.ema_decay**AVERAGE_EVERY)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
