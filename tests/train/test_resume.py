"""Never losing work: what was stopped goes on, and ends as if it had never been stopped."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from shipnet.cli import main
from shipnet.train import DataConfig, Run, RunError, TrainConfig, fit, load_run
from shipnet.train.checkpoint import CHECKPOINT
from shipnet.train.events import EpochDone, Event, LrFound

CONFIG = TrainConfig(arch="conv_cnn", epochs=4, device="cpu", batch_size=128)


class StopError(Exception):
    pass


def stop_after(epoch: int) -> object:
    def on_event(event: Event) -> None:
        if isinstance(event, EpochDone) and event.epoch == epoch:
            raise StopError

    return on_event


def stopped(out: Path, config: TrainConfig = CONFIG, *, after: int = 2) -> Path:
    """A run that was stopped; returns the folder of its checkpoint."""
    with pytest.raises(StopError):
        fit(config, out, on_event=stop_after(after))
    return out.with_name(out.name + ".partial")


def weights(run: Path) -> str:
    return hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest()


def curve(run: Run) -> list[EpochDone]:
    return [msgspec.structs.replace(epoch, wall_s=0.0) for epoch in run.record.history]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never stopped."""
    return fit(CONFIG, tmp_path_factory.mktemp("whole") / "run")


def test_it_ends_as_if_never_stopped(whole: Run, tmp_path: Path) -> None:
    partial = stopped(tmp_path / "run", after=1)
    assert not (tmp_path / "run").exists()
    with pytest.raises(StopError):
        fit(CONFIG, tmp_path / "run", on_event=stop_after(3), resume=True)
    events: list[Event] = []
    run = fit(CONFIG, tmp_path / "run", on_event=events.append, resume=True)
    assert weights(run.path) == weights(whole.path)
    assert curve(run) == curve(whole)
    assert run.record.resumed_after == (1, 3)
    assert run.record.wall_s > sum(epoch.wall_s for epoch in run.record.history)
    assert [event.epoch for event in events if isinstance(event, EpochDone)] == [1, 2, 3, 4]
    assert not partial.exists()
    assert load_run(run.path).record == run.record


def test_the_best_epoch_survives_a_break(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, keep="best", epochs=6, max_lr=30.0, seed=2)
    once = fit(config, tmp_path / "once")
    assert once.record.selection is not None
    best = once.record.selection.epoch
    assert best < 6, "this test needs a best epoch that is not the last: choose another seed"
    stopped(tmp_path / "run", config, after=5)
    assert weights(fit(config, tmp_path / "run", resume=True).path) == weights(once.path)


def test_the_average_of_the_weights_survives_a_break(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, ema_decay=0.9)
    once = fit(config, tmp_path / "once")
    stopped(tmp_path / "run", config)
    assert weights(fit(config, tmp_path / "run", resume=True).path) == weights(once.path)


def test_a_rate_that_was_looked_for_is_not_looked_for_again(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, max_lr="auto")
    stopped(tmp_path / "run", config, after=1)
    events: list[Event] = []
    run = fit(config, tmp_path / "run", on_event=events.append, resume=True)
    assert not any(isinstance(event, LrFound) for event in events)
    assert isinstance(run.record.config.max_lr, float)
    assert (run.path / "find-lr.png").is_file()
    assert fit(config, tmp_path / "run", resume=True).record == run.record


