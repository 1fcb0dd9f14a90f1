"""Training as its callers see it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shipnet.runtime import DataError, DeviceError, OutputError, TrainingError, UsageError
from shipnet.runtime.machine import available_cores
from shipnet.train import DataConfig, RunError, TrainConfig, fit, load_data, load_run
from shipnet.train.events import EpochDone, Event, Started, StepDone
from shipnet.train.recipe import cpu_threads, resolve

MakeFolder = Callable[..., Path]
QUICK = TrainConfig(arch="conv_cnn", epochs=1, device="cpu")


def weights(run: Path) -> str:
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()


def test_the_default_learns_digits(tmp_path: Path) -> None:
    run = fit(TrainConfig(device="cpu"), tmp_path / "run")
    assert run.record.arch == "mnist_resnet"
    assert run.record.accuracy >= 0.97
    assert load_run(tmp_path / "run").record == run.record


def test_a_seed_gives_one_network_and_leaves_the_callers_random_state(tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    first = fit(QUICK, tmp_path / "first" / "run")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    torch.rand(1)
    assert weights(fit(QUICK, tmp_path / "second" / "run").path) == weights(first.path)
    other = TrainConfig(arch="conv_cnn", epochs=1, device="cpu", seed=1)
    assert weights(fit(other, tmp_path / "third" / "run").path) != weights(first.path)


def test_events_tell_the_whole_story(tmp_path: Path) -> None:
    events: list[Event] = []
    run = fit(TrainConfig(arch="conv_cnn", epochs=2, device="cpu"), tmp_path / "run", on_event=events.append)
    started, rest = events[0], events[1:]
    assert isinstance(started, Started)
    assert (started.arch, started.parameters, started.steps) == ("conv_cnn", 12_044, 22)
    assert started.device == "cpu, 1 thread(s)"
    epochs = [[StepDone(epoch, step) for step in range(1, 23)] for epoch in (1, 2)]
    assert [event for event in rest if isinstance(event, StepDone)] == epochs[0] + epochs[1]
    assert tuple(event for event in rest if isinstance(event, EpochDone)) == run.record.history
    assert isinstance(rest[-1], EpochDone)


def test_the_default_place_is_below_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(QUICK).path == Path("artifacts/digits/run")
    assert (tmp_path / "artifacts/digits/run/run.json").is_file()


def test_a_run_is_found_again_from_elsewhere(
    make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder({"cat": 20, "dog": 20})
    monkeypatch.chdir(tmp_path)
    config = TrainConfig(data=DataConfig(data="data"), arch="basic_cnn", epochs=1, device="cpu")
    run = fit(config, tmp_path / "run")
    monkeypatch.chdir("/")
    assert run.record.data == "data"
    assert load_data(load_run(tmp_path / "run").record.config.data).fingerprint == run.record.data_fingerprint


def test_given_statistics_are_used(tmp_path: Path) -> None:
    config = TrainConfig(arch="conv_cnn", epochs=1, device="cpu", mean=(0.25,), std=(0.5,))
    network = fit(config, tmp_path / "run").network()
    assert network.pixel_mean.item() == 0.25 * 255
    assert network.pixel_std.item() == 0.5 * 255


def test_photographs_train_from_files(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder({"cat": 20, "dog": 20}, size=(90, 70), mode="RGB")
    data = DataConfig(data=str(root), image_size=64)
    assert resolve(TrainConfig(data=data), load_data(data)).arch == "resnet18"
    record = fit(
        TrainConfig(data=data, arch="conv_cnn", epochs=1, device="cpu", workers=1), tmp_path / "run"
    ).record
    assert (record.config.flip, record.config.batch_size, record.preprocess.resize_size) == (True, 16, 73)


def test_open_choices_come_from_the_data() -> None:
    data = load_data(DataConfig())
    resolved = resolve(TrainConfig(), data)
    assert (resolved.arch, resolved.max_lr, resolved.batch_size) == ("mnist_resnet", 0.03, 64)
    assert (resolved.epochs, resolved.flip, resolved.workers) == (60, False, 0)
    assert resolve(resolved, data) == resolved
    assert resolve(TrainConfig(arch="resnet18"), data).max_lr == 0.002


def test_tiny_batches_train_on_one_thread() -> None:
    data = load_data(DataConfig())
    assert cpu_threads(resolve(TrainConfig(), data), data, most=2) == 1
    large = load_data(DataConfig(image_size=32))
    assert cpu_threads(resolve(TrainConfig(), large), large, most=1) == 1
    assert cpu_threads(resolve(TrainConfig(), large), large, most=2) == min(2, available_cores().usable)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_missing_is_an_error_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"device 'cuda' is not available: .*, or use  --device cpu"):
        fit(TrainConfig(device="cuda"), tmp_path / "run")
    assert not any(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_learns_digits(tmp_path: Path) -> None:
    record = fit(TrainConfig(device="cuda"), tmp_path / "run").record
    assert record.accuracy >= 0.96
    with pytest.raises(DeviceError, match="this machine has"):
        fit(TrainConfig(device="cuda:99"), tmp_path / "other")


def test_a_loss_that_is_no_number_stops_and_leaves_nothing(tmp_path: Path) -> None:
    config = TrainConfig(arch="conv_cnn", epochs=3, max_lr=100.0, weight_decay=10.0, device="cpu")
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch \d, step \d+: .*lower --max-lr"):
        fit(config, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batch_size is 2000, but digits has 1438 training images"):
        fit(TrainConfig(batch_size=2000), tmp_path / "run")


def test_statistics_must_fit_the_channels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mean and std have 3 value\(s\), but the images of digits 1"):
        fit(TrainConfig(mean=(0.5,) * 3, std=(0.5,) * 3), tmp_path / "run")


def test_a_run_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(QUICK, out)
    (out / "stray").touch()
    fit(QUICK, out)
    assert not (out / "stray").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    out = tmp_path / "run"
    before = weights(fit(QUICK, out).path)

    def stop(event: Event) -> None:
        if isinstance(event, EpochDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(TrainConfig(arch="conv_cnn", epochs=1, seed=1, device="cpu"), out, on_event=stop)
    assert weights(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run.partial"}


def test_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(RunError, match="thesis: something that is no training run stands there"):
        fit(QUICK, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_a_place_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    events: list[Event] = []
    with pytest.raises(OutputError, match="run: cannot be written"):
        fit(QUICK, tmp_path / "file" / "run", on_event=events.append)
    assert events == []


def test_errors_of_the_data_come_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images"):
        fit(TrainConfig(data=DataConfig(data=str(tmp_path / "empty"))), tmp_path / "out" / "run")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_mnist_reaches_what_its_peers_reach(real_data: Path, tmp_path: Path) -> None:
    data = DataConfig(data="mnist", data_root=str(real_data))
    assert fit(TrainConfig(data=data), tmp_path / "run").record.accuracy >= 0.993


@pytest.mark.slow
def test_flowers_train_from_photographs(real_data: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=DataConfig(data=str(real_data / "flowers"), image_size=64), epochs=3)
    assert fit(config, tmp_path / "run").record.accuracy > 0.3
