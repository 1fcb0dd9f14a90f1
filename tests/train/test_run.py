"""A run on disk: whole, readable, and refused where it is damaged."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from shipnet.runtime.encoding import decode, encode
from shipnet.train import RunError, RunRecord, load_data, load_run, pixels
from shipnet.train.report import REPORT
from shipnet.train.run import CURVES, HISTORY, RECORD, WEIGHTS


@pytest.fixture
def run_copy(digits_run: Path, tmp_path: Path) -> Path:
    """A run of one's own to damage."""
    return Path(shutil.copytree(digits_run, tmp_path / "run"))


def test_a_run_holds_its_five_files(digits_run: Path) -> None:
    assert {path.name for path in digits_run.iterdir()} == {RECORD, WEIGHTS, HISTORY, CURVES, REPORT}
    with Image.open(digits_run / CURVES) as picture:
        assert picture.size == (1000, 400)


def test_the_record_says_what_ran(digits_run: Path) -> None:
    record = load_run(digits_run).record
    data = load_data(record.config.data)
    assert (record.arch, record.parameters, record.epochs) == ("conv_cnn", 12_044, 4)
    assert (record.data, record.labels, record.preprocess) == ("digits", data.labels, data.spec)
    assert (record.train_images, record.valid_images, record.test_images) == (1438, 359, 0)
    assert record.data_fingerprint == data.fingerprint
    assert None not in (record.config.batch_size, record.config.max_lr, record.config.flip)
    assert {"python", "torch", "torchvision", "shipnet"} <= set(record.versions)
    assert record.history[-1].accuracy == record.accuracy
    assert record.wall_s > sum(epoch.wall_s for epoch in record.history)


def test_the_record_round_trips(digits_run: Path) -> None:
    record = load_run(digits_run).record
    assert decode(encode(record), RunRecord, where="run.json") == record


def test_the_history_is_one_row_per_epoch(digits_run: Path) -> None:
    with (digits_run / HISTORY).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    record = load_run(digits_run).record
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [float(row["accuracy"]) for row in rows] == [epoch.accuracy for epoch in record.history]


def test_the_network_decides_as_the_record_says(digits_run: Path) -> None:
    run = load_run(digits_run)
    data = load_data(run.record.config.data)
    network = run.network()
    assert not network.training
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels(data.valid, run.record.preprocess)))
    assert logits.dtype == torch.float32
    correct = np.mean(logits.argmax(1).numpy() == data.valid.labels)
    assert correct == pytest.approx(run.record.accuracy)


def test_a_folder_that_is_no_run_is_named(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone: no such folder"):
        load_run(tmp_path / "gone")
    with pytest.raises(RunError, match=r"holds no run\.json, so it is no training run$"):
        load_run(tmp_path)
    with pytest.raises(RunError, match=r"it is no training run; did you mean .*run\?"):
        load_run(digits_run.parent)


def change(run: Path, **fields: object) -> None:
    record = json.loads((run / RECORD).read_text(encoding="utf-8"))
    (run / RECORD).write_text(json.dumps(record | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run_version": 2}, r"Expected `int` <= 1 - at `\$\.run_version`: damaged, or of another shipnet"),
        ({"surprise": 1}, r"unknown field `surprise`: damaged"),
        ({"labels": 3}, r"Expected `array`, got `int`"),
        ({"config": {"arch": "resnet19"}}, r"run\.json: arch is 'resnet19'"),
    ],
)
def test_a_record_that_the_format_does_not_allow_is_refused(
    run_copy: Path, fields: dict[str, object], message: str
) -> None:
    change(run_copy, **fields)
    with pytest.raises(RunError, match=message):
        load_run(run_copy)


def test_half_a_record_is_refused(run_copy: Path) -> None:
    text = (run_copy / RECORD).read_bytes()
    (run_copy / RECORD).write_bytes(text[: len(text) // 2])
    with pytest.raises(RunError, match=r"run\.json: .*damaged, or of another shipnet: train again"):
        load_run(run_copy)


def test_missing_weights_are_named(run_copy: Path) -> None:
    (run_copy / WEIGHTS).unlink()
    with pytest.raises(RunError, match=r"weights\.safetensors is missing: train again"):
        load_run(run_copy)


def test_changed_weights_are_refused(run_copy: Path) -> None:
    state = load_file(run_copy / WEIGHTS)
    state["head.0.weight"] += 1
    save_file(state, run_copy / WEIGHTS)
    with pytest.raises(RunError, match=r"not the weights that run\.json names"):
        load_run(run_copy).network()


def test_weights_of_another_network_are_refused(run_copy: Path) -> None:
    change(run_copy, arch="mnist_resnet")
    with pytest.raises(RunError, match=r"not the weights of a mnist_resnet"):
        load_run(run_copy).network()
