"""The command `shipnet train`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shipnet.cli import main
from shipnet.train import load_run

QUICK = ("--arch", "conv_cnn", "--epochs", "1", "--device", "cpu")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["train", *arguments])


def test_results_go_to_stdout_and_progress_to_stderr(tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = invoke(
        *QUICK, "--out", str(out), "--seed", "3", "--val-fraction", "0.3", "--mean", "0.3", "--std", "0.4"
    )
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(out)
    assert "validation images" in done.stdout
    assert "train_loss" in done.stderr
    assert "conv_cnn (12,044 parameters) on digits" in done.stderr
    config = load_run(out).record.config
    assert (config.seed, config.data.val_fraction, config.mean, config.std) == (3, 0.3, (0.3,), (0.4,))


def test_json_is_the_record(tmp_path: Path) -> None:
    done = invoke(*QUICK, "--out", str(tmp_path / "run"), "--json")
    assert json.loads(done.stdout)["accuracy"] == load_run(tmp_path / "run").record.accuracy


def test_summary_prints_the_layers_and_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("--arch", "mnist_resnet", "--image-size", "28", "--summary")
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    first = next(line for line in lines if line and line[0] == "conv1.0")
    assert first == ["conv1.0", "│", "Conv2d", "│", "8", "x", "14", "x", "14", "│", "72", "│", "yes"]
    assert "41,132" in done.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (("--arch", "resnet19"), 2, "arch is 'resnet19'"),
        (("--data", "nowhere"), 2, "data 'nowhere': no such folder"),
        (("--mean", "black"), 2, "mean is 'black'; expected a number per channel"),
        (("--image-size", "4"), 2, "image_size is 4; expected a whole number from 8"),
        (("--epochs", "many"), 2, "'many' is not a valid integer"),
        (("--data", "mnist", "--data-root", "nowhere"), 1, "data_root 'nowhere': no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], exit_code: int, message: str) -> None:
    done = invoke(*arguments)
    assert done.exit_code == exit_code
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert message in line
    assert done.stdout == ""


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shipnet", "train", "--epochs", "1000", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "out" / "run")],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.split()[:1] == ["1"]:  # the first epoch is done
            break
    assert any((tmp_path / "out").iterdir())
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Aborted!" in errors
    assert "Traceback" not in errors
    assert "the same command with --resume goes on" in errors
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.partial"]
