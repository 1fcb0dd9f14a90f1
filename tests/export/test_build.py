"""From a run to a bundle: what is exported is what was trained, or there is no bundle."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from shipnet.cli import main
from shipnet.export import ExportConfig, export
from shipnet.export.build import REPORT
from shipnet.export.parity_report import ParityReport
from shipnet.export.report import EXPORT_REPORT
from shipnet.export.torch_formats import as_function, open_pt2, open_torchscript
from shipnet.runtime import Bundle, BundleError, Classifier, DataError, OutputError, ParityError
from shipnet.runtime.encoding import decode
from shipnet.train import Run, RunError, load_data, load_run, pixels


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Run:
    return load_run(digits_run)


@pytest.fixture(scope="module")
def images(run: Run) -> np.ndarray:  # type: ignore[type-arg]
    data = load_data(run.record.config.data)
    return pixels(data.valid, data.spec)


def test_every_format_gives_the_trained_networks_logits(
    digits_bundle: Path,
    run: Run,
    images: np.ndarray,  # type: ignore[type-arg]
) -> None:
    expected = as_function(run.network())(images)
    with Classifier.load(digits_bundle, device="cpu") as classifier:
        formats = [
            classifier.logits,
            open_torchscript(digits_bundle / "interop" / "model.torchscript.pt"),
            open_pt2(digits_bundle / "interop" / "model.pt2"),
        ]
        for found in formats:
            for size in (1, 2, 3, 7, 64, len(images)):
                assert np.allclose(found(images[:size]), expected[:size], rtol=1e-4, atol=1e-5)


def test_the_manifest_carries_what_was_proved(digits_bundle: Path, run: Run) -> None:
    manifest = Bundle.open(digits_bundle).manifest
    parity = manifest.variant("fp32").parity
    assert parity.images == run.record.valid_images == 359
    assert parity.flips == 0
    assert [row.batch_size for row in parity.batches] == [1, 2, 3, 7, 64]
    assert parity.accuracy == parity.reference_accuracy
    assert parity.accuracy.low < parity.accuracy.accuracy < parity.accuracy.high
    assert parity.accuracy.images in (179, 180)
    assert {item.format for item in manifest.interop} == {"torchscript", "pt2", "safetensors"}
    assert manifest.provenance.data_fingerprint == run.record.data_fingerprint
    report = decode((digits_bundle / "evidence" / "parity.json").read_bytes(), ParityReport, where="report")
    assert {entry.format for entry in report.formats} == {"onnx", "torchscript", "pt2"}


def test_scores_are_those_under_the_temperature_that_the_run_fitted(
    digits_bundle: Path,
    run: Run,
    images: np.ndarray,  # type: ignore[type-arg]
) -> None:
    manifest = Bundle.open(digits_bundle).manifest
    assert manifest.variant("fp32").temperature == run.record.temperature != 1.0
    assert manifest.provenance.split_seed == run.record.evaluation.split_seed
    assert manifest.variant("fp32").parity.accuracy == run.record.evaluation.evidence
    worst = run.record.evaluation.top_losses[0]
    with Classifier.load(digits_bundle, device="cpu") as classifier:
        found = classifier(images[worst.index])
    assert found.label == worst.label
    assert found.score == pytest.approx(worst.score, rel=1e-4)


def test_no_local_path_leaves_the_machine(digits_bundle: Path, digits_run: Path) -> None:
    here = Path(__file__).parent.parent.parent
    for path in digits_bundle.rglob("*"):
        if path.is_file():
            for local in (here, digits_run.parent, Path(torch.__file__).parent, Path.home()):
                assert str(local).encode() not in path.read_bytes(), path


def test_the_onnx_graph_keeps_the_bundles_rules(digits_bundle: Path, run: Run) -> None:
    model = onnx.load(digits_bundle / "model" / "fp32.onnx")
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    assert [node.op_type for node in graph.node[:4]] == ["Cast", "Transpose", "Sub", "Div"]
    assert {node.op_type for node in graph.node} <= {
        *(
            "Cast",
            "Transpose",
            "Sub",
            "Div",
            "Conv",
            "Relu",
            "BatchNormalization",
            "Add",
            "Reshape",
            "Flatten",
        )
    }
    assert [(i.name, i.type.tensor_type.elem_type) for i in graph.input] == [
        ("images", onnx.TensorProto.UINT8)
    ]
    assert [(o.name, o.type.tensor_type.elem_type) for o in graph.output] == [
        ("logits", onnx.TensorProto.FLOAT)
    ]
    assert [entry.version for entry in model.opset_import] == [18]
    metadata = {
        entry.key: json.loads(entry.value) for entry in model.metadata_props if entry.key != "shipnet.name"
    }
    assert metadata["shipnet.labels"] == list("0123456789")
    assert metadata["shipnet.preprocess"]["height"] == run.record.preprocess.height == 8


def test_the_weights_are_the_runs(digits_bundle: Path, run: Run) -> None:
    assert (digits_bundle / "interop" / "weights.safetensors").read_bytes() == run.weights_path.read_bytes()


def test_over_budget_there_is_no_bundle_but_a_report(digits_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(
        ParityError, match=r"no bundle was written: onnx: .* logits differ by up to"
    ) as caught:
        export(digits_run, ExportConfig(max_relative_difference=1e-12), out=out)
    assert isinstance(caught.value.report, ParityReport)
    assert {path.name for path in tmp_path.iterdir()} == {REPORT, EXPORT_REPORT}
    report = decode((tmp_path / REPORT).read_bytes(), ParityReport, where="report")
    worst = report.formats[0].worst[0]
    assert len(worst.reference_logits) == len(worst.exported_logits) == 10
    assert max(
        abs(a - b) for a, b in zip(worst.reference_logits, worst.exported_logits, strict=True)
    ) == pytest.approx(worst.max_difference, rel=1e-3)


def test_one_layer_off_by_one_per_cent_is_caught(
    digits_run: Path,
    tmp_path: Path,
    run: Run,
    images: np.ndarray,  # type: ignore[type-arg]
) -> None:
    from shipnet.export.onnx_graph import to_onnx
    from shipnet.export.parity import Chunk, Exported, compare_batches, prove
    from shipnet.runtime.backends.ort import OrtBackend

    network = run.network()
    changed = run.network()
    with torch.no_grad():
        next(changed.parameters()).mul_(1.01)
    model = to_onnx(changed, images[:2], metadata={})
    backend = OrtBackend.open(model, provider="CPUExecutionProvider")
    reference = as_function(network)
    chunk = Chunk(np.arange(len(images)), images, np.zeros(len(images), np.int64), np.ones(len(images), bool))
    batches = compare_batches(reference, backend.run, images[:64], (1, 64))
    exported = Exported(backend.run, "cpu", ExportConfig().budget("fp32"), batches)
    report = prove(reference, {"onnx": exported}, [chunk], labels=run.record.labels)
    assert any("logits differ" in breach for breach in report.formats[0].breaches)


def test_without_interop_the_bundle_is_whole(digits_run: Path, tmp_path: Path) -> None:
    bundle = export(digits_run, ExportConfig(interop=False, name="plain"), out=tmp_path / "bundle")
    assert not (bundle.path / "interop").exists()
    assert (bundle.manifest.name, bundle.manifest.interop) == ("plain", ())


def test_a_run_that_changed_or_lost_its_data_is_refused(digits_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(digits_run, tmp_path / "run"))
    record = json.loads((copy / "run.json").read_text())
    record["data_fingerprint"] = "0" * 64
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"digits: is not the data that .* was trained on"):
        export(copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_weights_that_changed_are_refused(digits_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(digits_run, tmp_path / "run"))
    weights = bytearray((copy / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(weights)
    with pytest.raises(RunError, match=r"weights\.safetensors: not the weights that run\.json names"):
        export(copy)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_strangers_folder_is_left_alone(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="something that is no bundle stands there"):
        export(digits_run, out=tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(OutputError, match=r"cannot be written"):
        export(digits_run, out=tmp_path / "thesis.txt" / "bundle")


def test_the_command_prints_accuracy_and_path(digits_run: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = CliRunner().invoke(
            main, ["export", str(digits_run), "--out", str(tmp_path / "b"), "--no-interop"]
        )
    assert done.exit_code == 0, done.output
    assert "0 of 359 decisions differ from PyTorch" in done.stdout
    assert done.stdout.splitlines()[-1] == str(tmp_path / "b")


def test_the_command_fails_with_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["export", str(tmp_path / "nowhere")])
    assert done.exit_code == 1
    assert done.stderr == f"Error: {tmp_path / 'nowhere'}: no such folder\n"
