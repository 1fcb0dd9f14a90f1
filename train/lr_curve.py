"""What a sweep of learning rates says: the curve of losses, and the rules that read a rate from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from shipnet.runtime.errors import TrainingError

Floats = NDArray[np.float64]

# Width of the bell that smooths the curve, its standard deviation in decades of the rate.
WIDTH: Final = 0.2
# The valley's bottom: where this share of the whole fall is done, for so many decades at most.
DEPTH: Final = 0.8
BOTTOM: Final = 0.5
# This share of the sweep, at rates that change nothing, says where the loss begins.
BEGINNING: Final = 0.2
# The curve must have this many points or more.
FEWEST: Final = 10
# A fall of fewer standard errors may be chance: 2 of 100 flat noisy sweeps fall further.
LEAST_FALL: Final = 3.5
# Weight of the past in the average that tells whether the sweep has diverged.
MEMORY: Final = 0.9
# It has where the average is so many times its least, or so many times what it was after twice `FEWEST` steps.
# Source: fast.ai's `LRFinder` for the first.
EXPLODED: Final = 4.0
RISEN: Final = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """The losses of a sweep.

    Attributes:
        learning_rates: float64 (N,), rising.
        losses: float64 (N,), of each step's batch before the step.
        smoothed: float64 (N,), as `smooth` gives them: the losses without their noise.
        diverged: whether the sweep stopped because the loss exploded.
    """

    learning_rates: Floats
    losses: Floats
    smoothed: Floats
    diverged: bool


class FlatCurveError(TrainingError):
    """A sweep from which no learning rate can be read."""


class Suggestions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A learning rate by each rule."""

    steepest: float
    minimum: float
    valley: float


class Watch:
    """Tells from the losses as they come whether a sweep has diverged.

    The average is corrected for starting at 0.
    Source: D. Kingma, J. Ba, Adam, arXiv:1412.6980, section 3, for the correction.
    """

    def __init__(self) -> None:
        self._sum, self._steps = 0.0, 0
        self._start, self._least = math.inf, math.inf

    def diverged(self, loss: float) -> bool:
        """Takes the next loss."""
        self._steps += 1
        self._sum = MEMORY * self._sum + (1 - MEMORY) * loss
        average = self._sum / (1 - MEMORY**self._steps)
        if self._steps == 2 * FEWEST:
            self._start = average
        self._least = min(self._least, average)
        return not average <= min(EXPLODED * self._least, RISEN * self._start)  # true for NaN


def smooth(rates: Floats, losses: Floats, width: float = WIDTH) -> Floats:
    """The mean of the losses around each rate, weighted by a bell over the logarithm of the rate.

    An average that only looks back lags: it puts every feature of the curve at too high a rate, and the more so
    the fewer steps a decade has. This one looks both ways. Losses beyond twice the first count as twice.

    Source: E. Nadaraya, On Estimating Regression, 1964; G. Watson, Smooth Regression Analysis, 1964.
    """
    place = np.log10(rates)
    weights = np.exp(-0.5 * ((place[:, None] - place) / width) ** 2)
    calm: Floats = weights @ np.minimum(losses, 2 * _beginning(losses)) / weights.sum(1)
    return calm


def suggest(curve: Curve) -> Suggestions:
    """A learning rate by each of the three rules, of the smoothed curve.

    Raises:
        FlatCurveError: too few steps, or a loss that fell by no more than chance: nothing can be read from it.
    """
    rates, smoothed = curve.learning_rates, curve.smoothed
    if len(rates) < 2 * FEWEST:
        raise FlatCurveError(
            f"the sweep has {len(rates)} steps before the loss diverges, too few to read a rate from: "
            "start it lower, or take more steps"
        )
    least = int(smoothed.argmin())
    fall, chance = _beginning(curve.losses) - smoothed[least], LEAST_FALL * _standard_error(curve)
    if least == 0 or fall <= chance:
        raise FlatCurveError(
            f"the loss never fell between learning rates {rates[0]:.2g} and {rates[-1]:.2g} by more than chance "
            f"({fall:.2g}, expected more than {max(chance, 0.0):.2g}): take more steps, sweep another range, or "
            "give the rate"
        )
    return Suggestions(
        steepest=steepest(rates[: least + 1], smoothed[: least + 1]),
        minimum=float(rates[least]) / 10,
        valley=valley(rates, smoothed, beginning=_beginning(curve.losses)),
    )


def steepest(rates: Floats, losses: Floats) -> float:
    """Where the loss falls fastest over the logarithm of the rate; both end at the least loss.

    Source: the sweep is that of L. Smith, Cyclical Learning Rates, arXiv:1506.01186, section 3.3, who
    reads the bounds by eye, from where accuracy begins to rise to where it turns ragged; taking the
    steepest point is fast.ai's `steep` rule.
    """
    if len(rates) < 2:
        return float(rates[0])
    return float(rates[int(np.gradient(losses, np.log(rates)).argmin())])


def valley(rates: Floats, losses: Floats, *, beginning: float) -> float:
    """The middle, over the logarithm of the rate, of the valley's bottom, of which the first half decade counts.

    The bottom is where four fifths of the fall are done: the rates around the least loss, up to the first on each
    side that is above. Networks with batch norm have a bottom of two decades, and train best near its beginning.

    fast.ai's `valley` takes the middle of the longest falling subsequence of steps. On few photographs the noise of
    the flat part before is longer than the descent, and that rate ten times too low. Here steps do not count, only
    how far the loss has fallen, so the flat part has no say.

    Args:
        rates: rising.
        losses: smoothed, of the same steps.
        beginning: the loss before it fell.

    Source: our own rule; both numbers were chosen on digits, MNIST and photographs, see docs/training.md.
    """
    least = int(losses.argmin())
    above = np.flatnonzero(losses > beginning - DEPTH * (beginning - losses[least]))
    before, after = above[above < least], above[above > least]
    first = float(rates[before[-1] + 1]) if len(before) else float(rates[0])
    last = float(rates[after[0] - 1]) if len(after) else float(rates[-1])
    return math.sqrt(first * min(last, first * 10**BOTTOM))


def _beginning(losses: Floats) -> float:
    """The mean loss of the first steps."""
    return float(losses[: _first(losses)].mean())


def _first(losses: Floats) -> int:
    """How many steps are the beginning."""
    return max(FEWEST, int(BEGINNING * len(losses)))


def _standard_error(curve: Curve) -> float:
    """Of a fall, from the beginning to the least smoothed loss; the noise is what smoothing took away until there.

    A bell of standard deviation s steps averages as many values as a box of 2 s √π.
    """
    until = int(curve.smoothed.argmin()) + 1
    decades = math.log10(curve.learning_rates[-1] / curve.learning_rates[0])
    averaged = 2 * math.sqrt(math.pi) * WIDTH * (len(curve.losses) - 1) / decades
    rest = np.abs((curve.losses - curve.smoothed)[:until])
    noise = 1.4826 * float(np.median(rest))  # as wide as a bell's; one odd batch does not count
    return noise * math.sqrt(1 / max(averaged, 1.0) + 1 / _first(curve.losses))
