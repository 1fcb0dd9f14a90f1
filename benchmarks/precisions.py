"""The precisions of a bundle side by side: what each proved, and its latency here, in turns in one process.

    python benchmarks/precisions.py artifacts/mnist/bundle --rounds 10

Every precision that runs on the CPU is opened through the `Classifier`; in each round each of them takes its turn at
each batch size, so that what else the machine does falls on all alike. A turn is the median of its runs. Those that are
not meant for the CPU have no latency here. Prints a Markdown table on stderr and JSON on stdout.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from shipnet.runtime import Bundle, Classifier
from shipnet.runtime.machine import hardware
from shipnet.runtime.manifest import InputSpec, Variant

BATCHES = (1, 32)
WARMUP = 5


def turn(classifier: Classifier, spec: InputSpec, size: int, *, seconds: float) -> float:
    """The median of runs on one batch of seeded noise, in milliseconds."""
    batch = np.random.default_rng(0).integers(
        0, 256, (size, spec.height, spec.width, spec.channels), np.uint8
    )
    for _ in range(WARMUP):
        classifier.logits(batch)
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(samples) < 5:
        start = time.perf_counter_ns()
        classifier.logits(batch)
        samples.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(samples)


def row(variant: Variant, size_bytes: int, latencies: dict[int, list[float]]) -> dict[str, Any]:
    found = variant.parity
    return {
        "precision": variant.precision,
        "status": variant.status,
        "status_reasons": variant.status_reasons,
        "size_bytes": size_bytes,
        "accuracy": msgspec.to_builtins(found.accuracy),
        "reference_accuracy": found.reference_accuracy.accuracy,
        "compared": found.images,
        "flips": found.flips,
        "decisions": msgspec.to_builtins(found.decisions),
        "differences_of_scale": {
            name: getattr(found.differences, name) / found.differences.scale
            for name in ("median", "p90", "p99", "max")
        },
        "latency_ms": {
            size: {"median": statistics.median(turns), "least": min(turns), "most": max(turns)}
            for size, turns in latencies.items()
        },
    }


def line(shown: dict[str, Any]) -> str:
    found, differences = shown["accuracy"], shown["differences_of_scale"]
    times = (f"{shown['latency_ms'][size]['median']:.3g}" if shown["latency_ms"] else "–" for size in BATCHES)
    cells = (
        shown["precision"],
        shown["status"],
        f"{shown['size_bytes'] / 1e6:.3g} MB",
        f"{found['accuracy']:.2%} ({found['low']:.2%} to {found['high']:.2%}) of {found['images']:,}",
        f"{shown['flips']} of {shown['compared']:,}",
        f"{differences['median']:.1g} / {differences['p99']:.1g} / {differences['max']:.1g}",
        *times,
    )
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--rounds", default=10, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Of one turn.")
def main(bundle: Path, rounds: int, seconds: float) -> None:
    opened = Bundle.open(bundle)
    sizes = {entry.path: entry.size_bytes for entry in opened.manifest.files}
    taken: dict[str, dict[int, list[float]]] = {}
    with ExitStack() as stack:
        engines = {
            variant.precision: stack.enter_context(
                Classifier.load(bundle, device="cpu", precision=variant.precision)
            )
            for variant in opened.manifest.variants
            if "cpu" in variant.targets
        }
        for _ in range(rounds):
            for size in BATCHES:
                for precision, classifier in engines.items():
                    taken.setdefault(precision, {}).setdefault(size, []).append(
                        turn(classifier, opened.manifest.input, size, seconds=seconds)
                    )
        plans = {precision: msgspec.to_builtins(engine.plan) for precision, engine in engines.items()}
    rows = [
        row(variant, sizes[variant.file], taken.get(variant.precision, {}))
        for variant in opened.manifest.variants
    ]
    ratios = {
        precision: {
            size: statistics.median(a / b for a, b in zip(taken["fp32"][size], turns[size], strict=True))
            for size in BATCHES
        }
        for precision, turns in taken.items()
    }
    head = "precision | status | size | accuracy (95 %) | flips | logit differences of scale, median / 99 % / largest"
    click.echo(f"| {head} | batch 1, ms | batch 32, ms |\n|{'---|' * 8}", err=True)
    for shown in rows:
        click.echo(line(shown), err=True)
    report = {
        "bundle": opened.manifest.name,
        "identity": opened.identity,
        "left_out": msgspec.to_builtins(opened.manifest.left_out),
        "rows": rows,
        "times_as_fast_as_fp32": ratios,
        "turns_ms": taken,
        "plans": plans,
        "hardware": msgspec.to_builtins(hardware()),
        "load_average": os.getloadavg(),
    }
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
