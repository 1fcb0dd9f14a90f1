"""The commands `shipnet find-lr` and `shipnet show`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from shipnet.cli import main
from shipnet.train import load_run
from shipnet.train.lr_curve import Suggestions

QUICK = ("--arch", "conv_cnn", "--device", "cpu")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_find_lr_prints_every_rule_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("find-lr", *QUICK)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == "artifacts/digits/find-lr.png"
    with Image.open(lines[-1]) as image:
        assert image.format == "PNG"
    for rule in ("valley", "steepest descent", "a tenth of the minimum's"):
        assert any(line.startswith(rule) for line in lines)
    assert "100 steps in batches of 64 on cpu" in done.stdout


def test_find_lr_as_json(tmp_path: Path) -> None:
    done = invoke("find-lr", *QUICK, "--steps", "40", "--out", str(tmp_path / "sweep.png"), "--json")
    found = json.loads(done.stdout)
    assert set(found["suggestions"]) == set(Suggestions.__struct_fields__)
    assert len(found["losses"]) == 40
    assert (tmp_path / "sweep.png").is_file()


def test_find_lr_has_no_option_that_does_nothing() -> None:
    done = invoke("find-lr", "--epochs", "3")
    assert done.exit_code == 2
    assert "No such option" in done.stderr


def test_a_range_upside_down_is_a_usage_error() -> None:
    done = invoke("find-lr", *QUICK, "--low", "1", "--high", "0.1")
    assert done.exit_code == 2
    assert "low is 1, expected less than high" in done.stderr


def test_auto_trains_with_the_valley_and_says_so(tmp_path: Path) -> None:
    arguments = ("train", *QUICK, "--epochs", "1", "--max-lr", "auto", "--out", str(tmp_path / "run"))
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(invoke("find-lr", *QUICK, "--out", str(tmp_path / "x.png"), "--json").stdout)
    max_lr = load_run(tmp_path / "run").record.config.max_lr
    assert max_lr == found["suggestions"]["valley"]
    assert f"max_lr {max_lr:.3g}: the valley of a sweep over 100 training batches" in done.stderr
    assert (tmp_path / "run" / "find-lr.png").is_file()


def test_a_rate_is_a_number_or_auto() -> None:
    done = invoke("train", "--max-lr", "fast")
    assert done.exit_code == 2
    assert "'fast' is not a valid float" in done.stderr
