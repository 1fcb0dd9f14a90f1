"""What a configuration may say, and what it is told otherwise."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shipnet.runtime import UsageError
from shipnet.train import DataConfig, TrainConfig
from shipnet.train.config import ARCHITECTURES


def test_a_configuration_round_trips() -> None:
    config = TrainConfig(
        data=DataConfig(data="mnist", val_fraction=0.3), arch="resnet18", mean=(0.1,), std=(0.2,)
    )
    assert msgspec.json.decode(msgspec.json.encode(config), type=TrainConfig) == config


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "arch",
            "resnet81",
            r"arch is 'resnet81' \(did you mean 'resnet18'\?\); expected one of: basic_cnn, .*",
        ),
        ("epochs", 0, r"epochs is 0; expected a whole number from 1 to 100000"),
        ("epochs", 1.5, r"epochs is 1\.5; expected a whole number"),
        ("max_lr", -0.1, r"max_lr is -0\.1; expected a number from 1e-08 to 100"),
        ("max_lr", float("nan"), r"max_lr is nan"),
        ("batch_size", 1, r"batch_size is 1; expected a whole number from 2"),
        ("weight_decay", -1.0, r"weight_decay is -1\.0"),
        ("label_smoothing", 1.0, r"label_smoothing is 1\.0; expected a number from 0 to 0\.9"),
        ("ema_decay", 1.0, r"ema_decay is 1\.0"),
        ("pct_start", 0.0, r"pct_start is 0\.0; expected a number from 0\.01 to 0\.99"),
        ("crop_padding", 0.6, r"crop_padding is 0\.6"),
        ("freeze_epochs", 0.5, r"freeze_epochs is 0\.5; expected a whole number"),
        ("lr_div", 0.5, r"lr_div is 0\.5; expected a number from 1"),
        ("recipe", "fats", r"recipe is 'fats' \(did you mean 'fast'\?\)"),
        ("seed", -1, r"seed is -1"),
        ("seed", True, r"seed is True; expected a whole number"),
        ("workers", 1000, r"workers is 1000"),
        (
            "device",
            "cdua",
            r"device is 'cdua' \(did you mean 'cuda'\?\); expected one of: auto, cpu, cuda, mps",
        ),
        ("mean", (0.5,), r"mean and std go together"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data", "", r"data is empty; expected a folder or one of: digits, mnist"),
        ("val_fraction", 1.0, r"val_fraction is 1\.0; expected a number from 0\.01 to 0\.99"),
        ("image_size", 7, r"image_size is 7; expected a whole number from 8 to 4096"),
    ],
)
def test_a_data_value_out_of_range_is_refused_by_name(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataConfig(**{field: value})


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5, 0.5), (0.5, 0.5), "mean has 2 values; expected one per channel, so 1 or 3"),
        ((1.5,), (0.5,), "mean is 1.5; expected a number from 0 to 1"),
        ((0.5,), (0.0,), "std is 0.0; expected a number from 0.0001 to 10"),
    ],
)
def test_statistics_must_be_possible(mean: tuple[float, ...], std: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(mean=mean, std=std)


def test_training_starts_from_one_set_of_weights() -> None:
    with pytest.raises(UsageError, match="pretrained and weights exclude each other"):
        TrainConfig(pretrained=True, weights="weights.pth")


@given(st.text(max_size=20).filter(lambda name: name not in ARCHITECTURES))
def test_any_other_name_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError):
        TrainConfig(arch=name)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "mps"])
def test_devices_are_known_by_name(device: str) -> None:
    assert TrainConfig(device=device).device == device


def test_importing_the_stage_and_its_command_loads_no_torch() -> None:
    code = "import sys, shipnet.train, shipnet.train.cli, shipnet.train.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.strip() == "False"
