"""What others say of a bundle's graph: ONNX's checker, its reference evaluator, and OpenVINO.

    python benchmarks/witnesses.py artifacts/digits/bundle [--images artifacts/digits/samples] [--limit 2000]

None of them shares code with the engine that an export was proved through. Each is asked for the logits of the probes,
and OpenVINO for those of a folder of images too; what is compared with is the engine, onnxruntime on the CPU.
Prints JSON: the largest logit difference, over the largest absolute logit, and the images with another label.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import onnx
import onnx.reference
import onnx.version_converter
import openvino
from numpy.typing import NDArray

from shipnet.runtime import Bundle, Classifier
from shipnet.runtime.evidence import load_probes
from shipnet.runtime.folder import find_files
from shipnet.runtime.machine import hardware

Logits = NDArray[np.float32]
Run = Callable[[NDArray[np.uint8]], Logits]
CHUNK = 64
QUANTISING_OPSET = 19


def check(model: bytes) -> None:
    """ONNX's checker with shape inference.

    Raises:
        onnx.checker.ValidationError: the graph breaks ONNX's rules.
    """
    onnx.checker.check_model(onnx.load_from_string(model), full_check=True)


def reference(model: bytes) -> Run:
    """ONNX's own evaluator, which computes each operator with numpy as the specification says.

    It has no quantising operators before opset 19, so ONNX's converter raises a graph with some to that.
    """
    graph = onnx.load_from_string(model)
    if any(node.op_type == "DequantizeLinear" for node in graph.graph.node):
        graph = onnx.version_converter.convert_version(graph, QUANTISING_OPSET)
    session = onnx.reference.ReferenceEvaluator(graph)

    def run(images: NDArray[np.uint8]) -> Logits:
        (logits,) = session.run(None, {session.input_names[0]: images})
        return logits

    return run


def by_openvino(model: bytes, precision: str = "f32") -> Run:
    """OpenVINO on the CPU; left alone it computes in bf16 where the CPU can, which is another network."""
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model, b""),
        "CPU",
        {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1},
    )

    def run(images: NDArray[np.uint8]) -> Logits:
        return np.array(compiled([images])[compiled.output(0)])

    return run


def compare(witness: Run, engine: Run, images: NDArray[np.uint8]) -> dict[str, Any]:
    """How far a witness's logits are from the engine's, and how many labels are others."""
    start, largest, scale, flips = time.perf_counter(), 0.0, 0.0, 0
    for first in range(0, len(images), CHUNK):
        chunk = images[first : first + CHUNK]
        found, expected = witness(chunk), engine(chunk)
        if found.shape != expected.shape or not np.isfinite(found).all():
            raise click.ClickException(f"the witness gave {found.shape}, or NaN, expected {expected.shape}")
        largest = max(largest, float(np.abs(found - expected).max()))
        scale = max(scale, float(np.abs(expected).max()))
        flips += int((found.argmax(1) != expected.argmax(1)).sum())
    return {
        "images": len(images),
        "max_relative_difference": largest / scale,
        "flips": flips,
        "wall_s": round(time.perf_counter() - start, 2),
    }


def witnesses(path: Path, images: NDArray[np.uint8] | None = None) -> Iterator[dict[str, Any]]:
    """Every witness on every variant for the CPU, on the probes and on further images."""
    bundle = Bundle.open(path)
    probes = load_probes(bundle)
    if probes is None:
        raise click.ClickException(f"{path}: holds no probes: take a copy with evidence/")
    sets = {"probes": probes.tensors} | ({} if images is None else {"images": images})
    for variant in bundle.manifest.variants:
        if "cpu" not in variant.targets:
            continue
        model = bundle.read(variant.file)
        check(model)
        with Classifier.load(path, device="cpu", precision=variant.precision) as engine:
            asked: dict[str, Run] = {"onnx.reference": reference(model), "openvino f32": by_openvino(model)}
            for name, run in asked.items():
                for what, tensors in sets.items():
                    if name == "onnx.reference" and what != "probes":  # a thousand times slower
                        continue
                    row = compare(run, engine.logits, tensors)
                    yield {"precision": variant.precision, "witness": name, "on": what, **row}


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), help="Folder of further images, for OpenVINO.")
@click.option("--limit", default=2000, show_default=True, help="Images of it, evenly taken.")
def main(bundle: Path, images: Path | None, limit: int) -> None:
    further = None
    if images is not None:
        files = find_files([images]).files
        chosen = files[:: max(1, len(files) // limit)][:limit]
        with Classifier.load(bundle, device="cpu") as classifier:
            further = np.stack([classifier.preprocess(file) for file in chosen])
    report = {
        "bundle": Bundle.open(bundle).identity,
        "checker": "passed for every variant",
        "witnesses": list(witnesses(bundle, further)),
        "versions": {name: version(name) for name in ("onnx", "onnxruntime", "openvino", "numpy")},
        "hardware": msgspec.to_builtins(hardware()),
    }
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
