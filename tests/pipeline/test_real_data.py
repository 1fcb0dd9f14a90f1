"""The whole way on real data: what is classified from files is what the trainer validated."""

from __future__ import annotations

from pathlib import Path

import pytest

from shipnet.export.parity_report import ParityReport
from shipnet.runtime import Classifier
from shipnet.runtime.encoding import decode
from shipnet.runtime.evaluate import evaluate
from shipnet.train import DataConfig, TrainConfig, load_run
from shipnet.workflow import Outcome, PipelineConfig, run_pipeline

pytestmark = pytest.mark.slow


def formats(outcome: Outcome) -> dict[str, tuple[int, int]]:
    """Of each format, how many images were compared and how many got another label."""
    path = outcome.bundle.path / "evidence" / "parity.json"
    report = decode(path.read_bytes(), ParityReport, where=str(path))
    return {entry.format: (entry.parity.images, entry.parity.flips) for entry in report.formats}


def test_all_formats_agree_on_every_mnist_test_image(real_data: Path, tmp_path: Path) -> None:
    train = TrainConfig(
        data=DataConfig(data="mnist", data_root=str(real_data)), arch="mnist_resnet", epochs=1
    )
    outcome = run_pipeline(PipelineConfig(train=train), tmp_path / "out")
    assert load_run(tmp_path / "out" / "run").record.accuracy > 0.96
    assert formats(outcome) == {"onnx": (10_000, 0), "torchscript": (10_000, 0), "pt2": (10_000, 0)}


def test_photographs_get_from_files_the_labels_that_were_validated(real_data: Path, tmp_path: Path) -> None:
    data = DataConfig(data=str(real_data / "flowers"), image_size=64)
    outcome = run_pipeline(PipelineConfig(train=TrainConfig(data=data, arch="resnet18", epochs=1)), tmp_path)
    assert formats(outcome) == {"onnx": (625, 0), "torchscript": (625, 0), "pt2": (625, 0)}
    record = load_run(tmp_path / "run").record
    with Classifier.load(outcome.bundle.path) as classifier:
        found = evaluate(classifier, real_data / "flowers" / "val")
    assert found.accuracy.images == 625
    assert found.accuracy.accuracy == pytest.approx(record.accuracy, abs=1e-9)
    assert not found.unreadable
