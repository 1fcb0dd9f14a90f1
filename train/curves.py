"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .events import EpochDone


def draw_curves(history: Sequence[EpochDone], path: Path, *, title: str) -> None:
    """Loss and accuracy over the epochs, as a PNG file of 1,000 x 400 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(10, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [epoch.epoch for epoch in history]
    loss.plot(epochs, [epoch.train_loss for epoch in history], marker=".", label="training, augmented")
    loss.plot(epochs, [epoch.valid_loss for epoch in history], marker=".", label="validation")
    loss.set(xlabel="epoch", ylabel="cross-entropy")
    loss.legend()
    accuracy.plot(epochs, [epoch.accuracy for epoch in history], marker=".", color="C1")
    accuracy.set(xlabel="epoch", ylabel="validation accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    figure.savefig(path)
