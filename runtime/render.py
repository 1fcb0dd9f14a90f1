"""How reports look on a terminal: results to stdout, notes and progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from .bundle import Bundle
from .manifest import encode
from .plan import ExecutionPlan

if TYPE_CHECKING:
    from .verify import Verification


def note(text: str) -> None:
    """A line for people, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def print_json(value: Struct) -> None:
    """A report for programs, on stdout."""
    sys.stdout.write(encode(value).decode())


def show(*parts: Table | str) -> None:
    """Tables and lines for people, on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)


def table(title: str, *columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table whose `numbers` columns are aligned to the right."""
    made = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return made


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[], None]]:
    """A bar with rate and time left on stderr, gone when done and absent when stderr is no terminal.

    Yields:
        What to call once for each finished item.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total, rate="")

        def advance() -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=1, rate=f"{speed:,.0f}/s" if speed else "")

        yield advance


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each kind of work, one below the other, gone when done and absent without a terminal.

    Yields:
        What to call with the work's name, how much of it is done, and how much there is.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield update


def plan_line(plan: ExecutionPlan) -> str:
    """What runs, in one line."""
    threads = "1 thread" if plan.intra_op_threads == 1 else f"{plan.intra_op_threads} threads"
    return f"{plan.bundle} {plan.identity[:12]}: {plan.precision} on {plan.provider} ({plan.device_reason}), {threads}"


def verification(report: Verification) -> None:
    """The checks of `verify`, a row each."""
    rows = table(f"{report.bundle} {report.identity[:12]}", "check", "result", "detail")
    for check in report.checks:
        rows.add_row(check.name, "ok" if check.passed else "FAILED", check.detail)
    show(rows, "verified" if report.passed else "NOT verified")


def bundle(opened: Bundle) -> None:
    """What a bundle says of itself."""
    manifest = opened.manifest
    spec, pre, made = manifest.input, manifest.preprocess, manifest.provenance
    facts = table(f"{manifest.name}  {opened.path}", "", "")
    facts.show_header = False
    resize = pre.resize if pre.resize_size is None else f"{pre.resize} from {pre.resize_size}"
    for name, value in (
        ("identity", opened.identity),
        ("format version", str(manifest.format_version)),
        ("created", manifest.created_utc),
        ("labels", f"{len(manifest.labels)}: " + ", ".join(manifest.labels)),
        ("input", f"{spec.name}: {spec.dtype} {spec.layout}, {spec.height} x {spec.width} x {spec.channels}"),
        ("resize", f"{resize}, {pre.interpolation}"),
        (
            "output",
            f"{manifest.output.name}: {manifest.output.dtype} logits, temperature {manifest.temperature:g}",
        ),
        ("network", f"{made.arch}, {made.parameters:,} parameters"),
        (
            "data",
            f"{made.data}: {made.train_images:,} training, {made.validation_images:,} validation images",
        ),
        ("training", f"{made.epochs} epochs, seed {made.seed}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("git commit", made.git_commit or "unknown"),
        ("size", f"{opened.size_bytes:,} bytes in {len(manifest.files)} files"),
    ):
        facts.add_row(name, value)
    show(facts, "", _evidence(opened))


def _evidence(opened: Bundle) -> Table:
    """What each file proved against the trained network."""
    numbers = ("bytes", "accuracy", "95 % interval", "flips", "max difference", "relative")
    rows = table("evidence", "file", "for", *numbers, numbers=numbers)
    sizes = {entry.path: entry.size_bytes for entry in opened.manifest.files}
    for item in (*opened.manifest.variants, *opened.manifest.interop):
        targets = ", ".join(getattr(item, "targets", ())) or "PyTorch"
        if item.parity is None:
            rows.add_row(item.file, targets, f"{sizes[item.file]:,}", "", "", "", "", "")
            continue
        found = item.parity.accuracy
        rows.add_row(
            item.file,
            targets,
            f"{sizes[item.file]:,}",
            f"{found.accuracy:.2%}",
            f"{found.low:.2%} to {found.high:.2%}",
            f"{item.parity.flips} of {item.parity.images:,}",
            f"{max((row.max_difference for row in item.parity.batches), default=0):.2g}",
            f"{max((row.max_relative_difference for row in item.parity.batches), default=0):.2g}",
        )
    return rows


