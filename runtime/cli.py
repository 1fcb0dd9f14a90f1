"""The commands that need no PyTorch: verify, inspect, classify, evaluate, diff, bench, doctor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from .errors import ShipnetError

EXIT_SOME_UNANSWERED: Final = 3
Command = TypeVar("Command", bound=Callable[..., Any])

_bundle_argument = click.argument("bundle", type=click.Path(path_type=Path))
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def engine_options(command: Command) -> Command:
    """The options that decide what runs: --device, --precision, --threads."""
    for option in (
        click.option(
            "--threads",
            type=click.IntRange(min=1),
            help="Threads a batch uses on the CPU [default: measured]",
        ),
        click.option("--precision", default="fp32", show_default=True, help="Variant of the bundle to run."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda."),
    ):
        command = option(command)
    return command


_batch_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images per run."
)


@click.command()
@_bundle_argument
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--precision", help="Only this variant; default: every one meant for the device.")
@click.option(
    "--pixel-tolerance",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    help="Levels, of 256, by which decoded pixels may differ where no decision changes.",
)
@click.option(
    "--public-key",
    type=click.Path(path_type=Path, dir_okay=False),
    help="PEM file; the bundle must be signed by that key's owner.",
)
@_json_option
def verify(
    bundle: Path,
    device: str,
    precision: str | None,
    pixel_tolerance: int,
    public_key: Path | None,
    as_json: bool,
) -> None:
    """Check a bundle's files and replay its probes here, on this device.

    Probes are images with known answers in the bundle's evidence/. Their files are decoded and compared with the stored
    pixels, and every variant runs the stored pixels: so a decoder that differs is told from an engine that does.
    """
    from . import render
    from .verify import verify as run

    report = run(
        bundle,
        device=device,
        precision=precision,
        pixel_tolerance=pixel_tolerance,
        public_key=public_key,
    )
    render.print_json(report) if as_json else render.verification(report)
    if not report.passed:
        failed = ", ".join(check.name for check in report.checks if check.failed)
        raise ShipnetError(f"{bundle}: failed: {failed}")


@click.command()
@_bundle_argument
@_json_option
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what a bundle is: labels, input, variants, evidence."""
    from . import render
    from .bundle import Bundle

    opened = Bundle.open(bundle)
    render.print_json(opened.manifest) if as_json else render.bundle(opened)


@click.command()
@_bundle_argument
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="CSV file; default: stdout.")
@click.option("--top-k", type=click.IntRange(min=1), default=1, show_default=True, help="Labels per image.")
@engine_options
@_batch_option
@click.pass_context
def classify(
    ctx: click.Context,
    bundle: Path,
    paths: tuple[Path, ...],
    out: Path | None,
    top_k: int,
    device: str,
    precision: str,
    threads: int | None,
    batch_size: int,
) -> None:
    """Classify images and folders: one CSV row per file.

    Every file found gets a row, in sorted order; a file that is no image gets status "error" and the reason.
    Exit code 3 says that there were some.
    """
    from . import render
    from .classifier import Classifier
    from .folder import classify_files, find_files, write_csv

    found = find_files(paths)
    with Classifier.load(
        bundle, device=device, precision=precision, threads=threads, batch_size=batch_size
    ) as classifier:
        render.note(render.plan_line(classifier.plan))
        with render.progress(len(found.files), "classify") as advance:
            rows = classify_files(classifier, found.files, top_k=top_k)
            counts = write_csv(rows, out, top_k=top_k, on_row=advance)
    render.note(render.counts_line(counts, found.hidden, out))
    if counts.errors:
        ctx.exit(EXIT_SOME_UNANSWERED)


