"""What a sweep of learning rates says: the curve of losses, and the rules that read a rate from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from shipnet.runtime.errors import TrainingError

Floats = NDArray[np.float64]

# Weight of the past in the smoothed loss. Source: fast.ai's `Recorder`, beta 0.98.
SMOOTHING: Final = 0.98
# A smoothed loss of so many times the least one has diverged. Source: fast.ai's `LRFinder`.
DIVERGED: Final = 4.0
# The rules leave out this share of the sweep, in which the average settles. Source: fast.ai's `lr_find`.
SETTLING: Final = 0.1
# They look at this many points or more.
FEWEST: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The losses of a sweep.

    Attributes:
        learning_rates: float64 (N,), rising.
        losses: float64 (N,), of each step's batch before the step.
        smoothed: float64 (N,), as `smooth` gives them.
        diverged: whether the sweep stopped because the loss exploded.
    """

    learning_rates: Floats
    losses: Floats
    smoothed: Floats
    diverged: bool


class Suggestions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A learning rate by each rule."""

    steepest: float
    minimum: float
    valley: float


def smooth(losses: Floats, weight: float = SMOOTHING) -> Floats:
    """The exponential moving average from the start, corrected for starting at 0.

    Source: D. Kingma, J. Ba, Adam, arXiv:1412.6980, section 3, for the correction.
    """
    averages = np.empty_like(losses)
    average = 0.0
    for step, loss in enumerate(losses):
        average = weight * average + (1 - weight) * loss
        averages[step] = average / (1 - weight ** (step + 1))
    return averages


def suggest(curve: Curve) -> Suggestions:
    """A learning rate by each of the three rules, which leave out the sweep's first tenth.

    Raises:
        TrainingError: too few steps, or a loss that never fell: nothing can be read from it.
    """
    first = int(len(curve.smoothed) * SETTLING)
    rates, smoothed = curve.learning_rates[first:], curve.smoothed[first:]
    if len(smoothed) < FEWEST:
        raise TrainingError(
            f"the sweep has {len(curve.smoothed)} steps before the loss diverges, too few to read a rate from: "
            "start it lower, or take more steps"
        )
    if smoothed.argmin() == 0:
        raise TrainingError(
            f"the loss never fell between learning rates {rates[0]:.2g} and {rates[-1]:.2g}: sweep another "
            "range, or give the rate"
        )
    return Suggestions(
        steepest=steepest(rates, smoothed),
        minimum=tenth_of_minimum(rates, smoothed),
        valley=valley(rates, smoothed),
    )


def steepest(rates: Floats, losses: Floats) -> float:
    """Where the loss falls fastest over the logarithm of the rate, before its minimum.

    Source: the sweep is that of L. Smith, Cyclical Learning Rates, arXiv:1506.01186, section 3.3, who
    reads the bounds by eye, from where accuracy begins to rise to where it turns ragged; taking the
    steepest point is fast.ai's `steep` rule.
    """
    until = int(losses.argmin()) + 1
    slope = np.gradient(losses, np.log(rates))
    return float(rates[int(slope[:until].argmin())])


def tenth_of_minimum(rates: Floats, losses: Floats) -> float:
    """A tenth of the rate at which the loss is least, where training is about to diverge.

    Source: fast.ai's `minimum` rule.
    """
    return float(rates[int(losses.argmin())]) / 10


def valley(rates: Floats, losses: Floats) -> float:
    """The middle of the longest descent of the loss.

    The descent is the longest run of steps, not necessarily neighbours, each with a lower loss than
    the one before, so that noise does not cut it in two.

    Source: fast.ai's `valley` rule, which a developer of ESRI proposed in its forum (Automated
    Learning Rate Suggester, topic 44199). fast.ai's text says two thirds through the valley; its code
    takes the middle, counted back from the end in members of the descent. Here it is the middle member.
    """
    members = longest_descent(losses)
    return float(rates[members[len(members) // 2]])


def longest_descent(values: Floats) -> list[int]:
    """The indices of the longest strictly falling subsequence; of several, the one that ends first.

    Takes O(N²) for N values: a sweep has some hundred.
    """
    length = np.ones(len(values), np.int64)
    before = np.full(len(values), -1)
    for index in range(1, len(values)):
        above = np.flatnonzero(values[:index] > values[index])
        if len(above):
            before[index] = above[int(length[above].argmax())]
            length[index] = length[before[index]] + 1
    members = [int(length.argmax())]
    while before[members[-1]] >= 0:
        members.append(int(before[members[-1]]))
    return members[::-1]
