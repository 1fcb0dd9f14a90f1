"""The oldest onnxruntime that pyproject.toml allows opens, proves and runs what an export writes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import onnx
import pytest

from shipnet.export import ExportConfig, export
from shipnet.export.onnx_graph import MAX_IR, MAX_OPSET, versions
from shipnet.runtime import Bundle, ParityError

ROOT = Path(__file__).parent.parent.parent
PROBE = """
import json, sys
import onnxruntime
answers = {}
for path in sys.argv[1:]:
    try:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        answers[path] = ""
    except Exception as error:
        answers[path] = str(error)
print(json.dumps({"version": onnxruntime.__version__, "answers": answers}))
"""


def oldest_onnxruntime() -> str:
    """The lower bound of the extra `cpu`, as pyproject.toml says it."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (requirement,) = config["project"]["optional-dependencies"]["cpu"]
    found = re.fullmatch(r"onnxruntime>=([0-9.]+),<\d+", requirement)
    assert found, requirement
    return found[1] if found[1].count(".") == 2 else f"{found[1]}.0"


def relu(opset: int, ir_version: int) -> bytes:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", opset)]
    return bytes(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString()
    )


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_variant_stays_within_what_the_oldest_runtime_reads(digits_bundle: Path) -> None:
    bundle = Bundle.open(digits_bundle)
    for variant in bundle.manifest.variants:
        model = onnx.load_from_string(bundle.read(variant.file))
        assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
        assert versions(bundle.read(variant.file)) == (variant.opset, variant.ir_version)
        assert variant.opset <= MAX_OPSET
        assert variant.ir_version <= MAX_IR


@pytest.mark.parametrize(("opset", "ir_version"), [(MAX_OPSET + 1, MAX_IR), (MAX_OPSET, MAX_IR + 1)])
def test_a_newer_graph_is_refused(opset: int, ir_version: int) -> None:
    with pytest.raises(ParityError, match=f"opset {opset} and IR version {ir_version}"):
        versions(relu(opset, ir_version))
    assert versions(relu(MAX_OPSET, MAX_IR)) == (MAX_OPSET, MAX_IR)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with exactly that onnxruntime and shipnet's extra `cpu`, without PyTorch."""
    folder = tmp_path_factory.mktemp("oldest")
    source = folder / "source"  # a copy: setuptools leaves files behind
    ignore = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "artifacts")
    shutil.copytree(ROOT, source, ignore=ignore)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    made = folder / "venv" / "bin" / "python"
    oldest = f"onnxruntime=={oldest_onnxruntime()}"
    run(made, "-m", "pip", "install", "--quiet", f"shipnet[cpu] @ {wheel.as_uri()}", oldest, cwd=folder)
    return made


@pytest.mark.slow
@pytest.mark.network
def test_the_limits_are_those_of_the_oldest_runtime(python: Path, tmp_path: Path) -> None:
    """Neither higher, or bundles would not open, nor lower, or graphs would be refused without need."""
    limits = {"in": (MAX_OPSET, MAX_IR), "opset": (MAX_OPSET + 1, MAX_IR), "ir": (MAX_OPSET, MAX_IR + 1)}
    for name, (opset, ir_version) in limits.items():
        (tmp_path / f"{name}.onnx").write_bytes(relu(opset, ir_version))
    shown = json.loads(
        run(python, "-c", PROBE, *(tmp_path / f"{name}.onnx" for name in limits), cwd=tmp_path)
    )
    answers = {Path(path).stem: error for path, error in shown["answers"].items()}
    assert shown["version"] == oldest_onnxruntime()
    assert answers["in"] == ""
    assert f"till opset {MAX_OPSET}" in answers["opset"]
    assert f"max supported IR version: {MAX_IR}" in answers["ir"]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("variants", [(), ("int8-cpu",)])
def test_the_oldest_runtime_verifies_and_classifies(
    variants: tuple[str, ...], python: Path, digits_run: Path, digit_files: Path, tmp_path: Path
) -> None:
    """Every precision made for the CPU, with its probes, without PyTorch."""
    config = ExportConfig(
        interop=False,
        variants=variants,
        reduce_range=True,  # so that it can be proved on a CPU without VNNI too
        accept_uncertified=True,
        max_flip_rate=(("int8-cpu", 0.2),),
    )
    bundle = export(digits_run, config, out=tmp_path / "bundle")
    precisions = [variant.precision for variant in bundle.manifest.variants]
    assert precisions == ["fp32", *variants], bundle.manifest.left_out
    shipnet = python.parent / "shipnet"
    assert "verified" in run(shipnet, "verify", bundle.path, "--device", "cpu", cwd=tmp_path)
    here = Path(sys.executable).parent / "shipnet"
    for precision in precisions:
        command = ("classify", bundle.path, digit_files, "--device", "cpu", "--precision", precision)
        rows, expected = (
            list(csv.DictReader(io.StringIO(run(program, *command, cwd=tmp_path))))
            for program in (shipnet, here)
        )
        assert len(rows) == 50
        assert [row["label"] for row in rows] == [row["label"] for row in expected]