def test_with_nothing_to_resume_it_starts_and_says_so(
    whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = fit(CONFIG, tmp_path / "run", resume=True)
    assert "no checkpoint to resume, starting at the first epoch" in caplog.text
    assert weights(run.path) == weights(whole.path)
    assert run.record.resumed_after == ()


def test_other_hardware_and_versions_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    partial = stopped(tmp_path / "run")
    path = partial / CHECKPOINT
    record = json.loads(path.read_text())
    record["versions"] |= {"torch": "2.11.0", "apex": "1.0"}
    record["hardware"] = "abacus"
    path.write_text(json.dumps(record))
    fit(CONFIG, tmp_path / "run", resume=True)
    (said,) = [line for line in caplog.messages if "resumed by other means" in line]
    assert "apex is gone, was 1.0; hardware is " in said
    assert re.search(r"hardware is .+, was abacus; torch is [\d.a-z+]+, was 2\.11\.0$", said)


def test_on_the_same_hardware_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(tmp_path / "run", after=3)
    fit(CONFIG, tmp_path / "run", resume=True)
    assert "resumed by other means" not in caplog.text


def test_a_finished_run_is_not_trained_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = fit(CONFIG, tmp_path / "run")
    events: list[Event] = []
    assert fit(CONFIG, tmp_path / "run", resume=True, on_event=events.append).record == first.record
    assert "is finished, nothing to resume" in caplog.text
    assert events == []
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_without_resume_the_unfinished_run_is_replaced_and_said_so(
    whole: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path / "run")
    caplog.clear()
    run = fit(CONFIG, tmp_path / "run")
    assert "replacing an unfinished run, which --resume would have gone on with" in caplog.text
    assert run.record.resumed_after == ()
    assert weights(run.path) == weights(whole.path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_stopping_says_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(tmp_path / "run")
    assert "stopped after epoch 2 of 4" in caplog.text
    assert "--resume goes on" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, r"epochs is 5, was 4"),
        ({"seed": 1, "max_lr": 0.01}, r"max_lr is 0\.01, was 0\.03; seed is 1, was 0"),
        ({"keep": "best"}, r"keep is 'best', was 'last'"),
        ({"data": DataConfig(seed=1)}, r"data\.seed is 1, was 0: give the same options"),
    ],
)
def test_another_configuration_is_refused_by_name(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    partial = stopped(tmp_path / "run", after=1)
    before = {path.name: path.read_bytes() for path in partial.iterdir()}
    with pytest.raises(RunError, match=message):
        fit(msgspec.structs.replace(CONFIG, **change), tmp_path / "run", resume=True)
    assert {path.name: path.read_bytes() for path in partial.iterdir()} == before


def test_other_images_are_refused(make_folder: object, tmp_path: Path) -> None:
    root = make_folder({"cat": 20, "dog": 20})  # type: ignore[operator]
    config = TrainConfig(
        data=DataConfig(data=str(root)), arch="conv_cnn", epochs=3, batch_size=8, device="cpu"
    )
    stopped(tmp_path / "run", config, after=1)
    moved = root.rename(tmp_path / "moved")
    config = msgspec.structs.replace(config, data=DataConfig(data=str(moved)))
    one, other = sorted((moved / "cat").iterdir())[:2]
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(RunError, match=r"the images of data '.*moved' differ .*data_fingerprint is \w+, was"):
        fit(config, tmp_path / "run", resume=True)
    one.write_bytes(kept)
    assert fit(config, tmp_path / "run", resume=True).record.resumed_after == (1,)


COMMAND = ("--arch", "conv_cnn", "--epochs", "12", "--batch-size", "32", "--device", "cpu", "--deterministic")


def killed_and_resumed(out: Path, *, kills: int, seed: int) -> list[int]:
    """Trains in processes that are killed at random moments; returns after how many epochs each one died."""
    chance = random.Random(seed)
    command = [sys.executable, "-m", "shipnet", "train", *COMMAND, "--out", str(out), "--resume"]
    deaths = []
    for _ in range(kills):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        for line in process.stderr:
            if line.split()[:1] == ["epoch"]:  # the table's head: training begins
                break
        time.sleep(chance.uniform(0.0, 0.4))
        process.kill()
        rest = process.communicate()[0]
        del rest
        partial = out.with_name(out.name + ".partial")
        epoch = 0
        if (partial / CHECKPOINT).exists():
            epoch = len(msgspec.json.decode((partial / CHECKPOINT).read_bytes())["history"])
        deaths.append(epoch)
    subprocess.run(command, check=True, capture_output=True)
    return deaths


@pytest.mark.parametrize(
    ("kills", "seed"),
    [(2, 0), pytest.param(5, 1, marks=pytest.mark.slow), pytest.param(5, 2, marks=pytest.mark.slow)],
)
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path: Path, kills: int, seed: int) -> None:
    done = CliRunner().invoke(main, ["train", *COMMAND, "--out", str(tmp_path / "whole")])
    assert done.exit_code == 0, done.output
    deaths = killed_and_resumed(tmp_path / "killed" / "run", kills=kills, seed=seed)
    assert deaths == sorted(deaths)
    assert weights(tmp_path / "killed" / "run") == weights(tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["run"]