@click.command()
@_bundle_argument
@click.argument("folder", type=click.Path(path_type=Path))
@engine_options
@_batch_option
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with pictures here."
)
@_json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    bundle: Path,
    folder: Path,
    device: str,
    precision: str,
    threads: int | None,
    batch_size: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure accuracy on a folder with a sub-folder per class.

    Counts right and wrong for each class, which classes are taken for which, whether scores can be believed, and the
    mistakes the network was surest of; --html draws it all, the mistakes as images.
    """
    from . import render
    from .classifier import Classifier
    from .evaluate import evaluate as run
    from .evaluate_page import evaluate_page
    from .staging import write_file

    with Classifier.load(
        bundle, device=device, precision=precision, threads=threads, batch_size=batch_size
    ) as classifier:
        render.note(render.plan_line(classifier.plan))
        with render.stage_progress() as on_progress:
            evaluation = run(
                classifier, folder, on_progress=lambda done, total: on_progress("evaluate", done, total)
            )
        if html is not None:
            write_file(html, evaluate_page(evaluation, classifier.bundle.manifest.preprocess).encode())
    render.print_json(evaluation) if as_json else render.evaluation(evaluation)
    if evaluation.unreadable:
        ctx.exit(EXIT_SOME_UNANSWERED)


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--data", "folder", required=True, type=click.Path(path_type=Path), help="Folder of images, at any depth."
)
@click.option("--precision-a", default="fp32", show_default=True, help="Variant of A.")
@click.option("--precision-b", default="fp32", show_default=True, help="Variant of B.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Threads a batch uses on the CPU [default: measured]"
)
@_batch_option
@click.option(
    "--max-flip-rate",
    type=click.FloatRange(0, 1),
    help="Fail with exit code 1 above this share of other labels: 0 holds the images at hand, more than 0 the "
    "upper end of the 95 % interval.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the images that differ as CSV here.",
)
@click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page with pictures here."
)
@_json_option
@click.pass_context
def diff(
    ctx: click.Context,
    a: Path,
    b: Path,
    folder: Path,
    precision_a: str,
    precision_b: str,
    device: str,
    threads: int | None,
    batch_size: int,
    max_flip_rate: float | None,
    out: Path | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Show where two bundles decide differently on a folder of images.

    Each reads a file by its own rules, from decoding to the label. Two precisions of one bundle are compared by naming
    it twice, with --precision-b. Folders that are named like labels also tell which side is right.
    """
    from . import render
    from .classifier import Classifier
    from .diff import diff as run
    from .diff import write_csv
    from .diff_page import diff_page
    from .staging import write_file

    def load(bundle: Path, precision: str) -> Classifier:
        return Classifier.load(
            bundle, device=device, precision=precision, threads=threads, batch_size=batch_size
        )

    with load(a, precision_a) as one, load(b, precision_b) as other:
        render.note(f"a: {render.plan_line(one.plan)}")
        render.note(f"b: {render.plan_line(other.plan)}")
        if one.plan == other.plan:
            render.note("both sides are the same: name another bundle, or another --precision-b")
        with render.stage_progress() as on_progress:
            found = run(one, other, folder, on_progress=lambda done, total: on_progress("diff", done, total))
    if out is not None:
        write_csv(found, out)
    if html is not None:
        specs = (side.bundle.manifest.preprocess for side in (one, other))
        write_file(html, diff_page(found, *specs).encode())
    render.print_json(found) if as_json else render.difference(found)
    excess = None if max_flip_rate is None else found.excess(max_flip_rate)
    if excess:
        raise ShipnetError(f"{folder}: {excess}")
    if found.unreadable:
        ctx.exit(EXIT_SOME_UNANSWERED)


@click.command()
@_bundle_argument
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 8, 32),
    show_default=True,
    help="Images per run; may be given several times.",
)
@click.option("--warmup", type=click.IntRange(min=0), default=10, show_default=True, help="Runs not counted.")
@click.option(
    "--min-runs", type=click.IntRange(min=1), default=50, show_default=True, help="Runs counted, at least."
)
@click.option("--min-seconds", type=float, default=1.0, show_default=True, help="Seconds counted, at least.")
@engine_options
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Also write the report as JSON here."
)
@_json_option
def bench(
    bundle: Path,
    batch_sizes: tuple[int, ...],
    warmup: int,
    min_runs: int,
    min_seconds: float,
    device: str,
    precision: str,
    threads: int | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure latency and throughput of the engine on this machine."""
    from . import render
    from .benchmark import benchmark
    from .classifier import Classifier
    from .encoding import encode
    from .staging import write_file

    with Classifier.load(bundle, device=device, precision=precision, threads=threads) as classifier:
        report = benchmark(classifier, batch_sizes, warmup=warmup, min_runs=min_runs, min_seconds=min_seconds)
    if out is not None:
        write_file(out, encode(report))
    render.print_json(report) if as_json else render.benchmark(report)


@click.command()
@_json_option
def doctor(as_json: bool) -> None:
    """Show what this machine can run, what is broken, and what mends it."""
    from . import render
    from .doctor import examine

    report = examine()
    render.print_json(report) if as_json else render.doctor(report)
    if report.problems:
        raise ShipnetError(f"{len(report.problems)} problem(s) found, see above")
