"""The pipeline's one progress view, on stderr: a bar a stage on a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from shipnet.train.events import EpochDone, LrFound, Reading, Started, StepDone
from shipnet.train.progress import COLUMNS, cells, describe, describe_lr

from .workflow import STAGES

# The parts of an export, in order; the last one tells how far it is.
_PARTS: Final = {
    "data": "reads the data",
    "onnx": "ONNX",
    "torchscript": "TorchScript",
    "pt2": ".pt2",
    "prove": "proves",
}
_DOES: Final = {
    "train": "fits the network",
    "export": "exports and proves it",
    "verify": "opens and runs the bundle",
    "bench": "measures latency",
}


class ProgressView:
    """Draws what `run_pipeline` reports. Use it as a context manager and give it as `on_stage`."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._terminal = self._console.is_terminal
        columns = (
            TextColumn("{task.description:<7}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bars = Progress(*columns, console=self._console, transient=True, disable=not self._terminal)
        self._tasks: dict[str, TaskID] = {}
        self._epochs = 0
        self._steps = 0

    def __enter__(self) -> Self:
        self._bars.start()
        for stage in STAGES:
            self._tasks[stage] = self._bars.add_task(stage, start=False, total=None, status="waits")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def __call__(self, stage: str, event: object) -> None:
        """Takes what `run_pipeline` reports."""
        if event == "started":
            self._bars.start_task(self._tasks[stage])
            self._show(stage, _DOES[stage])
            self._line(f"{stage}: {_DOES[stage]}")
        elif event in ("finished", "skipped"):
            status = "done" if event == "finished" else "unchanged, skipped"
            self._bars.update(self._tasks[stage], total=1, completed=1, status=status)
            self._line(f"{stage}: {status}")
        elif isinstance(event, Reading):
            self._show(stage, "reads the images")
            self._bars.update(self._tasks[stage], total=event.total, completed=event.done)
        elif isinstance(event, Started):
            self._started(stage, event)
        elif isinstance(event, LrFound):
            self._console.print(describe_lr(event), markup=False)
        elif isinstance(event, StepDone):
            done = (event.epoch - 1) * self._steps + event.step
            self._bars.update(self._tasks[stage], completed=done)
        elif isinstance(event, EpochDone):
            self._epoch(stage, event)
        elif isinstance(event, tuple):
            self._part(stage, *event)

    def _started(self, stage: str, event: Started) -> None:
        self._epochs, self._steps = event.epochs, event.steps
        self._bars.update(self._tasks[stage], total=event.epochs * event.steps)
        self._console.print(describe(event), markup=False)
        self._console.print("  ".join(f"{name:>10}" for name in COLUMNS))

    def _epoch(self, stage: str, event: EpochDone) -> None:
        self._show(stage, f"epoch {event.epoch}/{self._epochs}")
        self._console.print("  ".join(f"{cell:>10}" for cell in cells(event)), markup=False)

    def _part(self, stage: str, what: str, done: int, total: int) -> None:
        self._show(stage, _PARTS.get(what, what))
        if what == "prove":
            self._bars.update(self._tasks[stage], total=total, completed=done)

    def _show(self, stage: str, status: str) -> None:
        self._bars.update(self._tasks[stage], status=status)

    def _line(self, text: str) -> None:
        if not self._terminal:
            self._console.print(text, markup=False)
