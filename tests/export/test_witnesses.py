"""Programs that share no code with our engine see the validated network in a bundle's graph."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest

from shipnet.export import ExportConfig
from shipnet.export.source import Source, from_run
from shipnet.runtime import Bundle
from shipnet.runtime.evidence import load_probes
from shipnet.train import load_run

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "witnesses.py"
MOST = 1e-4  # the budget of fp32
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def by() -> ModuleType:
    """The benchmark's functions."""
    spec = importlib.util.spec_from_file_location("witnesses", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(digits_bundle: Path) -> bytes:
    return Bundle.open(digits_bundle).read("model/fp32.onnx")


@pytest.fixture(scope="module")
def source(digits_run: Path) -> Source:
    return from_run(load_run(digits_run), ExportConfig(), dataset=None, on_progress=lambda *_: None)


def damaged(model: bytes) -> bytes:
    """The graph with one weight of its first convolution off by its own size."""
    proto = onnx.load_from_string(model)
    tensor = next(item for item in proto.graph.initializer if len(item.dims) == 4)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] *= 2
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return bytes(proto.SerializeToString())


def test_the_graph_passes_onnx_checker(by: ModuleType, model: bytes) -> None:
    by.check(model)
    proto = onnx.load_from_string(model)
    del proto.graph.node[0]
    with pytest.raises(onnx.checker.ValidationError):
        by.check(proto.SerializeToString())


@pytest.mark.parametrize("name", ["reference", "by_openvino"])
def test_a_witness_sees_the_validated_network(
    name: str, by: ModuleType, model: bytes, source: Source
) -> None:
    """On the whole evidence half, against PyTorch; and it would see a weight that is off."""
    images = source.evidence_images(len(source.evidence))
    found = by.compare(getattr(by, name)(model), source.reference, images)
    assert found["images"] == len(source.evidence) == 180
    assert found["max_relative_difference"] <= MOST
    assert found["flips"] == 0
    off = by.compare(getattr(by, name)(damaged(model)), source.reference, images)
    assert off["max_relative_difference"] > 100 * MOST


@pytest.mark.parametrize("name", ["reference", "by_openvino"])
def test_a_witness_answers_the_probes(name: str, by: ModuleType, model: bytes, digits_bundle: Path) -> None:
    probes = load_probes(Bundle.open(digits_bundle))
    assert probes is not None
    expected = probes.logits["fp32"]
    found = getattr(by, name)(model)(probes.tensors)
    assert np.abs(found - expected).max() <= MOST * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()


def test_the_benchmark_prints_what_they_say(digits_bundle: Path, digit_files: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(digits_bundle), "--images", str(digit_files)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {(row["witness"], row["on"], row["images"]) for row in report["witnesses"]} >= {
        ("openvino f32", "images", 50)
    }
    assert all(row["flips"] == 0 for row in report["witnesses"])
