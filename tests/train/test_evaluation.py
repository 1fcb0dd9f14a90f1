"""What a run says of itself, against counts made from its network."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from shipnet.train import DataConfig, Run, TrainConfig, fit, load_data, load_run, pixels, split_halves
from shipnet.train.evaluation import RunEvaluation, calibrate, evaluate_run
from shipnet.train.images import Dataset

MakeFolder = Callable[..., Path]


@pytest.fixture(scope="module")
def run(digits_run: Path) -> Run:
    return load_run(digits_run)


@pytest.fixture(scope="module")
def data(run: Run) -> Dataset:
    return load_data(run.record.config.data)


@pytest.fixture(scope="module")
def found(run: Run) -> RunEvaluation:
    return run.record.evaluation


@pytest.fixture(scope="module")
def logits(run: Run, data: Dataset) -> np.ndarray:
    with torch.inference_mode():
        return run.network()(torch.from_numpy(pixels(data.valid, data.spec))).numpy()


def test_counts_agree_with_the_network(
    found: RunEvaluation, data: Dataset, logits: np.ndarray, run: Run
) -> None:
    given, truth = logits.argmax(1), data.valid.labels
    assert (found.accuracy.images, found.accuracy.correct) == (359, (given == truth).sum())
    assert found.accuracy.accuracy == pytest.approx(run.record.accuracy)
    counts = {(pair.truth, pair.label): pair.images for pair in found.confusion}
    assert counts[("3", "3")] == ((given == 3) & (truth == 3)).sum()
    assert sum(counts.values()) == 359
    assert found.classes[8].recall == ((given == 8) & (truth == 8)).sum() / (truth == 8).sum()


def test_the_temperature_is_fitted_on_one_half_and_measured_on_the_other(
    found: RunEvaluation, data: Dataset, logits: np.ndarray, run: Run
) -> None:
    _, evidence = split_halves(data.valid.labels, found.split_seed)
    assert run.record.temperature == found.temperature != 1.0
    assert found.evidence.images == found.calibrated.images == len(evidence)
    again = calibrate(logits[evidence], data.valid.labels[evidence], found.temperature)
    assert found.calibrated.ece == pytest.approx(again.ece, abs=1e-4)
    raw = calibrate(logits[evidence], data.valid.labels[evidence])
    assert found.uncalibrated.ece == pytest.approx(raw.ece, abs=1e-4)


def test_the_evidence_half_has_no_part_in_the_temperature(
    run: Run, data: Dataset, found: RunEvaluation
) -> None:
    _, evidence = split_halves(data.valid.labels, found.split_seed)
    images = data.valid.sources.copy()
    images[evidence] = 0
    blank = replace(data, valid=replace(data.valid, sources=images))
    batches = [(torch.from_numpy(images), torch.from_numpy(data.valid.labels))]
    other = evaluate_run(run.network(), blank, batches=batches, chooses=False)
    assert other.temperature == pytest.approx(found.temperature, rel=1e-4)
    assert other.evidence.accuracy < found.evidence.accuracy


def test_where_an_epoch_was_chosen_only_the_other_half_measures(tmp_path: Path) -> None:
    record = fit(TrainConfig(arch="conv_cnn", epochs=2, device="cpu", keep="best"), tmp_path / "run").record
    assert record.evaluation.accuracy == record.evaluation.evidence
    assert record.evaluation.accuracy.accuracy == pytest.approx(record.accuracy)
    assert sum(pair.images for pair in record.evaluation.confusion) == record.measured_images


def test_the_highest_losses_come_first(found: RunEvaluation, data: Dataset) -> None:
    losses = [item.loss for item in found.top_losses]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == 16
    worst = found.top_losses[0]
    assert worst.truth != worst.label
    assert data.valid.names[worst.index] == worst.name
    assert data.labels[data.valid.labels[worst.index]] == worst.truth


def test_test_images_are_held_out_and_measured_once(make_folder: MakeFolder, tmp_path: Path) -> None:
    for part, count in (("train", 20), ("val", 6), ("test", 5)):
        root = make_folder({"cat": count, "dog": count}, at=f"data/{part}")
    config = TrainConfig(
        data=DataConfig(data=str(tmp_path / "data")), arch="conv_cnn", epochs=2, device="cpu"
    )
    assert root == tmp_path / "data"
    first = fit(config, tmp_path / "first")
    test = first.record.evaluation.test
    assert test is not None
    assert (test.images, first.record.test_images) == (10, 10)
    assert test.low <= test.accuracy <= test.high
    shutil.rmtree(tmp_path / "data" / "test")
    second = fit(config, tmp_path / "second")
    assert second.record.evaluation.test is None
    assert second.record.weights_sha256 == first.record.weights_sha256
    assert second.record.temperature == first.record.temperature


def test_data_without_a_test_split_has_no_test_accuracy(found: RunEvaluation) -> None:
    assert found.test is None
