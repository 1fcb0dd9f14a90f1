"""How reports look on a terminal: results to stdout, notes and progress to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from .bundle import Bundle
from .confusion import most_confused
from .encoding import encode
from .manifest import Manifest
from .plan import ExecutionPlan
from .proofs import Parity

if TYPE_CHECKING:
    from pathlib import Path

    from .benchmark import BenchReport
    from .calibration import Calibration
    from .diff import Diff, Difference
    from .doctor import Report
    from .evaluate import Evaluation
    from .folder import Counts
    from .verify import Verification


_WIDTH = 120  # of tables that go to a file or a pipe
_FEW = 10  # rows of a list that may be long; --json has all


def note(text: str) -> None:
    """A line for people, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


def print_json(value: Struct) -> None:
    """A report for programs, on stdout."""
    sys.stdout.write(encode(value).decode())


def show(*parts: Table | str) -> None:
    """Tables and lines for people, on stdout."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=_WIDTH)
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
    """The checks of `verify`, a row each, and the worst of what differs."""
    rows = table(f"{report.bundle} {report.identity[:12]}", "check", "result", "detail")
    for check in report.checks:
        rows.add_row(check.name, "FAILED" if check.failed else check.result, escape(check.detail))
    parts: list[Table | str] = [rows]
    for title, lines in (
        ("other pixels", [item.describe() for item in report.pixels]),
        ("other answers", [f"{item.precision} {item.describe()}" for item in report.engine]),
    ):
        if lines:
            parts += ["", f"{title}, the worst first"] + [f"  {line}" for line in lines[:_FEW]]
            parts += [f"  and {len(lines) - _FEW} more, all in --json"] * (len(lines) > _FEW)
    if report.pixels and report.decoder != report.probes_decoder:
        parts += ["", f"decoder here {report.decoder}; where the bundle was made {report.probes_decoder}"]
    show(*parts, "verified" if report.passed else "NOT verified")


def bundle(opened: Bundle) -> None:
    """What a bundle says of itself."""
    manifest = opened.manifest
    spec, pre, made = manifest.input, manifest.preprocess, manifest.provenance
    fp32 = manifest.variant("fp32")
    facts = table(f"{manifest.name}  {opened.path}", "", "")
    facts.show_header = False
    resize = pre.resize if pre.resize_size is None else f"{pre.resize} from {pre.resize_size}"
    for name, value in (
        ("identity", opened.identity),
        (
            "signature",
            "none" if opened.signature is None else "there, checked by  shipnet verify --public-key",
        ),
        ("format version", str(manifest.format_version)),
        ("created", manifest.created_utc),
        ("labels", f"{len(manifest.labels)}: " + ", ".join(manifest.labels)),
        ("input", f"{spec.name}: {spec.dtype} {spec.layout}, {spec.height} x {spec.width} x {spec.channels}"),
        ("resize", f"{resize}, {pre.interpolation}"),
        (
            "output",
            f"{manifest.output.name}: {manifest.output.dtype} logits, temperature {fp32.temperature:g}",
        ),
        ("network", f"{made.arch}, {made.parameters:,} parameters"),
        (
            "data",
            f"{made.data}: {_or_unknown(made.train_images)} training, {made.validation_images:,} validation images",
        ),
        *(("accepted", doubt) for doubt in made.doubts),
        ("training", "not shipnet's" if made.epochs is None else f"{made.epochs} epochs, seed {made.seed}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("git commit", made.git_commit or "unknown"),
        ("size", f"{opened.size_bytes:,} bytes in {len(manifest.files)} files"),
    ):
        facts.add_row(name, value)
    lines = variants_lines(manifest)
    show(facts, "", _evidence(opened), *([""] if lines else []), *lines)


def _or_unknown(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _evidence(opened: Bundle) -> Table:
    """What each file proved against the trained network."""
    numbers = ("bytes", "accuracy (95 %)", "flips", "logits, of scale")
    rows = table("evidence", "file", "for", "status", *numbers, numbers=numbers)
    sizes = {entry.path: entry.size_bytes for entry in opened.manifest.files}
    for variant in opened.manifest.variants:
        targets, size = ", ".join(variant.targets), f"{sizes[variant.file]:,}"
        rows.add_row(variant.file, targets, variant.status, size, *_parity_cells(variant.parity))
    for item in opened.manifest.interop:
        rows.add_row(item.file, "PyTorch", "", f"{sizes[item.file]:,}", *_parity_cells(item.parity))
    return rows


def variants_lines(manifest: Manifest) -> list[str]:
    """Every precision beside fp32 with what it proved, or why it is not certified or not there; a line each."""
    lines = []
    for item in manifest.variants:
        if item.precision == "fp32":
            continue
        found = item.parity
        lines.append(
            f"{item.precision}: {item.status}, accuracy {found.accuracy.accuracy:.2%}, "
            f"{found.flips} of {found.images:,} decisions differ"
        )
        lines += [f"  {reason}" for reason in item.status_reasons]
    for left in manifest.left_out:
        lines += [f"{left.precision}: left out", *(f"  {reason}" for reason in left.reasons)]
    return lines


def _parity_cells(parity: Parity | None) -> tuple[str, str, str]:
    """Accuracy, flips and logit difference; empty for what is not run."""
    if parity is None:
        return "", "", ""
    found = parity.accuracy
    difference = max((row.max_relative_difference for row in parity.batches), default=0.0)
    return (
        f"{found.accuracy:.2%} ({100 * found.low:.2f} to {100 * found.high:.2f})",
        f"{parity.flips} of {parity.images:,}",
        f"{difference:.1g}",
    )


def counts_line(counts: Counts, hidden: int, out: Path | None) -> str:
    """How a classification ended, in one line."""
    parts = [f"{counts.ok:,} classified"]
    if counts.errors:
        parts.append(f"{counts.errors:,} with an error (their rows say why)")
    if hidden:
        parts.append(f"{hidden:,} hidden files or folders passed over")
    if out is not None:
        parts.append(f"written to {out}")
    return ", ".join(parts)


def evaluation(report: Evaluation) -> None:
    """Accuracy, classes, confusions and the worst mistakes."""
    found = report.accuracy
    numbers = ("images", "correct", "precision", "recall")
    classes = table("classes", "label", *numbers, numbers=numbers)
    for result in report.classes:
        precision, recall = (
            "" if share is None else f"{share:.2%}" for share in (result.precision, result.recall)
        )
        classes.add_row(escape(result.label), f"{result.images:,}", f"{result.correct:,}", precision, recall)
    parts: list[Table | str] = [
        f"accuracy {found.accuracy:.2%} ({found.low:.2%} to {found.high:.2%}, 95 % interval), "
        f"{found.correct:,} of {found.images:,} images",
        f"calibration error {report.calibration.ece:.4f} (ECE, {len(report.calibration.bins)} bins)",
        "",
        classes,
        "",
        _reliability(report.calibration),
    ]
    if wrong := most_confused(report.confusion, _FEW):
        pairs = table("most confused", "is", "called", "images", numbers=("images",))
        for pair in wrong:
            pairs.add_row(escape(pair.truth), escape(pair.label), f"{pair.images:,}")
        mistakes = table("surest mistakes", "file", "is", "called", "score", numbers=("score",))
        for mistake in report.worst[:_FEW]:
            names = (escape(name) for name in (mistake.path, mistake.truth, mistake.label))
            mistakes.add_row(*names, f"{mistake.score:.4f}")
        parts += ["", pairs, "", mistakes]
    if report.unreadable:
        unread = table(f"not readable: {len(report.unreadable):,}", "file", "why")
        for file in report.unreadable[:_FEW]:
            unread.add_row(escape(file.path), escape(file.error))
        parts += ["", unread]
    if report.missing_classes:
        parts += ["", f"no images of: {', '.join(report.missing_classes)}"]
    show(*parts)


def _reliability(found: Calibration) -> Table:
    """What was claimed and what was true, a row for each range of scores that occurred."""
    numbers = ("images", "mean score", "accuracy")
    rows = table("scores", "score", *numbers, numbers=numbers)
    for part in found.bins:
        if part.score is not None and part.accuracy is not None:
            span = f"{part.low:.2f} to {part.high:.2f}"
            rows.add_row(span, f"{part.images:,}", f"{part.score:.4f}", f"{part.accuracy:.4f}")
    return rows


def difference(report: Diff) -> None:
    """How often two sides differ, who is right, from which label to which, and on which images."""
    rate = report.flip_rate
    parts: list[Table | str] = [
        f"{len(report.differences):,} of {report.images:,} images get another label: {rate.value:.2%} "
        f"({rate.low:.2%} to {rate.high:.2%}, 95 % interval)"
    ]
    if found := report.correctness:
        drop = found.drop
        parts.append(
            f"right: a {found.a.accuracy:.2%}, b {found.b.accuracy:.2%} of {found.a.images:,}; b lost {found.lost:,} "
            f"and gained {found.gained:,}: {-drop.value:+.2%} ({-drop.high:+.2%} to {-drop.low:+.2%}, 95 % interval)"
        )
    parts += [f"pixels: {rule.field} is {rule.a} in a, {rule.b} in b" for rule in report.preprocess]
    for side, labels in (("a", report.labels_only_a), ("b", report.labels_only_b)):
        if labels:
            parts.append(f"labels that only {side} has: {', '.join(labels)}")
    if report.unlabelled_folders:
        parts.append(f"folders named like no label: {', '.join(report.unlabelled_folders)}")
    if report.changes:
        changes = table("changes", "a", "b", "images", numbers=("images",))
        for change in report.changes[:_FEW]:
            changes.add_row(escape(change.a), escape(change.b), f"{change.images:,}")
        parts += ["", changes, "", _different_images(report.differences)]
    if report.unreadable:
        unread = table(f"not readable: {len(report.unreadable):,}", "file", "why")
        for file in report.unreadable[:_FEW]:
            unread.add_row(escape(file.path), escape(file.reason))
        parts += ["", unread]
    show(*parts)


def _different_images(differences: tuple[Difference, ...]) -> Table:
    numbers = ("score a", "margin a", "score b", "margin b")
    title = "surest disagreements" if len(differences) > _FEW else "images"
    rows = table(title, "file", "is", "a", *numbers[:2], "b", *numbers[2:], numbers=numbers)
    for item in differences[:_FEW]:
        a, b = ((escape(side.label), f"{side.score:.4f}", f"{side.margin:.4f}") for side in (item.a, item.b))
        rows.add_row(escape(item.path), escape(item.truth or ""), *a, *b)
    return rows


def benchmark(report: BenchReport) -> None:
    """Latency and throughput, a row a batch size, and what they were measured on."""
    numbers = ("batch", "runs", "mean ms", "median ms", "p90 ms", "p95 ms", "p99 ms", "images/s")
    rows = table(report.plan.bundle, *numbers, numbers=numbers)
    for row in report.batches:
        times = (row.mean_ms, row.median_ms, row.p90_ms, row.p95_ms, row.p99_ms)
        rows.add_row(
            str(row.batch_size),
            f"{row.runs:,}",
            *(f"{time:.3f}" for time in times),
            f"{row.images_per_s:,.0f}",
        )
    machine, settings = report.hardware, report.settings
    gpus = "".join(f", {gpu.name}" for gpu in machine.gpus)
    show(
        rows,
        plan_line(report.plan),
        f"{settings.measured}; {settings.images}; {settings.warmup} runs to warm up",
        f"{machine.cpu}, {machine.cores.usable} of {machine.cores.logical} cores{gpus}; {machine.system}; "
        + ", ".join(f"{name} {version}" for name, version in report.plan.versions.items()),
    )


def doctor(report: Report) -> None:
    """What runs here, what it runs on, what is broken and what mends it."""
    engines = table("engines, tried out", "engine", "works", "detail")
    for engine in report.engines:
        engines.add_row(engine.name, "yes" if engine.works else "no", engine.detail)
    machine, cores = report.hardware, report.hardware.cores
    quota = "no quota" if cores.cgroup_quota is None else f"cgroup quota {cores.cgroup_quota:g}"
    memory = "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    gpus = ", ".join(
        f"{gpu.name} ({gpu.memory_bytes / 2**30:.0f} GiB, driver {gpu.driver})" for gpu in machine.gpus
    )
    show(
        engines,
        "",
        f"cpu       {machine.cpu} ({', '.join(machine.cpu_flags) or 'no vector instructions known'})",
        f"cores     {cores.usable} usable of {cores.logical} (affinity {cores.affinity}, {quota})",
        f"memory    {memory}",
        f"gpu       {gpus or 'none found'}"
        + (f", runs CUDA up to {report.driver_cuda}" if report.driver_cuda else ""),
        f"system    {machine.system}, {machine.python}",
        f"decoder   {report.decoder}",
        "versions  " + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    )
    for kind, findings in (("problem", report.problems), ("hint", report.hints)):
        for finding in findings:
            show(f"{kind}   {finding.what}", f"  mend    {finding.mend}")
    show("no problems found" if not report.problems else "")
