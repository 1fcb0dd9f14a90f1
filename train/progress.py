"""A training run as it is drawn on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .events import EpochDone, Event, LrFound, OnEvent, Reading, Started, StepDone

COLUMNS = ("epoch", "train_loss", "valid_loss", "accuracy", "time")


@contextmanager
def training_display() -> Iterator[OnEvent]:
    """Yields what `fit` calls with its events."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    table = _LiveTable(console)
    with table.live:
        yield table


class _Lines:
    """One line per epoch, for logs."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, event: Event) -> None:
        if isinstance(event, LrFound):
            self.console.print(describe_lr(event), markup=False)
        elif isinstance(event, Started):
            self.console.print(describe(event), markup=False)
            self.console.print("  ".join(f"{name:>10}" for name in COLUMNS))
        elif isinstance(event, EpochDone):
            self.console.print("  ".join(f"{cell:>10}" for cell in cells(event)))


class _LiveTable:
    """A growing table; below it a bar over the steps of the whole run, which goes when all is done."""

    def __init__(self, console: Console) -> None:
        self.table = Table(*COLUMNS, show_edge=False, pad_edge=False)
        for column in self.table.columns:
            column.justify = "right"
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=console, auto_refresh=False)
        self.task = self.bar.add_task("reading images", total=None)
        self.live = Live(self.bar, console=console, refresh_per_second=4)
        self.steps = self.total = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Reading):
            self.bar.update(self.task, completed=event.done, total=event.total)
        elif isinstance(event, LrFound):
            self.live.console.print(describe_lr(event), markup=False)
        elif isinstance(event, Started):
            self.live.console.print(describe(event), markup=False)
            self.steps, self.total = event.steps, event.steps * event.epochs
            self.bar.reset(self.task, total=self.total, description="training")
        elif isinstance(event, StepDone):
            done = (event.epoch - 1) * self.steps + event.step
            self.bar.update(self.task, completed=done)
            if done == self.total:
                self.bar.update(self.task, visible=False)
        else:
            self.table.add_row(*cells(event))
            self.live.update(Group(self.table, self.bar))


class _Rate(ProgressColumn):
    """Optimiser steps, or images read, a second, once there is a rate."""

    def render(self, task: Task) -> Text:
        """Called by rich."""
        return Text(
            f"{task.speed:,.1f} {'steps' if task.description == 'training' else 'images'}/s"
            if task.speed
            else ""
        )


def describe(event: Started) -> str:
    """What trains on what, in one line; one more for each thing to say about the weights that it starts from."""
    first = (
        f"{event.arch} ({event.parameters:,} parameters) on {event.data}: {event.train_images:,} training, "
        f"{event.valid_images:,} validation images; {event.device}"
    )
    return "\n".join((first, *event.start))


def describe_lr(event: LrFound) -> str:
    """Which peak of the learning rate was chosen and why, in one line."""
    return f"max_lr {event.max_lr:.3g}: the valley of a sweep over {event.steps} training batches, {event.wall_s:.1f} s"


def cells(event: EpochDone) -> tuple[str, ...]:
    """An epoch's row, in the order of `COLUMNS`."""
    return (
        str(event.epoch),
        f"{event.train_loss:.4f}",
        f"{event.valid_loss:.4f}",
        f"{event.accuracy:.2%}",
        f"{event.wall_s:.1f} s",
    )
