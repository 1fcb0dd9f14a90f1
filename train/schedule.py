"""The learning rate of every step: one cycle, as a function of the step alone, so that nothing of it needs saving."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from .recipe import Recipe


def one_cycle(step: int, total: int, recipe: Recipe) -> tuple[float, float]:
    """The rate as a share of its peak, and Adam's first beta, at `step` of `total`, counted from 0.

    Source: L. Smith, N. Topin, Super-Convergence, arXiv:1708.07120. The values are those of
    `torch.optim.lr_scheduler.OneCycleLR`, which divides by zero where the rise is of one step.
    """
    top, last = recipe.pct_start * total - 1, total - 1
    start = 1 / recipe.div_factor
    final = start / recipe.final_div_factor
    if step < top:
        way = step / top
        return _cosine(start, 1.0, way), _cosine(recipe.max_momentum, recipe.base_momentum, way)
    way = (step - top) / (last - top)
    return _cosine(1.0, final, way), _cosine(recipe.base_momentum, recipe.max_momentum, way)


def set_rates(optimizer: Optimizer, step: int, *, total: int, recipe: Recipe) -> float:
    """Gives every group its rate for a step, a share of the group's `max_lr`, and its first beta.

    Returns:
        The last group's rate, which is the head's.
    """
    share, beta = one_cycle(step, total, recipe)
    for group in optimizer.param_groups:
        group["lr"] = group["max_lr"] * share
        group["betas"] = (beta, group["betas"][1])
    return float(optimizer.param_groups[-1]["lr"])


def _cosine(start: float, end: float, way: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * way))
